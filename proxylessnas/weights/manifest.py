"""Read ``weights_manifest.json``: the one place that knows addresses, digests, figures and preprocessing.

The file is data from outside, so it is checked as such: every problem is reported at once, unknown keys are
errors (a mistyped key must not be a silent default), names that become file names are plain, and nothing in
it is a path that is ever opened. What the keys of an entry mean is said by :class:`~.weights.Weights`.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ManifestError
from ..utils.checks import (
    Fields,
    check_keys,
    is_hex,
    is_int,
    is_number,
    is_text,
    is_triple,
    show,
)
from ..utils.files import read_bytes
from .registry import Weights

# DOC proxylessnas.manifest_records: """The parts of a manifest's entry that are records: accuracies, and how weights were made."""

SCHEMA_VERSION = 1
FILE_NAME = "weights_manifest.json"
MAX_FILE_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30

_MAX_ENTRIES = 500
_MAX_PROBLEMS = 100
_CLASSES = {"imagenet": 1000, "cifar10": 10}
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.(pth|safetensors)")
_URL_CHARS = re.compile(r"[A-Za-z0-9._~:/%+@,=-]{1,500}")


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


_ENTRY_KEYS = frozenset(
    {"arch", "dataset", "num_classes", "input_size", "resize", "mean", "std", "interpolation", "metrics"}
    | {"params", "macs", "size", "sha256", "git_blob", "license", "sources", "filename"}
)


def _entry(problems: list[str], name: object, data: object) -> Weights | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(f"weights: {show(name)} is no name (lower-case letters, digits and _; at most 64)")
        return None
    if not isinstance(data, dict):
        problems.append(f"{name}: {show(data)} is not an object")
        return None
    before = len(problems)
    check_keys(problems, name, data, required=_ENTRY_KEYS, optional={"about", "bundled", "training"})
    f = Fields(problems, name, data)
    values: dict[str, Any] = {"name": name}
    values["arch"] = f.take(
        "arch", lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)), "the name of a net"
    )
    values["dataset"] = f.take(
        "dataset", lambda v: isinstance(v, str) and v in _CLASSES, " or ".join(_CLASSES)
    )
    values["num_classes"] = f.take("num_classes", lambda v: is_int(v, 1, 10**6), "a count of classes")
    if None not in (values["dataset"], values["num_classes"]):
        wanted = _CLASSES[values["dataset"]]
        if values["num_classes"] != wanted:
            problems.append(
                f"{name}: num_classes is {values['num_classes']}; {values['dataset']} has {wanted}"
            )
    values["input_size"] = f.take("input_size", lambda v: is_int(v, 1, 4096), "pixels, 1 to 4096")
    values["resize"] = f.take("resize", lambda v: is_int(v, 1, 8192), "pixels, 1 to 8192")
    if None not in (values["input_size"], values["resize"]) and values["resize"] < values["input_size"]:
        problems.append(
            f"{name}: resize {values['resize']} is smaller than input_size {values['input_size']}"
        )
    values["mean"] = f.take("mean", lambda v: is_triple(v, 0.0, 1.0), "three numbers from 0 to 1")
    values["std"] = f.take("std", lambda v: is_triple(v, 1e-6, 10.0), "three numbers above 0")
    values["interpolation"] = f.take(
        "interpolation", lambda v: v in ("bilinear", "bicubic"), "bilinear or bicubic"
    )
    values["params"] = f.take("params", lambda v: is_int(v, 1, 10**12), "a count of parameters")
    values["macs"] = f.take("macs", lambda v: is_int(v, 1, 10**15), "a count of multiply-adds")
    values["license"] = f.take("license", lambda v: is_text(v, 64), "an SPDX identifier")
    _file_fields(f, values)
    values["metrics"] = take_metrics(problems, name, data.get("metrics")) if "metrics" in data else None
    if "training" in data:
        values["training"] = take_training(problems, f"{name}: training", data["training"])
    elif values["bundled"] and (values["metrics"] or {}).get("top1") is not None:
        problems.append(f"{name}: weights of our own with a measured figure need training, the record of it")
    if len(problems) > before:
        return None
    values["mean"], values["std"] = tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
    return Weights(**values)


