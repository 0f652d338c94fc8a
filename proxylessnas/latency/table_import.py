"""Make a latency table of figures that another program measured: a phone's, say.

Three kinds of file are read, told apart by their suffix:

* ``.yaml``: the layout of the original code's tables (``mobile_trim.yaml``), its ``mean`` in the unit given;
* ``.csv``: a line for each operation, columns ``key`` and one of ``ms``, ``s`` and ``us``, and if you like
  ``p10``, ``p90``, ``std`` (in the same unit) and ``runs``;
* ``.json``: ``{"unit": "ms", "device_name": ..., "entries": {KEY: 1.5, ...}}``, or only the inner object;
  a value is a number, or an object with the columns of a CSV file.

A key is that of a table of ours, ``k3e6 in=24x56x56 out=40 stride=2``, or that of the original code,
``expanded_conv-input:56x56x24-output:28x28x40-expand:6-kernel:3-stride:2-idskip:0``.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arch.op_key import OpKey, key_macs
from ..arch.space import SearchSpace
from ..errors import LatencyError, one_line, shown
from ..utils.checks import is_int, is_number, show
from .import_files import UNITS, ReadFile, parse_key, read_csv, read_mapping, read_yaml
from .settings import ImportSettings
from .table import Entry, ForeignConditions, LatencyTable
from .table_io import FORMAT, LONGEST_MS, MAX_ENTRIES, UNKNOWN, is_ms, raise_problems, read_json, read_text


def import_table(
    path: str | os.PathLike[str],
    settings: ImportSettings | None = None,
    *,
    space: SearchSpace | str | Path | None = None,
) -> LatencyTable:
    """Read latencies that another program measured.

    A table of this package whose unit is not milliseconds is converted; it states everything else itself.

    Figures that only a microcontroller or the fastest of GPUs could have are probably in another unit: that
    is a warning, and :func:`~proxylessnas.latency.doubts` repeats it.

    Args:
        path: a ``.yaml``, ``.csv`` or ``.json`` file.
        settings: what the file may not say itself: the unit, the device; None leaves it all to the file.
        space: the search space that the table is for: a space, its name, or a file. It may lack entries,
            see :meth:`LatencyTable.coverage`.

    Raises:
        LatencyError: the unit or the device is not known, no device has such latencies, or the file is
            malformed; all problems are listed.
    """
    path = Path(path)
    given = (settings or ImportSettings()).to_dict()
    if space is not None and not isinstance(space, SearchSpace):
        from ..arch.spaces import read_chain

        space = read_chain(space)
    file = _read(path)
    if isinstance(file, dict):
        return _convert(file, path, given, space)
    if not file.rows:
        raise_problems(file.problems, str(path))
    found = _settle(given, file, path)
    entries = _entries(file, UNITS[found["unit"]])
    raise_problems(file.problems, str(path))
    doubt = _doubt(entries, found["unit"], found["batch_size"] or 0, path)
    conditions = ForeignConditions(
        runtime=found["runtime"] or UNKNOWN,
        device=UNKNOWN,
        threads=found["threads"] or 0,
        batch_size=found["batch_size"] or 0,
        dtype=UNKNOWN,
        memory_format=UNKNOWN,
        device_name=found["device_name"],
    )
    return LatencyTable(
        conditions,
        entries,
        space,
        statistic=found["statistic"] or UNKNOWN,
        source=found["source"],
        method={"imported_from": path.name, "unit": found["unit"], **doubt},
        date=UNKNOWN,
    )


def _read(path: Path) -> ReadFile | dict[str, Any]:
    """Return what a file says; a table of this package as it is."""
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return read_yaml(read_text(path))
    if suffix == ".csv":
        return read_csv(read_text(path))
    if suffix != ".json":
        raise LatencyError(f"{path}: a file to import is .yaml, .csv or .json, not {shown(path.suffix)}")
    data = read_json(path)
    if isinstance(data, dict) and data.get("format") == FORMAT:
        return data
    return read_mapping(data, str(path))


def _settle(given: Mapping[str, Any], file: ReadFile, path: Path) -> dict[str, Any]:
    """Join what the caller says with what the file says, which must not differ."""
    units = {row.unit for row in file.rows if row.unit}
    stated = dict(file.stated)
    if len(units) > 1:
        raise LatencyError(f"{path}: the unit differs between entries: {', '.join(sorted(units))}")
    if units and stated.setdefault("unit", *units) not in units:
        raise LatencyError(
            f"{path}: the unit is {show(stated['unit'])}, but its entries are in {units.pop()}"
        )
    found = {}
    for name, value in given.items():
        there = stated.get(name)
        if value is not None and there is not None and value != there:
            raise LatencyError(f"{path}: its {name} is {show(there)}, not {shown(value)}")
        found[name] = there if value is None else value
    if found["unit"] is None:
        raise LatencyError(
            f"{path} does not say in which unit its figures are: say ms, s or us: --unit (unit= in Python)"
        )
    if found["unit"] not in UNITS:
        raise LatencyError(f"{path}: unit is {shown(found['unit'])}; known are {', '.join(UNITS)}")
    if found["device_name"] is None:
        raise LatencyError(
            f"{path} does not say on which device it was measured: name it: --device (device_name= in Python)"
        )
    return found


def _entries(file: ReadFile, factor: float) -> dict[OpKey, Entry]:
    """Check rows, noting every problem, and convert them to milliseconds."""
    entries: dict[OpKey, Entry] = {}
    if not 1 <= len(file.rows) <= MAX_ENTRIES:
        file.problems.append(f"it has {len(file.rows):,} entries; wanted 1 to {MAX_ENTRIES:,}")
        return entries
    for row in file.rows:
        try:
            key = parse_key(row.key)
        except LatencyError as e:
            file.problems.append(f"{row.where}: {e}")
            continue
        problems = []
        if key in entries:
            problems.append(f"{key} is given twice")
        if not is_number(row.value, 0, LONGEST_MS) or not is_ms(row.value * factor):
            problems.append(f"its time is {show(row.value)}; wanted a positive number")
        problems += [
            f"{name} is {show(value)}; wanted a number"
            for name, value in row.spreads.items()
            if not is_number(value, 0, LONGEST_MS)
        ]
        if row.runs is not None and not is_int(row.runs, 1, 10**12):
            problems.append(f"runs is {show(row.runs)}; wanted a whole number")
        file.problems += [f"{row.where}: {problem}" for problem in problems]
        if not problems:
            spreads = {f"{name}_ms": value * factor for name, value in row.spreads.items()}
            entries[key] = Entry(row.value * factor, runs=row.runs, how="imported", **spreads)
    return entries


def _doubt(entries: Mapping[OpKey, Entry], unit: str, batch_size: int, path: Path) -> dict[str, str]:
    """Return what a table's method says if its unit is to be doubted, after a warning."""
    doubt = doubt_about(entries, unit, batch_size, str(path))
    if doubt is None:
        return {}
    warnings.warn(f"{one_line(path)}: {doubt}", stacklevel=4)
    return {"doubt": doubt}


