"""Finds published weights by name or by file, as ``weights_manifest.json`` lists them.

The manifest is the one place that knows addresses, digests, figures and preprocessing. It is data from
outside, so it is checked as such: every problem is reported at once, unknown keys are errors (a mistyped key
must not be a silent default), names that become file names are plain, and nothing in it is a path that is
ever opened. What the keys of an entry mean is said by :class:`~.record.Weights`.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..arch.published import normalise_name
from ..errors import ManifestError, UnknownModelError
from ..utils.checks import Fields, check_keys, is_hex, is_int, is_number, is_text, is_triple, show
from ..utils.files import read_bytes
from .file_spec import MAX_WEIGHTS_BYTES, digests_of
from .record import Weights

FILE_NAME = "weights_manifest.json"
_SCHEMA_VERSION = 1
_MAX_FILE_BYTES = 1 << 20
_MAX_ENTRIES = 500
_MAX_PROBLEMS = 100


def get_weights(name: str) -> Weights:
    """Return the published weights of a model.

    Args:
        name: as in :func:`~proxylessnas.list_models`; ``proxyless-mobile-14`` and ``proxyless_mobile14``
            are the same.

    Raises:
        UnknownModelError: there are none of this name; the message lists the nearest.
    """
    known = read_manifest()
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        found = known.get(normalise_name(name))  # names no model at all: raises with the nearest ones
    if found is None:
        raise UnknownModelError(
            f"no weights are published for {name}; there are some for: {', '.join(known)}"
        )
    return found


def find_by_digest(path: Path | str) -> Weights | None:
    """Return the record of a local file that is, byte for byte, one of the published ones, else None."""
    try:
        if not Path(path).is_file():  # a pipe can be read only once
            return None
        found = digests_of(Path(path))
    except (OSError, ValueError):
        return None
    return next((w for w in read_manifest().values() if (w.sha256 or w.git_blob) in found), None)


def list_weights() -> list[str]:
    """Return the names of all published weights, in the manifest's order."""
    return list(read_manifest())


def default_path() -> Path:
    """Return where the manifest lies: in the package (a wheel) or next to it (a checkout)."""
    here = Path(__file__).resolve().parents[1]
    candidates = [here / FILE_NAME, here.parent / FILE_NAME]
    for path in candidates:
        if path.is_file():
            return path
    raise ManifestError(f"{FILE_NAME} is missing; looked for {candidates[0]} and {candidates[1]}")


def read_manifest(path: Path | None = None) -> dict[str, Weights]:
    """Return all published weights by name, in the order of the file.

    Args:
        path: another manifest; by default the one that belongs to this package, which is read once.

    Raises:
        ManifestError: the file cannot be read or is invalid; all problems are listed.
    """
    return dict(_default_manifest()) if path is None else _read(Path(path))


@functools.lru_cache(maxsize=1)
def _default_manifest() -> dict[str, Weights]:
    return _read(default_path())


def _read(path: Path) -> dict[str, Weights]:
    try:
        raw = read_bytes(path, _MAX_FILE_BYTES)
    except OSError as e:
        raise ManifestError(f"cannot read {path}: {e.strerror or e}") from e
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except RecursionError as e:
        raise ManifestError(f"{path} is nested too deeply") from e
    except ValueError as e:  # bad UTF-8, bad JSON, a number of thousands of digits
        raise ManifestError(f"{path} is not valid JSON: {e}") from e
    return manifest_from_dict(data)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key given twice; the json module would silently keep the last."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ManifestError(f"the key {show(key)} is given twice")
        out[key] = value
    return out


def manifest_from_dict(data: object) -> dict[str, Weights]:
    """Return the weights that a decoded manifest describes.

    Raises:
        ManifestError: it is not a manifest; ``problems`` lists everything that is wrong (at most 100 lines).
    """
    problems: list[str] = []
    if not isinstance(data, dict):
        raise ManifestError(f"the top level is {show(data)}, not an object")
    check_keys(problems, "top level", data, required={"schema_version", "weights"}, optional={"about"})
    version = data.get("schema_version")
    if "schema_version" in data and (isinstance(version, bool) or version != _SCHEMA_VERSION):
        raise ManifestError(f"schema_version is {show(version)}; this package reads {_SCHEMA_VERSION}")
    entries = data.get("weights")
    out: dict[str, Weights] = {}
    if isinstance(entries, dict):
        if not 0 < len(entries) <= _MAX_ENTRIES:
            problems.append(f"weights: {len(entries)} entries; 1 to {_MAX_ENTRIES} are allowed")
        files: dict[str, str] = {}  # on a mirror, file names tell the entries apart
        for name, entry in list(entries.items())[:_MAX_ENTRIES]:
            if (weights := _entry(problems, name, entry)) is not None:
                out[name] = weights
                if (other := files.setdefault(weights.filename.lower(), name)) != name:
                    problems.append(f"{name}: filename {weights.filename} is also that of {other}")
    elif "weights" in data:
        problems.append(f"weights: {show(entries)} is not an object")
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise ManifestError(problems[:_MAX_PROBLEMS] + ([f"... and {more} more"] if more > 0 else []))
    return out


