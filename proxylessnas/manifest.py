"""Read ``weights_manifest.json``: the one place that knows addresses, digests, figures and preprocessing.

The file is data from outside, so it is checked as such: every problem is reported at once, unknown keys are
errors (a mistyped key must not be a silent default), names that become file names are plain, and nothing in
it is a path that is ever opened. What the keys of an entry mean is said by :class:`~.weights.Weights`.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import ManifestError
from .json_fields import Fields, check_keys, is_hex, is_int, is_text, is_triple, show
from .manifest_records import take_metrics, take_training
from .user_files import read_bytes
from .weights import Weights

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
    here = Path(__file__).resolve().parent
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
