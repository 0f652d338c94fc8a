"""Read the files that :mod:`.table_import` makes tables of: what each says, before anything is checked."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..arch.op_key import OpKey
from ..errors import LatencyError, shown
from ..utils.checks import is_int, is_number, show
from .table_io import LONGEST_MS, MAX_ENTRIES, raise_problems

#: Milliseconds in one of each unit.
UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_SPREADS = ("p10", "p90", "std")

_ORIGINAL_KEY = re.compile(
    r"(\w+)-input:(\d{1,6})x(\d{1,6})x(\d{1,6})-output:(?:(\d{1,6})x(\d{1,6})x)?(\d{1,6})"
    r"(?:-expand:(\d{1,2})-kernel:(\d{1,2})-stride:([12])-idskip:([01]))?",
    re.ASCII,
)
_NUMBER = re.compile(r"[-+]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][-+]?[0-9]{1,3})?", re.ASCII)
_YAML_KEY = re.compile(r"([^\s#][^\s]*):\s*")
_YAML_LINES = 4  # a key and its three fields
_YAML_FIELD = re.compile(r"\s+(\w+):\s+(\S+)\s*")


@dataclass(frozen=True)
class Row:
    """One operation as a file has it, nothing checked; numbers are in the file's unit."""

    where: str
    key: Any
    value: Any
    spreads: Mapping[str, Any]
    runs: Any = None
    unit: str | None = None


@dataclass
class ReadFile:
    """What a file says."""

    rows: list[Row]
    problems: list[str]
    stated: dict[str, Any]


