"""The parts of a manifest's entry that are records: accuracies, and how weights were made."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from .json_fields import Fields, check_keys, is_hex, is_int, is_number, is_text, show

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