_Rule = tuple[Callable[[Any], bool], str]  # a test, and words for what passes it


def _matches(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _one_of(*known: str) -> _Rule:
    return lambda value: isinstance(value, str) and value in known, f"one of {', '.join(known)}"


def _or_null(test: Callable[[Any], bool], wanted: str) -> _Rule:
    return lambda value: value is None or test(value), f"null or {wanted}"


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


_NAME = r"[a-z0-9][a-z0-9_]{0,63}"
_FILENAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(pth|safetensors)"
_URL = r"https://[A-Za-z0-9.-]+/(?!(.*/)?\.\.)[A-Za-z0-9._~:/%+@,=-]{1,500}"
_REPOSITORY_FILE = r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,60}/){0,6}[A-Za-z0-9_][A-Za-z0-9._-]{0,60}"
_CLASSES = {"imagenet": 1000, "cifar10": 10}
_NO_FIGURE = "no published figure"

_PERCENT: _Rule = partial(is_number, low=0, high=100), "a percentage, 0 to 100"
_IMAGES: _Rule = partial(is_text, longest=200), "a text saying which images the figures are of"
_DATE: _Rule = _is_date, "a date, as in 2026-01-31"
_SEED: _Rule = partial(is_int, low=0, high=2**63 - 1), "a number, at least 0"
_COMMAND: _Rule = partial(is_text, longest=500), "the exact command line"
_MINUTES: _Rule = partial(is_number, low=0, high=1e7), "how long it took, minutes"
_FILE: _Rule = _matches(_REPOSITORY_FILE), "the path of a file in the repository"

# What an object holds, by key; one with a "?" may be missing. In place of a rule stand the rules of an object
# within or, in a list, those of each object of a list.
_METRICS: dict[str, Any] = {
    "top1": _or_null(*_PERCENT),
    "top5": _or_null(*_PERCENT),
    "status": _one_of("published, not re-measured", "measured", _NO_FIGURE),
    "source": (partial(is_text, longest=500), "a text saying where the figures are from"),
    "published_error?": _or_null(*_PERCENT),
    "images?": _IMAGES,
    "measured?": [
        {
            "images": _IMAGES,
            "n": (partial(is_int, low=1, high=10**9), "how many images"),
            "top1": _PERCENT,
            "top5": _PERCENT,
            "date": _DATE,
        }
    ],
}
_TRAINING: dict[str, Any] = {
    "command": _COMMAND,
    "data": (partial(is_text, longest=500), "what it was trained on"),
    "machine": (partial(is_text, longest=500), "the machine that it ran on"),
    "versions": (partial(is_text, longest=500), "names and versions of what computed it"),
    "recipe": _FILE,
    "log": _FILE,
    "seed": _SEED,
    "data_sha256": (partial(is_hex, digits=64), "64 lower-case hex digits"),
    "date": _DATE,
    "minutes": _MINUTES,
    "commit": (partial(is_hex, digits=40), "git's id of the source, 40 hex digits"),
    "teachers?": [
        {
            "net": (partial(is_text, longest=200), "what kind of model it is"),
            "command": _COMMAND,
            "params": (partial(is_int, low=1, high=2**63 - 1), "a number of parameters"),
            "seed": _SEED,
            "minutes": _MINUTES,
            "top1": _PERCENT,
        }
    ],
}
_TRAINING["before?"] = _TRAINING
_ENTRY: dict[str, Any] = {
    "arch": (_matches(_NAME), "the name of a model"),
    "dataset": _one_of(*_CLASSES),
    "num_classes": (partial(is_int, low=1, high=10**6), "a number of classes"),
    "input_size": (partial(is_int, low=1, high=4096), "pixels, 1 to 4096"),
    "resize": (partial(is_int, low=1, high=8192), "pixels, 1 to 8192"),
    "mean": (partial(is_triple, low=0.0, high=1.0), "three numbers from 0 to 1"),
    "std": (partial(is_triple, low=1e-6, high=10.0), "three numbers above 0"),
    "interpolation": _one_of("bilinear", "bicubic"),
    "params": (partial(is_int, low=1, high=10**12), "a count of parameters"),
    "macs": (partial(is_int, low=1, high=10**15), "a count of multiply-adds"),
    "license": (partial(is_text, longest=64), "an SPDX identifier"),
    "size": _or_null(
        partial(is_int, low=1, high=MAX_WEIGHTS_BYTES), f"a number of bytes, at most {MAX_WEIGHTS_BYTES:,}"
    ),
    "sha256": _or_null(partial(is_hex, digits=64), "64 lower-case hex digits"),
    "git_blob": _or_null(partial(is_hex, digits=40), "40 lower-case hex digits"),
    "filename": (_matches(_FILENAME), "a plain file name ending in .pth or .safetensors, without any path"),
    "sources": (lambda v: isinstance(v, list) and len(v) <= 10, "a list of 1 to 10 https addresses"),
    "metrics": _METRICS,
    "bundled?": (lambda v: isinstance(v, bool), "true or false"),
    "training?": _TRAINING,
}