def _file_fields(f: Fields, values: dict[str, Any]) -> None:
    """Take what identifies the file and where it is: size, digests, addresses and the hosts' name."""
    wanted_size = f"null or a number of bytes, at most {MAX_WEIGHTS_BYTES:,}"
    values["size"] = f.take("size", lambda v: v is None or is_int(v, 1, MAX_WEIGHTS_BYTES), wanted_size)
    values["sha256"] = f.take(
        "sha256", lambda v: v is None or is_hex(v, 64), "null or 64 lower-case hex digits"
    )
    values["git_blob"] = f.take(
        "git_blob", lambda v: v is None or is_hex(v, 40), "null or 40 lower-case hex digits"
    )
    if f.data.get("sha256", "") is None and f.data.get("git_blob", "") is None:
        f.problems.append(f"{f.where}: neither sha256 nor git_blob is known; one of them is needed")
    plain = "a plain file name ending in .pth or .safetensors, without any path"
    values["filename"] = f.take(
        "filename", lambda v: isinstance(v, str) and bool(_FILENAME.fullmatch(v)), plain
    )
    bundled = f.take("bundled", lambda v: isinstance(v, bool), "true or false")
    values["bundled"] = bool(bundled)
    sources: list[Any] | None
    if bundled:
        sources = f.take("sources", lambda v: v == [], "[], because the file comes with the package")
        for key in ("size", "sha256"):
            if f.data.get(key, "") is None:
                f.problems.append(f"{f.where}: {key} is null; it must be known of a file in the package")
        if not (values["filename"] or ".safetensors").endswith(".safetensors"):
            f.problems.append(f"{f.where}: filename of a file in the package must end in .safetensors")
    else:
        sources = f.take(
            "sources", lambda v: isinstance(v, list) and 0 < len(v) <= 10, "a list of 1 to 10 https addresses"
        )
    for index, url in enumerate(sources or ()):
        problem = _url_problem(url, values["filename"])
        if problem:
            f.problems.append(f"{f.where}: sources[{index}] {show(url)} {problem}")
        elif url in sources[:index]:
            f.problems.append(f"{f.where}: sources[{index}] {show(url)} is given twice")
    values["sources"] = tuple(sources or ())


def _url_problem(url: object, filename: str | None) -> str | None:
    if not isinstance(url, str) or not _URL_CHARS.fullmatch(url):
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


STATUSES = ("published, not re-measured", "measured", "no published figure")
_TOPS = ("top1", "top5")
_REPOSITORY_FILE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]{0,60}/){0,6}[A-Za-z0-9_][A-Za-z0-9._-]{0,60}")


def take_metrics(problems: list[str], name: str, data: object) -> dict[str, Any]:
    """Take the accuracies of an entry; what is wrong with them is added to ``problems``."""
    where = f"{name}: metrics"
    if not isinstance(data, dict):
        problems.append(f"{where}: {show(data)} is not an object")
        return {}
    required, optional = {"top1", "top5", "status", "source"}, {"published_error", "images", "measured"}
    check_keys(problems, where, data, required=required, optional=optional)
    f = Fields(problems, where, data)
    percent = "null or a percentage, 0 to 100"
    out = {key: f.take(key, lambda v: v is None or is_number(v, 0, 100), percent) for key in _TOPS}
    out["status"] = f.take(
        "status", lambda v: isinstance(v, str) and v in STATUSES, f"one of {', '.join(STATUSES)}"
    )
    out["source"] = f.take("source", lambda v: is_text(v, 500), "a text saying where the figures are from")
    if "published_error" in data:
        out["published_error"] = f.take(
            "published_error", lambda v: v is None or is_number(v, 0, 100), percent
        )
    _check_order(f, out)
    if "images" in data:
        out["images"] = f.take("images", _is_what_images, "a text saying which images the figures are of")
    if "measured" in data:
        wanted = "a list of 1 to 20 records"
        records = f.take("measured", lambda v: isinstance(v, list) and 0 < len(v) <= 20, wanted) or []
        places = [f"{where}: measured[{i}]" for i in range(len(records))]
        out["measured"] = [_measured(problems, *each) for each in zip(places, records, strict=True)]
    if out["status"] is not None and (out["status"] == STATUSES[2]) != (data.get("top1") is None):
        problems.append(f"{where}: top1 is null exactly when the status is {STATUSES[2]!r}")
    return out


