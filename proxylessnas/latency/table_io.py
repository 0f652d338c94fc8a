"""A latency table's file: JSON, schema version 1, units stated, every problem reported at once.

    {"format": "proxylessnas latency table", "version": 1, "unit": "ms", "statistic": "median", "date": ...,
     "conditions": {...}, "space": {...} or null, "offset_ms": 0.0, "correction": {...}, "method": {...},
     "validation": {...} or null, "source": ... or null,
     "entries": [{"key": "k3e6 in=24x56x56 out=40 stride=2", "ms": 1.02, "runs": 60, "how": "fitted"}, ...]}

Nothing in a file is ever executed, opened or taken for granted: a unit that is missing or is not
milliseconds is an error, as are NaN, infinity, a time that is not positive, and the same key twice.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.op_key import OpKey
from ..arch.space import SearchSpace
from ..errors import ArchError, LatencyError
from ..runtimes.settings import Conditions
from ..utils.checks import Fields, check_keys, is_int, is_number, is_text, show
from ..utils.files import decode, read_bytes
from .entries import (
    HOW,
    LONGEST_MS,
    STATISTICS,
    UNKNOWN,
    Correction,
    Entry,
    ForeignConditions,
    is_date,
    is_ms,
    raise_problems,
)

if TYPE_CHECKING:
    from .table import LatencyTable

FORMAT = "proxylessnas latency table"
VERSION = 1
MAX_BYTES = 64 << 20
MAX_ENTRIES = 200_000

_ENTRY_OPTIONAL = frozenset({"p10_ms", "p90_ms", "std_ms", "runs"})
_FIELDS = frozenset(
    "format version unit statistic date conditions space offset_ms correction method validation source "
    "entries".split()
)


def table_to_dict(table: LatencyTable) -> dict[str, Any]:
    """Return a table as JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "unit": "ms",
        "statistic": table.statistic,
        "date": table.date,
        "source": table.source,
        "conditions": conditions_to_dict(table.conditions),
        "space": None if table.space is None else table.space.to_dict(),
        "offset_ms": table.offset_ms,
        "correction": dataclasses.asdict(table.correction),
        "method": dict(table.method),
        "validation": None if table.validation is None else dict(table.validation),
        "entries": [{"key": str(key), **entry.to_dict()} for key, entry in table.entries.items()],
    }


def table_to_text(table: LatencyTable) -> str:
    """Return a table's file: JSON with a line for each field and each entry."""
    data = table_to_dict(table)
    entries = data.pop("entries")
    lines = [f"  {json.dumps(name)}: {_dump(value)}," for name, value in data.items()]
    rows = ",\n".join(f"    {_dump(entry)}" for entry in entries)
    return "{\n" + "\n".join(lines) + '\n  "entries": [\n' + rows + "\n  ]\n}\n"


def conditions_to_dict(conditions: Conditions) -> dict[str, Any]:
    """Return conditions as JSON values; those of another program are marked by ``"foreign": true``."""
    data = dataclasses.asdict(conditions)
    data["versions"] = dict(conditions.versions)
    return {**data, "foreign": True} if isinstance(conditions, ForeignConditions) else data


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a sensible size.

    Raises:
        LatencyError: it cannot be read, is too large, is no JSON, or names a key of an object twice.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except LatencyError as e:
        raise LatencyError(f"{path}: {e}") from e
    except RecursionError as e:
        raise LatencyError(f"{path} is nested too deeply") from e
    except ValueError as e:
        raise LatencyError(f"{path} is not valid JSON: {e}") from e


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file of a sensible size.

    Raises:
        LatencyError: it cannot be read, or is too large or no text.
    """
    try:
        return decode(read_bytes(path, MAX_BYTES))
    except OSError as e:
        if e.errno == errno.EFBIG:
            raise LatencyError(
                f"{path} is larger than {MAX_BYTES >> 20} MiB, which no latency table is"
            ) from e
        raise LatencyError(f"cannot read {path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise LatencyError(f"{path} is not UTF-8 text: {e}") from e


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key given twice; the json module would silently keep the last."""
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise LatencyError(f"the key {show(key)} is given twice")
        out[key] = value
    return out


def check_format(data: Any, where: object, kind: str, version: int, hint: str = "") -> dict[str, Any]:
    """Return the object that a file of this package holds, after checking its format and schema version.

    Args:
        data: any JSON value.
        where: the file, for messages.
        kind: the format that is wanted.
        version: of the schema, the latest that is known.
        hint: what else to do with a file of another format.

    Raises:
        LatencyError: it is of another format, or of a later version.
    """
    if not isinstance(data, dict) or data.get("format") != kind:
        name = kind.removeprefix("proxylessnas ")
        raise LatencyError(f'{where} is no {name} of this package (its "format" is not {kind!r}){hint}')
    found = data.get("version")
    if not is_int(found, 1, 10**6):
        raise LatencyError(f"{where}: version is {show(found)}; wanted a whole number")
    if data["version"] > version:
        raise LatencyError(
            f"{where} was written by a newer version of this package (schema version {found}, this one "
            f"reads up to {version}): pip install --upgrade proxylessnas"
        )
    return data