def _convert(
    data: dict[str, Any], path: Path, given: Mapping[str, Any], space: SearchSpace | None
) -> LatencyTable:
    """Return a table of this package whose unit may be another than milliseconds.

    Its validation, in the old unit, is left out.
    """
    unit = data.get("unit") if given["unit"] is None else given["unit"]
    if data.get("unit", unit) != unit:
        raise LatencyError(f"{path}: its unit is {show(data['unit'])}, not {shown(unit)}")
    if unit not in tuple(UNITS):
        raise LatencyError(f"{path}: unit is {shown(unit)}; known are {', '.join(UNITS)}")
    twice = [name for name, value in given.items() if value is not None and name != "unit"]
    if twice or space is not None:
        names = ", ".join(twice + (["space"] if space is not None else []))
        raise LatencyError(f"{path} is a table of this package, which states its own {names}: leave that out")
    if unit == "ms":
        return LatencyTable.from_dict(data, str(path))
    factor = UNITS[unit]
    changed = {**data, "unit": "ms", "validation": None}
    changed["offset_ms"] = _times(data.get("offset_ms"), factor)
    for name in ("entries", "correction"):
        changed[name] = _times_all(data.get(name), factor)
    table = LatencyTable.from_dict(changed, str(path))
    doubt = _doubt(table.entries, unit, table.conditions.batch_size, path)
    return dataclasses.replace(table, method={**table.method, **doubt})