def _measured(problems: list[str], where: str, data: object) -> dict[str, Any]:
    """Take an accuracy that this project measured with the published file, on some of the images only."""
    if not isinstance(data, dict):
        problems.append(f"{where}: {show(data)} is not an object")
        return {}
    check_keys(problems, where, data, required={"images", "n", "top1", "top5", "date"}, optional=set())
    f = Fields(problems, where, data)
    out = {
        "images": f.take("images", _is_what_images, "a text saying which images the figures are of"),
        "n": f.take("n", lambda v: is_int(v, 1, 10**9), "how many images"),
        **{key: f.take(key, lambda v: is_number(v, 0, 100), "a percentage, 0 to 100") for key in _TOPS},
        "date": f.take("date", _is_date, "a date, as in 2026-01-31"),
    }
    _check_order(f, out)
    return out


def _check_order(f: Fields, out: Mapping[str, Any]) -> None:
    if None not in (out["top1"], out["top5"]) and out["top5"] < out["top1"]:
        f.problems.append(f"{f.where}: top5 {out['top5']} is below top1 {out['top1']}")


def take_training(problems: list[str], where: str, data: object) -> dict[str, Any]:
    """Take the record of a training run; of its teachers and of the run it goes on from ("before"), if any.

    Recipe and log are files of the repository.
    """
    if not isinstance(data, dict):
        problems.append(f"{where}: {show(data)} is not an object")
        return {}
    texts = {
        "command": "the exact command line",
        "data": "what it was trained on",
        "machine": "the machine that it ran on",
        "versions": "names and versions of what computed it",
    }
    others = {"recipe", "log", "seed", "data_sha256", "date", "minutes", "commit"}
    check_keys(problems, where, data, required=others | texts.keys(), optional={"teachers", "before"})
    f = Fields(problems, where, data)
    out: dict[str, Any] = {
        key: f.take(key, lambda v: is_text(v, 500), wanted) for key, wanted in texts.items()
    }
    for key in ("recipe", "log"):
        out[key] = f.take(key, _is_repository_file, "the path of a file in the repository")
    out["seed"] = f.take("seed", lambda v: is_int(v, 0, 2**63 - 1), "a number, at least 0")
    out["data_sha256"] = f.take("data_sha256", lambda v: is_hex(v, 64), "64 lower-case hex digits")
    out["date"] = f.take("date", _is_date, "a date, as in 2026-01-31")
    out["minutes"] = f.take("minutes", lambda v: is_number(v, 0, 1e7), "how long it took, minutes")
    out["commit"] = f.take("commit", lambda v: is_hex(v, 40), "git's id of the source, 40 hex digits")
    if "teachers" in data:
        f.take("teachers", lambda v: isinstance(v, list) and 0 < len(v) <= 100, "a list of 1 to 100 records")
        teachers = data["teachers"] if isinstance(data["teachers"], list) else []
        places = [f"{where}: teachers[{i}]" for i in range(len(teachers))]
        out["teachers"] = [_teacher(problems, *each) for each in zip(places, teachers, strict=True)]
    if "before" in data:
        out["before"] = take_training(problems, f"{where}: before", data["before"])
    return out


def _teacher(problems: list[str], where: str, data: object) -> dict[str, Any]:
    """Take the record of a net that a net of ours learnt from."""
    if not isinstance(data, dict):
        problems.append(f"{where}: {show(data)} is not an object")
        return {}
    known = {"net", "command", "params", "seed", "minutes", "top1"}
    check_keys(problems, where, data, required=known, optional=set())
    f = Fields(problems, where, data)
    return {
        "net": f.take("net", lambda v: is_text(v, 200), "what kind of net it is"),
        "command": f.take("command", lambda v: is_text(v, 500), "the exact command line"),
        "params": f.take("params", lambda v: is_int(v, 1, 2**63 - 1), "a number of parameters"),
        "seed": f.take("seed", lambda v: is_int(v, 0, 2**63 - 1), "a number, at least 0"),
        "minutes": f.take("minutes", lambda v: is_number(v, 0, 1e7), "how long it took, minutes"),
        "top1": f.take("top1", lambda v: is_number(v, 0, 100), "a percentage, 0 to 100"),
    }


def _is_what_images(value: object) -> bool:
    return is_text(value, 200)


def _is_repository_file(value: object) -> bool:
    return isinstance(value, str) and _REPOSITORY_FILE.fullmatch(value) is not None


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False