def parse_table(data: Any, where: str) -> dict[str, Any]:
    """Check decoded JSON and return the arguments of :class:`~.table.LatencyTable`.

    Args:
        data: any JSON value.
        where: the file, for messages.

    Raises:
        LatencyError: with every problem found.
    """
    hint = "; tables made elsewhere are read by `proxylessnas latency import`"
    data = check_format(data, where, FORMAT, VERSION, hint)
    problems: list[str] = []
    check_keys(problems, "the table", data, required=_FIELDS, optional=frozenset())
    fields = Fields(problems, "the table", data)
    fields.take("unit", lambda v: v == "ms", '"ms" (`proxylessnas latency import` converts other units)')
    found: dict[str, Any] = {
        "statistic": fields.take("statistic", lambda v: v in STATISTICS, " or ".join(STATISTICS)),
        "date": fields.take("date", lambda v: is_date(v) or v == UNKNOWN, "a day such as 2026-11-21"),
        "source": fields.take(
            "source", lambda v: v is None or is_text(v, 2000), "a text of one line, or null"
        ),
        "offset_ms": fields.take("offset_ms", lambda v: is_number(v, -LONGEST_MS, LONGEST_MS), "a number"),
        "method": fields.take("method", lambda v: isinstance(v, dict), "an object"),
        "validation": fields.take(
            "validation", lambda v: v is None or isinstance(v, dict), "an object or null"
        ),
        "conditions": read_conditions(problems, data.get("conditions")),
        "correction": _correction(problems, data.get("correction")),
        "space": _space(problems, data.get("space")),
        "entries": _entries(problems, data.get("entries")),
    }
    for name in ("method", "validation"):
        if not _is_finite(found[name]):
            problems.append(f"the table: {name} holds NaN, infinity, or is nested too deeply")
    raise_problems(problems, where)
    return found


def _is_finite(value: object, depth: int = 0) -> bool:
    """Tell whether no number in a JSON value is NaN or infinite."""
    if depth > 50:
        return False
    if isinstance(value, dict):
        return all(_is_finite(v, depth + 1) for v in value.values())
    if isinstance(value, list):
        return all(_is_finite(v, depth + 1) for v in value)
    return not isinstance(value, float) or value - value == 0


def read_conditions(problems: list[str], data: Any) -> Conditions | None:
    """Return conditions from JSON values; None after noting what is wrong with them."""
    if not isinstance(data, dict):
        problems.append(f"the table: conditions is {show(data)}; wanted an object")
        return None
    names = {f.name for f in dataclasses.fields(Conditions)}
    before = len(problems)
    check_keys(problems, "conditions", data, required=names, optional={"foreign"})
    versions = data.get("versions")
    if "versions" in data and not (
        isinstance(versions, dict) and all(is_text(v, 200) for v in (*versions, *versions.values()))
    ):
        problems.append(f"conditions: versions is {show(versions)}; wanted names and texts")
    if not isinstance(data.get("foreign", False), bool):
        problems.append(f"conditions: foreign is {show(data['foreign'])}; wanted true or false")
    if not isinstance(data.get("cuda_graph", False), bool):
        problems.append(f"conditions: cuda_graph is {show(data['cuda_graph'])}; wanted true or false")
    for name in ("device_name", "allocator", "system"):
        if name in data and not is_text(data[name], 300):
            problems.append(f"conditions: {name} is {show(data[name])}; wanted a short text")
    if len(problems) > before:
        return None
    kind = ForeignConditions if data.get("foreign") else Conditions
    try:
        return kind(**{name: data[name] for name in names})
    except (LatencyError, TypeError) as e:  # TypeError: a list where a text should be
        problems.append(f"conditions: {e}")
        return None


def _correction(problems: list[str], data: Any) -> Correction | None:
    if not isinstance(data, dict):
        problems.append(f"the table: correction is {show(data)}; wanted an object")
        return None
    check_keys(problems, "correction", data, required={"scale", "offset_ms"}, optional=frozenset())
    fields = Fields(problems, "correction", data)
    scale = fields.take("scale", lambda v: is_number(v, 1e-6, 1e6), "a positive number")
    offset = fields.take("offset_ms", lambda v: is_number(v, -LONGEST_MS, LONGEST_MS), "a number")
    return None if scale is None or offset is None else Correction(float(scale), float(offset))


def _space(problems: list[str], data: Any) -> SearchSpace | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        problems.append(f"the table: space is {show(data)}; wanted an object or null")
        return None
    try:
        return SearchSpace.from_dict(data)
    except ArchError as e:
        problems.append(f"space: {e}")
        return None


def _entries(problems: list[str], data: Any) -> dict[OpKey, Entry]:
    found: dict[OpKey, Entry] = {}
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_ENTRIES:
        problems.append(f"the table: entries is {show(data)}; wanted a list of 1 to {MAX_ENTRIES:,} objects")
        return found
    for number, item in enumerate(data, 1):
        where = f"entry {number}"
        if not isinstance(item, dict):
            problems.append(f"{where} is {show(item)}; wanted an object")
            continue
        before = len(problems)
        check_keys(problems, where, item, required={"key", "ms", "how"}, optional=_ENTRY_OPTIONAL)
        fields = Fields(problems, where, item)
        text = fields.take("key", lambda v: is_text(v, 300), "the text of a key")
        fields.take("ms", is_ms, "a positive number of milliseconds")
        fields.take("how", lambda v: v in HOW, " or ".join(HOW))
        for name in ("p10_ms", "p90_ms", "std_ms"):
            fields.take(name, lambda v: is_number(v, 0, LONGEST_MS), "a number of milliseconds")
        fields.take("runs", lambda v: is_int(v, 1, 10**12), "a whole number")
        try:
            key = OpKey.parse(text) if text is not None else None
        except LatencyError as e:
            problems.append(f"{where}: {e}")
            continue
        if key is None or len(problems) > before:
            continue
        if key in found:
            problems.append(f"{where}: {key} is given twice")
            continue
        found[key] = Entry(**{name: value for name, value in item.items() if name != "key"})
    return found