def _take(problems: list[str], where: str, data: object, rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object's values, noting every problem: {} if it is no object, None for a wrong value."""
    if not isinstance(data, dict):
        problems.append(f"{where}: {show(data)} is not an object")
        return {}
    known = {key.rstrip("?"): rule for key, rule in rules.items()}
    optional = {key.rstrip("?") for key in rules if key.endswith("?")}
    check_keys(problems, where, data, required=known.keys() - optional, optional=optional)
    fields, taken = Fields(problems, where, data), dict[str, Any]()
    for key, rule in known.items():
        if key not in data:
            taken |= {} if key in optional else {key: None}
        elif isinstance(rule, dict):
            taken[key] = _take(problems, f"{where}: {key}", data[key], rule)
        elif isinstance(rule, list):
            items = fields.take(
                key, lambda v: isinstance(v, list) and 0 < len(v) <= 100, "a list of 1 to 100 records"
            )
            taken[key] = [
                _take(problems, f"{where}: {key}[{i}]", item, rule[0]) for i, item in enumerate(items or ())
            ]
        else:
            taken[key] = fields.take(key, *rule)
    if None not in (taken.get("top1"), taken.get("top5")) and taken["top5"] < taken["top1"]:
        problems.append(f"{where}: top5 {taken['top5']} is below top1 {taken['top1']}")
    return taken


def _entry(problems: list[str], name: object, data: object) -> Weights | None:
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        problems.append(f"weights: {show(name)} is no name (lower-case letters, digits and _; at most 64)")
        return None
    before = len(problems)
    values = _take(problems, name, data, _ENTRY)
    if not isinstance(data, dict):
        return None
    count, wanted = values["num_classes"], _CLASSES.get(values["dataset"])
    if None not in (count, wanted) and count != wanted:
        problems.append(f"{name}: num_classes is {count}; {values['dataset']} has {wanted}")
    size, resize = values["input_size"], values["resize"]
    if None not in (size, resize) and resize < size:
        problems.append(f"{name}: resize {resize} is smaller than input_size {size}")
    values["bundled"] = bool(values.get("bundled"))
    _check_file(problems, name, values, data)
    metrics = values["metrics"] or {}
    if metrics.get("status") and (metrics["status"] == _NO_FIGURE) != (data["metrics"].get("top1") is None):
        problems.append(f"{name}: metrics: top1 is null exactly when the status is {_NO_FIGURE!r}")
    if values["bundled"] and metrics.get("top1") is not None and "training" not in data:
        problems.append(f"{name}: weights of our own with a measured figure need training, the record of it")
    if len(problems) > before:
        return None
    for key in ("mean", "std"):
        values[key] = tuple(map(float, values[key]))
    return Weights(name=name, **{**values, "sources": tuple(values["sources"])})


def _check_file(problems: list[str], name: str, values: dict[str, Any], data: dict[str, Any]) -> None:
    """Check what identifies the file and where it is: digests, addresses and the hosts' name together."""
    filename, sources = values["filename"], values["sources"]
    unknown = [key for key in ("size", "sha256", "git_blob") if data.get(key, "") is None]
    if {"sha256", "git_blob"} <= set(unknown):
        problems.append(f"{name}: neither sha256 nor git_blob is known; one of them is needed")
    if values["bundled"]:
        if sources:
            problems.append(f"{name}: sources is {show(sources)}; wanted [], as the file is in the package")
        for key in unknown:
            if key != "git_blob":
                problems.append(f"{name}: {key} is null; it must be known of a file in the package")
        if filename is not None and not filename.endswith(".safetensors"):
            problems.append(f"{name}: filename of a file in the package must end in .safetensors")
        return
    if sources == []:
        problems.append(f"{name}: sources is []; wanted {_ENTRY['sources'][1]}")
    for index, url in enumerate(sources or ()):
        end = f"/{filename or ''}"
        if not _matches(_URL)(url) or (filename and not url.endswith(end)):
            problems.append(
                f"{name}: sources[{index}] {show(url)} is no address as in https://HOST/PATH{end}"
            )
        elif url in sources[:index]:
            problems.append(f"{name}: sources[{index}] {show(url)} is given twice")