def parse_original_key(text: str) -> OpKey:
    """Read a key of the original code's tables.

    >>> str(parse_original_key("Conv-input:224x224x3-output:112x112x32"))
    'stem in=3x224x224 out=32 stride=2'

    Raises:
        LatencyError: it is none, or its shapes do not fit together.
    """
    match = _ORIGINAL_KEY.fullmatch(text)
    if not match:
        raise LatencyError(f"{shown(text)} is no key of an operation")
    kind, height, width, in_channels, out_height, out_width, out_channels = match.groups()[:7]
    expand, kernel, stride, skip = match.groups()[7:]
    size, out_size = int(height), int(out_height or 1)
    if not size or not out_size:
        raise LatencyError(f"{shown(text)}: a size of 0")
    if height != width or out_height != out_width:
        raise LatencyError(f"{shown(text)}: only square inputs and outputs are known")
    step = -(-size // out_size) if kind == "Conv" else int(stride or 1)
    if kind != "Logits" and out_size != -(-size // step):
        raise LatencyError(f"{shown(text)}: input and output do not fit a stride of {step}")
    names = {"Conv": "stem", "Conv_1": "last", "Logits": "classifier"}
    if (kind in names) == (expand is not None) or (kind not in names and kind != "expanded_conv"):
        raise LatencyError(f"{shown(text)} is no operation of this kind of model")
    op = names.get(kind) or f"k{kernel}e{expand}"
    # Through the text, so that everything is checked that is checked in any other key.
    shape = f"in={in_channels}x{height}x{width} out={out_channels}"
    parts = [op, shape] + ([f"stride={step}"] if kind in ("Conv", "expanded_conv") else [])
    return OpKey.parse(" ".join(parts + (["shortcut"] if skip == "1" else [])))


def parse_key(text: Any) -> OpKey:
    """Read a key of either kind; LatencyError where it is none."""
    if not isinstance(text, str) or len(text) > 300:
        raise LatencyError(f"{shown(text)} is no key of an operation")
    return parse_original_key(text) if "-input:" in text else OpKey.parse(text)


def _number(text: str) -> Any:
    """Return the number that a text means, or the text, which is then no number."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    return float(text) if match[1] or match[2] else int(text)


def _lines(text: str, each: int, problems: list[str]) -> list[str]:
    """Return the lines of a file that has ``each`` for an entry; none after noting that they are too many."""
    lines = text.splitlines()
    if len(lines) <= each * MAX_ENTRIES + 1:
        return lines
    problems.append(f"it has {len(lines):,} lines; wanted at most {MAX_ENTRIES:,} entries")
    return []


def read_yaml(text: str) -> ReadFile:
    """Read the original code's two-level layout, which needs no YAML library."""
    file = ReadFile([], [], {"statistic": "mean"})
    blocks: list[tuple[str, str, dict[str, Any]]] = []
    for number, line in enumerate(_lines(text, _YAML_LINES, file.problems), 1):
        if not line.strip() or line.lstrip().startswith("#") or line == "---":
            continue
        if match := _YAML_KEY.fullmatch(line):
            blocks.append((f"line {number}", match[1], {}))
        elif (match := _YAML_FIELD.fullmatch(line)) and blocks:
            if match[1] in blocks[-1][2]:
                file.problems.append(f"line {number}: {match[1]} is given twice")
            blocks[-1][2][match[1]] = _number(match[2])
        else:
            file.problems.append(f"line {number}: {shown(line)} is neither a key nor one of its fields")
    for where, key, fields in blocks:
        if not _is_original(fields):
            wanted = "mean, and perhaps count and either var or std"
            file.problems.append(f"{where}: wanted {wanted}; it has {shown(', '.join(fields))}")
        else:
            file.rows.append(_original_row(where, key, fields))
    return file


def _is_original(fields: Mapping[str, Any]) -> bool:
    """Tell whether these are fields of the original code; some of its tables have ``std`` for ``var``."""
    return "mean" in fields and any(fields.keys() <= {"mean", "count", spread} for spread in ("var", "std"))


def _original_row(where: str, key: Any, fields: Mapping[str, Any]) -> Row:
    spreads = {"std": fields["std"]} if "std" in fields else {}
    if "var" in fields:  # the variance over the runs, in the square of the unit
        var = fields["var"]
        spreads["std"] = var**0.5 if is_number(var, 0, LONGEST_MS) else var
    return Row(where, key, fields["mean"], spreads, fields.get("count"))


def read_csv(text: str) -> ReadFile:
    """Read columns separated by commas, semicolons or tabs; the first line names them."""
    file = ReadFile([], [], {})
    lines = _lines(text, 1, file.problems)
    head = lines[0] if lines else ""
    delimiter = next((d for d in (",", ";", "\t") if d in head), ",")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        table = [[cell.strip() for cell in row] for row in reader]
    except csv.Error as e:
        file.problems.append(f"line {reader.line_num}: {e}")
        return file
    if file.problems:
        return file
    names = table[0] if table else []
    units = [name for name in names if name in UNITS]
    unknown = [name for name in names if name not in ("key", "runs", *_SPREADS, *UNITS)]
    if "key" not in names or len(units) != 1 or unknown or len(set(names)) < len(names):
        file.problems.append(
            f"line 1: the columns are {shown(', '.join(names))}; wanted key, one of {', '.join(UNITS)}, and "
            "perhaps p10, p90, std, runs"
        )
        return file
    for number, cells in enumerate(table[1:], 2):
        if not any(cells):
            continue
        if len(cells) != len(names):
            file.problems.append(f"line {number}: it has {len(cells)} cells, the first line {len(names)}")
            continue
        row = dict(zip(names, cells, strict=True))
        known = {name: _number(row[name]) for name in (*_SPREADS, "runs") if row.get(name)}
        runs = known.pop("runs", None)
        file.rows.append(Row(f"line {number}", row["key"], _number(row[units[0]]), known, runs, units[0]))
    return file


_STATED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "unit": (lambda v: v in tuple(UNITS), "one of " + ", ".join(UNITS)),
    "device_name": (lambda v: isinstance(v, str), "a text"),
    "runtime": (lambda v: isinstance(v, str), "a text"),
    "threads": (lambda v: is_int(v, 1, 1024), "a whole number"),
    "batch_size": (lambda v: is_int(v, 1, 65_536), "a whole number"),
    "statistic": (lambda v: v in ("median", "mean"), "median or mean"),
    "source": (lambda v: isinstance(v, str), "a text"),
}


def read_mapping(data: Any, where: str) -> ReadFile:
    """Read decoded JSON: keys and times, perhaps inside an object that says more.

    Raises:
        LatencyError: it is no such thing; every problem is listed.
    """
    if not isinstance(data, dict):
        raise LatencyError(f"{where} holds {show(data)}; wanted an object of keys and times")
    file = ReadFile([], [], {})
    entries = data
    if "entries" in data:
        entries = data["entries"]
        for name, value in data.items():
            if name == "entries":
                continue
            if name not in _STATED:
                file.problems.append(f"unknown key {show(name)}")
            elif not _STATED[name][0](value):
                file.problems.append(f"{name} is {show(value)}; wanted {_STATED[name][1]}")
            else:
                file.stated[name] = value
        raise_problems(file.problems, where)
    if not isinstance(entries, dict):
        raise LatencyError(f"{where}: entries is {show(entries)}; wanted an object of keys and times")
    file.rows = list(_json_rows(entries, file.problems))
    return file


def _json_rows(entries: Mapping[str, Any], problems: list[str]) -> Iterator[Row]:
    for key, value in entries.items():
        where = shown(key)
        if not isinstance(value, dict):
            yield Row(where, key, value, {})
        elif _is_original(value):
            yield _original_row(where, key, value)
        else:
            units = [name for name in value if name in UNITS]
            unknown = sorted(value.keys() - {"runs", *_SPREADS, *UNITS})
            if len(units) != 1 or unknown:
                wanted = "one of ms, s, us, and perhaps p10, p90, std, runs"
                problems.append(f"{where}: it has {shown(', '.join(value))}; wanted {wanted}")
                continue
            spreads = {name: value[name] for name in _SPREADS if name in value}
            yield Row(where, key, value[units[0]], spreads, value.get("runs"), units[0])
