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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..arch.published import normalise_name
from ..errors import ManifestError, UnknownModelError
from ..utils.config import Fields, check_keys, is_hex, is_int, is_number, is_text, is_triple, show
from ..utils.files import read_bytes
from .file_spec import MAX_WEIGHTS_BYTES, digests_of
from .record import Weights

SCHEMA_VERSION = 1
FILE_NAME = "weights_manifest.json"
MAX_FILE_BYTES = 1 << 20
STATUSES = ("published, not re-measured", "measured", "no published figure")

_MAX_ENTRIES = 500
_MAX_PROBLEMS = 100
_CLASSES = {"imagenet": 1000, "cifar10": 10}
_NAME = r"[a-z0-9][a-z0-9_]{0,63}"
_FILENAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(pth|safetensors)"
_URL = r"[A-Za-z0-9._~:/%+@,=-]{1,500}"
_REPOSITORY_FILE = r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,60}/){0,6}[A-Za-z0-9_][A-Za-z0-9._-]{0,60}"


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
        if not Path(path).is_file():  # a device would never end
            return None
        found = digests_of(Path(path))
    except (OSError, ValueError):
        return None
    return next((w for w in read_manifest().values() if (w.sha256 or w.git_blob) in found), None)


def list_weights() -> list[str]:
    """Return the names of all published weights, in the manifest's order."""
    return list(read_manifest())