def _times(value: Any, factor: float) -> Any:
    return value * factor if is_number(value, -LONGEST_MS, LONGEST_MS) else value


def _times_all(value: Any, factor: float) -> Any:
    """Scale every field of milliseconds; what is malformed stays so, and is refused later."""
    if isinstance(value, list):
        return [_times_all(item, factor) for item in value]
    if not isinstance(value, dict):
        return value
    return {k: _times(v, factor) if k == "ms" or k.endswith("_ms") else v for k, v in value.items()}


_MEDIAN_MS = (0.001, 10_000.0)  # of an operation: a launch alone takes longer; nobody waits hours for a model
#: (multiply-accumulates a second, ms an operation on top): whatever is slower is slower than any device, or
#: than all but microcontrollers. What is on top is the cost of a call, which dominates in little models.
_SLOWEST, _SLOW = (5e6, 100.0), (3e8, 3.0)
#: Multiply-accumulates a second, for one image a call and at most: a call of one image keeps no large
#: processor busy, and no processor multiplies faster with all of it busy.
_FAST, _FASTEST = 2e12, 2e14


def doubt_about(entries: Mapping[OpKey, Entry], unit: str, batch_size: int, where: str) -> str | None:
    """Return why the unit of latencies is to be doubted; None if it is not.

    Figures in another unit than they claim are off by a thousand, and phones, computers and GPUs lie within
    four or five powers of ten, so a slow device's seconds look like a very fast one's milliseconds: what is
    beyond every device is refused, what only the slowest or fastest reach is asked about.

    Args:
        entries: converted to milliseconds.
        unit: that they were given in: "ms", "s" or "us".
        batch_size: images a call; 0 if that is not known.
        where: names their source in messages.

    Raises:
        LatencyError: no device has such latencies.
    """
    middle = statistics.median(entry.ms for entry in entries.values())
    if not _MEDIAN_MS[0] <= middle <= _MEDIAN_MS[1]:
        raise LatencyError(
            f"{where}: its median operation takes {middle:.3g} ms; is the unit {unit!r} right?"
        )
    # A registered operation's work is not known.
    known = [(macs, entry.ms) for key, entry in entries.items() if (macs := key_macs(key)) is not None]
    macs = max(1, batch_size) * sum(m for m, _ in known)
    ms, count = sum(t for _, t in known), len(known)
    if not known or not macs:
        return None
    factors = {other: factor / UNITS[unit] for other, factor in UNITS.items()}
    words = {other: _word(macs, factor * ms, count, batch_size) for other, factor in factors.items()}
    word = words[unit]
    if word is None:
        return None
    others = " or ".join(other for other in UNITS if words[other] is None)
    hint = f"; in {others} they would be ordinary" if others else ""
    text = (
        f"together its operations do {macs / ms / 1e6:.2g} billion multiply-accumulates a second, which is "
        f"{word}: is the unit {unit!r} right{hint}?"
    )
    if word.startswith("beyond"):
        raise LatencyError(f"{where}: {text}")
    return text


def _word(macs: float, ms: float, count: int, batch_size: int) -> str | None:
    """Return how a device that does this work in this time compares with others; None if it is ordinary."""
    for (rate, extra_ms), word in (
        (_SLOWEST, "beyond the slowest device"),
        (_SLOW, "as slow as a microcontroller"),
    ):
        if ms > 1e3 * macs / rate + extra_ms * count:
            return word
    rate = 1e3 * macs / ms
    if rate > _FASTEST:
        return "beyond the fastest device"
    return "as fast as the very fastest devices" if rate > _FAST * max(1, batch_size) else None
