"""What a latency table holds besides its methods, and its file.

The file is JSON, schema version 1, units stated, every problem reported at once:

    {"format": "proxylessnas latency table", "version": 1, "unit": "ms", "statistic": "median", "date": ...,
     "conditions": {...}, "space": {...} or null, "offset_ms": 0.0, "correction": {...}, "method": {...},
     "validation": {...} or null, "source": ... or null,
     "entries": [{"key": "k3e6 in=24x56x56 out=40 stride=2", "ms": 1.02, "runs": 60, "how": "fitted"}, ...]}

Nothing in a file is ever executed, opened or taken for granted: a unit that is missing or is not
milliseconds is an error, as are NaN, infinity, a time that is not positive, and the same key twice.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arch.op_key import OpKey
from ..arch.space import SearchSpace
from ..errors import ArchError, LatencyError, shown
from ..runtimes.settings import Conditions, Settings
from ..utils.checks import Fields, check_keys, is_int, is_number, is_text, show
from ..utils.files import decode, read_bytes

if TYPE_CHECKING:
    from .table import LatencyTable

FORMAT = "proxylessnas latency table"
VERSION = 1
MAX_BYTES = 64 << 20
MAX_ENTRIES = 200_000
HOW = ("measured", "fitted", "predicted", "imported")
UNKNOWN = "unknown"
STATISTICS = ("undisturbed", "median", "mean", UNKNOWN)
LONGEST_MS = 1e9  # eleven days: whatever takes longer is not a latency

_MAX_PROBLEMS = 50
_FIELDS = frozenset(
    "format version unit statistic date conditions space offset_ms correction method validation source "
    "entries".split()
)


@dataclass(frozen=True)
class Entry:
    """What one operation costs.

    Attributes:
        ms: milliseconds that it adds to the latency of a model, one forward pass of the whole batch.
        p10_ms, p90_ms, std_ms: spread of the single runs, if known.
        runs: timed runs, or models that the figure was taken from; None if unknown.
        how: "measured" (the operation's own time), "fitted" (so that sums are the latencies of whole models),
            "predicted" (by a regression; never measured) or "imported" (measured by another program).
    """

    ms: float
    p10_ms: float | None = None
    p90_ms: float | None = None
    runs: int | None = None
    how: str = "measured"
    std_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without what is unknown."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Correction:
    """A line through the predictions: ``scale * prediction + offset_ms``; by default it changes nothing."""

    scale: float = 1.0
    offset_ms: float = 0.0


@dataclass(frozen=True)
class Breakdown:
    """Where a predicted latency comes from.

    Attributes:
        total_ms: the prediction; the sum of the parts and the offset.
        parts: (key, ms, how) of each operation in order of execution; skipped blocks cost nothing and are
            left out.
        offset_ms: what belongs to no operation.
        predicted: how many of the parts were never measured but predicted by a regression.
    """

    total_ms: float
    parts: tuple[tuple[OpKey, float, str], ...]
    offset_ms: float
    predicted: int


class ForeignConditions(Conditions):
    """Conditions of a measurement by another program, whose runtime this package may not know.

    Texts are free, ``threads`` and ``batch_size`` are 0 where the source does not tell. Nothing can be
    measured under these conditions here: :attr:`settings` raises LatencyError.
    """

    @property
    def settings(self) -> Settings:
        """There are none.

        Raises:
            LatencyError: always.
        """
        raise LatencyError(
            f"these latencies were measured by another program ({self.describe()}), which cannot be run here"
        )

    def __post_init__(self) -> None:
        problems: list[str] = []
        fields = Fields(problems, "of another program", dataclasses.asdict(self))
        for name in ("runtime", "device", "dtype", "memory_format", "device_name", "allocator", "system"):
            fields.take(name, is_short, "a short text")
        fields.take("threads", lambda v: is_int(v, 0, 1024), "a whole number up to 1024, 0 if unknown")
        fields.take("batch_size", lambda v: is_int(v, 0, 65_536), "a whole number up to 65536, 0 if unknown")
        if problems:
            raise LatencyError("; ".join(problems))

    def describe(self) -> str:
        """Return what is known in one line."""
        known = [f"{self.runtime} on {self.device_name}"]
        known += [f"{self.threads} thread{'s' if self.threads > 1 else ''}"] if self.threads else []
        known += [f"batch {self.batch_size}" if self.batch_size else "batch size unknown"]
        known += [self.dtype] if self.dtype != UNKNOWN else []
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return ", ".join(known) + (f"; {versions}" if versions else "")


# ---- checks


def raise_problems(problems: list[str], where: str) -> None:
    """Raise one LatencyError with every problem, if there is any."""
    if not problems:
        return
    more = [f"... and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
    listed = problems[:_MAX_PROBLEMS] + more
    if len(listed) == 1:
        raise LatencyError(f"{where}: {listed[0]}")
    raise LatencyError(f"{where}: {len(problems)} problems\n  " + "\n  ".join(listed))


def is_date(value: object) -> bool:
    """Tell whether a value is an ISO day."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return False
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


def is_ms(value: object) -> bool:
    """Tell whether a value is a possible latency in milliseconds; 0 is none."""
    return is_number(value, 0, LONGEST_MS) and value != 0


def is_short(value: object) -> bool:
    """Tell whether a value is a text that names a device, a runtime and the like."""
    return is_text(value, 300)


def is_versions(value: object) -> bool:
    """Tell whether a value maps names of libraries to versions."""
    return isinstance(value, dict) and all(is_text(text, 200) for text in (*value, *value.values()))


def problems_of(table: LatencyTable) -> list[str]:
    """Return what is impossible about a table's values."""
    problems = [] if table.entries else ["a table needs at least one entry"]
    entries: Mapping[Any, Any] = table.entries  # whatever a caller may have put there
    for key, entry in entries.items():
        if not isinstance(key, OpKey) or not isinstance(entry, Entry):
            problems.append(f"entries map OpKey to Entry, not {shown(key)} to {shown(entry)}")
        elif not is_ms(entry.ms) or entry.how not in HOW:
            problems.append(f"{key}: {shown(entry.ms)} ms, {shown(entry.how)} is no latency")
    if not is_number(table.offset_ms, -LONGEST_MS, LONGEST_MS):
        problems.append(f"offset_ms is {shown(table.offset_ms)}; wanted a number")
    line = table.correction
    if not is_number(line.scale, 1e-6, 1e6) or not is_number(line.offset_ms, -LONGEST_MS, LONGEST_MS):
        problems.append(f"correction is {shown(line)}; wanted a positive scale and a number")
    if table.statistic not in STATISTICS:
        problems.append(f"statistic is {shown(table.statistic)}; known are {', '.join(STATISTICS)}")
    if not is_date(table.date) and table.date != UNKNOWN:
        problems.append(f"date is {shown(table.date)}; wanted a day such as 2026-11-21")
    return problems


# ---- writing


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
    data = {**dataclasses.asdict(conditions), "versions": dict(conditions.versions)}
    return {**data, "foreign": True} if isinstance(conditions, ForeignConditions) else data


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# ---- reading


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
    fields = _object(problems, "the table", data, _FIELDS)
    assert fields is not None
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
        try:
            _dump(found[name])
        except (TypeError, ValueError, RecursionError):
            problems.append(f"the table: {name} holds NaN, infinity, or is nested too deeply")
    raise_problems(problems, where)
    return found


def _object(
    problems: list[str], where: str, data: Any, required: set[str] | frozenset[str], *optional: str
) -> Fields | None:
    """Return the fields of an object after checking their names; None after noting that it is none."""
    if not isinstance(data, dict):
        problems.append(f"{where} is {show(data)}; wanted an object")
        return None
    check_keys(problems, where, data, required=required, optional=frozenset(optional))
    return Fields(problems, where, data)


def read_conditions(problems: list[str], data: Any) -> Conditions | None:
    """Return conditions from JSON values; None after noting what is wrong with them."""
    before, names = len(problems), {f.name for f in dataclasses.fields(Conditions)}
    fields = _object(problems, "conditions", data, names, "foreign")
    if fields is not None:
        fields.take("versions", is_versions, "names and texts")
        for name in ("foreign", "cuda_graph"):
            fields.take(name, lambda v: isinstance(v, bool), "true or false")
        for name in ("device_name", "allocator", "system"):
            fields.take(name, is_short, "a short text")
    if len(problems) > before:
        return None
    kind = ForeignConditions if data.get("foreign") else Conditions
    try:
        return kind(**{name: data[name] for name in names})
    except (LatencyError, TypeError) as e:  # TypeError: a list where a text should be
        problems.append(f"conditions: {e}")
        return None


def _correction(problems: list[str], data: Any) -> Correction | None:
    fields = _object(problems, "correction", data, {"scale", "offset_ms"})
    if fields is None:
        return None
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
        where, before = f"entry {number}", len(problems)
        fields = _object(problems, where, item, {"key", "ms", "how"}, "p10_ms", "p90_ms", "std_ms", "runs")
        if fields is None:
            continue
        text = fields.take("key", lambda v: is_text(v, 300), "the text of a key")
        fields.take("ms", is_ms, "a positive number of milliseconds")
        fields.take("how", lambda v: v in HOW, " or ".join(HOW))
        for name in ("p10_ms", "p90_ms", "std_ms"):
            fields.take(name, lambda v: is_number(v, 0, LONGEST_MS), "a number of milliseconds")
        fields.take("runs", lambda v: is_int(v, 1, 10**12), "a whole number")
        key = None
        try:
            key = OpKey.parse(text) if text is not None else None
        except LatencyError as e:
            problems.append(f"{where}: {e}")
        if key in found:
            problems.append(f"{where}: {key} is given twice")
        if key is not None and len(problems) == before:
            found[key] = Entry(**{name: value for name, value in item.items() if name != "key"})
    return found