def default_path() -> Path:
    """Return where the manifest lies: in the package (a wheel) or next to it (a checkout).

    Raises:
        ManifestError: it is in neither place; the message names both.
    """
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
        raw = read_bytes(path, MAX_FILE_BYTES)
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

    Args:
        data: any value that ``json.loads`` can return.

    Raises:
        ManifestError: it is not a manifest; ``problems`` lists everything that is wrong (at most 100 lines).
    """
    problems: list[str] = []
    if not isinstance(data, dict):
        raise ManifestError(f"the top level is {show(data)}, not an object")
    check_keys(problems, "top level", data, required={"schema_version", "weights"}, optional={"about"})
    version = data.get("schema_version")
    if "schema_version" in data and (isinstance(version, bool) or version != SCHEMA_VERSION):
        raise ManifestError(f"schema_version is {show(version)}; this package reads {SCHEMA_VERSION}")
    entries = data.get("weights")
    out: dict[str, Weights] = {}
    if isinstance(entries, dict):
        if not 0 < len(entries) <= _MAX_ENTRIES:
            problems.append(f"weights: {len(entries)} entries; 1 to {_MAX_ENTRIES} are allowed")
        for name, entry in list(entries.items())[:_MAX_ENTRIES]:
            weights = _entry(problems, name, entry)
            if weights is not None:
                out[weights.name] = weights
        _unique(problems, out)
    elif "weights" in data:
        problems.append(f"weights: {show(entries)} is not an object")
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise ManifestError(problems[:_MAX_PROBLEMS] + ([f"... and {more} more"] if more > 0 else []))
    return out


def _unique(problems: list[str], entries: dict[str, Weights]) -> None:
    """Two entries must not meet in the cache (name and digest) nor on a mirror (file name)."""
    seen: dict[str, str] = {}
    for name, weights in entries.items():
        other = seen.setdefault(weights.filename.lower(), name)
        if other != name:
            problems.append(f"{name}: filename {weights.filename} is also that of {other}")


def _matches(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _one_of(known: Iterable[str]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in known


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


#: Of each key what a value must satisfy, and how a message says so.
_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]

_OBJECT = (lambda v: isinstance(v, dict), "an object")
_PERCENT = (lambda v: is_number(v, 0, 100), "a percentage, 0 to 100")
_PERCENT_OR_NULL = (lambda v: v is None or is_number(v, 0, 100), "null or a percentage, 0 to 100")
_IMAGES = (lambda v: is_text(v, 200), "a text saying which images the figures are of")
_DATE = (_is_date, "a date, as in 2026-01-31")
_SEED = (lambda v: is_int(v, 0, 2**63 - 1), "a number, at least 0")
_COMMAND = (lambda v: is_text(v, 500), "the exact command line")
_MINUTES = (lambda v: is_number(v, 0, 1e7), "how long it took, minutes")
_FILE = (_matches(_REPOSITORY_FILE), "the path of a file in the repository")
_ENTRY: _Rules = {
    "arch": (_matches(_NAME), "the name of a model"),
    "dataset": (_one_of(_CLASSES), " or ".join(_CLASSES)),
    "num_classes": (lambda v: is_int(v, 1, 10**6), "a count of classes"),
    "input_size": (lambda v: is_int(v, 1, 4096), "pixels, 1 to 4096"),
    "resize": (lambda v: is_int(v, 1, 8192), "pixels, 1 to 8192"),
    "mean": (lambda v: is_triple(v, 0.0, 1.0), "three numbers from 0 to 1"),
    "std": (lambda v: is_triple(v, 1e-6, 10.0), "three numbers above 0"),
    "interpolation": (_one_of(("bilinear", "bicubic")), "bilinear or bicubic"),
    "params": (lambda v: is_int(v, 1, 10**12), "a count of parameters"),
    "macs": (lambda v: is_int(v, 1, 10**15), "a count of multiply-adds"),
    "license": (lambda v: is_text(v, 64), "an SPDX identifier"),
    "size": (
        lambda v: v is None or is_int(v, 1, MAX_WEIGHTS_BYTES),
        f"null or a number of bytes, at most {MAX_WEIGHTS_BYTES:,}",
    ),
    "sha256": (lambda v: v is None or is_hex(v, 64), "null or 64 lower-case hex digits"),
    "git_blob": (lambda v: v is None or is_hex(v, 40), "null or 40 lower-case hex digits"),
    "filename": (_matches(_FILENAME), "a plain file name ending in .pth or .safetensors, without any path"),
    "sources": (lambda v: isinstance(v, list) and len(v) <= 10, "a list of 1 to 10 https addresses"),
    "metrics": _OBJECT,
    "bundled": (lambda v: isinstance(v, bool), "true or false"),
    "training": _OBJECT,
}
_METRICS: _Rules = {
    "top1": _PERCENT_OR_NULL,
    "top5": _PERCENT_OR_NULL,
    "status": (_one_of(STATUSES), f"one of {', '.join(STATUSES)}"),
    "source": (lambda v: is_text(v, 500), "a text saying where the figures are from"),
    "published_error": _PERCENT_OR_NULL,
    "images": _IMAGES,
    "measured": (lambda v: isinstance(v, list) and 0 < len(v) <= 20, "a list of 1 to 20 records"),
}
_MEASURED: _Rules = {
    "images": _IMAGES,
    "n": (lambda v: is_int(v, 1, 10**9), "how many images"),
    "top1": _PERCENT,
    "top5": _PERCENT,
    "date": _DATE,
}
_TRAINING: _Rules = {
    "command": _COMMAND,
    "data": (lambda v: is_text(v, 500), "what it was trained on"),
    "machine": (lambda v: is_text(v, 500), "the machine that it ran on"),
    "versions": (lambda v: is_text(v, 500), "names and versions of what computed it"),
    "recipe": _FILE,
    "log": _FILE,
    "seed": _SEED,
    "data_sha256": (lambda v: is_hex(v, 64), "64 lower-case hex digits"),
    "date": _DATE,
    "minutes": _MINUTES,
    "commit": (lambda v: is_hex(v, 40), "git's id of the source, 40 hex digits"),
    "teachers": (lambda v: isinstance(v, list) and 0 < len(v) <= 100, "a list of 1 to 100 records"),
    "before": _OBJECT,
}
_TEACHER: _Rules = {
    "net": (lambda v: is_text(v, 200), "what kind of model it is"),
    "command": _COMMAND,
    "params": (lambda v: is_int(v, 1, 2**63 - 1), "a number of parameters"),
    "seed": _SEED,
    "minutes": _MINUTES,
    "top1": _PERCENT,
}


def _take(problems: list[str], where: str, data: object, rules: _Rules, *optional: str) -> dict[str, Any]:
    """Take an object by its rules, noting every problem: {} if it is none, None for a value that is wrong.

    Of the optional keys those that are there are taken.
    """
    if not isinstance(data, dict):
        problems.append(f"{where}: {show(data)} is not an object")
        return {}
    check_keys(problems, where, data, required=rules.keys() - set(optional), optional=set(optional))
    f = Fields(problems, where, data)
    taken = {key: f.take(key, *rule) for key, rule in rules.items() if key in data or key not in optional}
    if None not in (taken.get("top1"), taken.get("top5")) and taken["top5"] < taken["top1"]:
        problems.append(f"{where}: top5 {taken['top5']} is below top1 {taken['top1']}")
    return taken


def _entry(problems: list[str], name: object, data: object) -> Weights | None:
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        problems.append(f"weights: {show(name)} is no name (lower-case letters, digits and _; at most 64)")
        return None
    before = len(problems)
    values = _take(problems, name, data, _ENTRY, "about", "bundled", "training")
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
    if values["metrics"] is not None:
        values["metrics"] = _metrics(problems, f"{name}: metrics", values["metrics"])
    if values.get("training") is not None:
        values["training"] = _training(problems, f"{name}: training", values["training"])
    elif values["bundled"] and (values["metrics"] or {}).get("top1") is not None and "training" not in data:
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
        problem = _url_problem(url, filename)
        if problem is None and url in sources[:index]:
            problem = "is given twice"
        if problem:
            problems.append(f"{name}: sources[{index}] {show(url)} {problem}")


def _url_problem(url: object, filename: str | None) -> str | None:
    if not isinstance(url, str) or not re.fullmatch(_URL, url):
        return "is not an address"
    try:
        parts = urlsplit(url)
        host, port_ok = parts.hostname, parts.port is None or parts.port > 0
    except ValueError:
        return "is not an address"
    if parts.scheme != "https":
        return "is not https"
    if not host or not port_ok or "@" in parts.netloc:
        return "is not an address of a public file"
    if ".." in parts.path.split("/"):
        return "has a '..' in it"
    if filename is not None and parts.path.rsplit("/", 1)[-1] != filename:
        return f"does not end in the filename {filename}"
    return None


def _metrics(problems: list[str], where: str, data: dict[str, Any]) -> dict[str, Any]:
    """Take the accuracies of an entry."""
    out = _take(problems, where, data, _METRICS, "published_error", "images", "measured")
    if "measured" in out:
        records = enumerate(out["measured"] or ())
        out["measured"] = [_take(problems, f"{where}: measured[{i}]", each, _MEASURED) for i, each in records]
    if out["status"] is not None and (out["status"] == STATUSES[2]) != (data.get("top1") is None):
        problems.append(f"{where}: top1 is null exactly when the status is {STATUSES[2]!r}")
    return out


def _training(problems: list[str], where: str, data: dict[str, Any]) -> dict[str, Any]:
    """Take the record of a training run; of its teachers and of the run before it, if any.

    Recipe and log are files of the repository.
    """
    out = _take(problems, where, data, _TRAINING, "teachers", "before")
    if "teachers" in out:
        records = enumerate(out["teachers"] or ())
        out["teachers"] = [_take(problems, f"{where}: teachers[{i}]", each, _TEACHER) for i, each in records]
    if out.get("before") is not None:
        out["before"] = _training(problems, f"{where}: before", out["before"])
    return out
