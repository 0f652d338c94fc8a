"""Read what a latency kit measured on another device, and make a latency table of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...arch.op_key import OpKey, space_keys
from ...arch.space import SearchSpace
from ...errors import ArchError
from ...runtimes.base import Runtime
from ...runtimes.machine import disturbances, spread
from ...runtimes.registry import runtimes
from ...runtimes.settings import Conditions
from ...utils.checks import Fields, check_keys, is_int, is_number, is_text, show
from ...utils.files import read_bytes
from ..fit import fitted_table
from ..measurement import quantile
from ..metrics import evaluate
from ..table import Entry, LatencyTable
from ..table_io import (
    ForeignConditions,
    check_format,
    is_date,
    is_ms,
    is_short,
    is_versions,
    raise_problems,
    read_json,
)
from ..validate import DISTURBED, FITTED_ON, OWN_NAME, compared, of_conditions

KIT_FORMAT, KIT_VERSION = "proxylessnas latency kit", 1
RESULTS_FORMAT, RESULTS_VERSION = "proxylessnas latency results", 1
MAX_ITEMS = 100_000
MAX_RUNS = 1_000_000

_MANIFEST = frozenset("format version date made_by space batch_size dtype programs items".split())
_RESULTS = frozenset(
    "format version unit kit_sha256 runtime provider threads batch_size dtype device_name system versions "
    "rounds seconds min_runs date items".split()
)
_LATER = frozenset({"own_name"})  # what the first runners did not write


def kit_runtimes() -> dict[str, Runtime]:
    """Return the runtimes that a kit can have files for, by the name of these files, the usual one first."""
    found = {r.kit_loader.FILES: r for r in runtimes().values() if r.kit_loader is not None}
    return dict(sorted(found.items(), key=lambda item: item[0] != "onnx"))


@dataclass(frozen=True)
class Samples:
    """Runs of one file, of one measurement or of several.

    Attributes:
        ms: duration of each run in milliseconds, in order.
        other_load: share of all processors that other programs (and other virtual machines on the same host)
            used meanwhile, 0 to 1; None where it is not known.
        noise: reasons to distrust them, in words.
    """

    ms: tuple[float, ...]
    other_load: float | None = None
    noise: tuple[str, ...] = ()

    @property
    def median_ms(self) -> float:
        """The median run."""
        return statistics.median(self.ms)


@dataclass(frozen=True)
class KitNoise:
    """What disturbed a kit's measurement.

    Attributes:
        visits: measurements of all files together; tables hold it under this name.
        disturbed: how many of them were, by other programs or by what made the runs unsteady.
        nets: whole models of which every one was.
        load_known: whether it is known for most of them what other programs used.
        most: the reason of the most disturbed one, in words; empty if there is none.
    """

    visits: int = 0
    disturbed: int = 0
    nets: int = 0
    load_known: bool = False
    most: str = ""


@dataclass(frozen=True)
class KitResults:
    """What a kit measured.

    Attributes:
        space: the search space of the kit.
        ops_ms: the runs of every operation of the space, without disturbed measurements where there are
            others.
        nets: ``(picks, median ms)`` of the whole models, likewise; ``space.arch(picks)`` is the model.
        conditions: the device and how it measured; those of a provider other than the CPU's are
            :class:`~proxylessnas.latency.table.ForeignConditions`.
        date: ISO day on which the measurement began.
        noise: what disturbed it.
        own_name: what the device calls itself; empty if the results do not say.
    """

    space: SearchSpace
    ops_ms: dict[OpKey, Samples]
    nets: list[tuple[tuple[int, ...], float]]
    conditions: Conditions
    date: str
    noise: KitNoise = KitNoise()
    own_name: str = ""


def read_results(kit: str | os.PathLike[str], results: str | os.PathLike[str] | None = None) -> KitResults:
    """Read the file that a kit's ``run.py`` wrote.

    Args:
        kit: the kit's folder, or its ``manifest.json``.
        results: the results file; None takes ``results.json`` in the kit's folder.

    Raises:
        LatencyError: a file cannot be read or is malformed, the results are those of another kit, or
            something was not measured; all problems are listed.
        ArchError: the kit's space has operations that are not registered here.
    """
    manifest = Path(kit)
    if manifest.is_dir():
        manifest = manifest / "manifest.json"
    path = Path(results) if results is not None else manifest.with_name("results.json")
    space, items, head = _read_manifest(manifest)
    data = check_format(read_json(path), path, RESULTS_FORMAT, RESULTS_VERSION)
    problems: list[str] = []
    check_keys(problems, "the results", data, required=_RESULTS, optional=_LATER)
    fields = Fields(problems, "the results", data)
    fields.take("unit", lambda v: v == "ms", '"ms"')
    for name, value in head.items():
        fields.take(name, functools.partial(operator.eq, value), f"{value}, that of the kit")
    digest = hashlib.sha256(read_bytes(manifest)).hexdigest()
    fields.take(
        "kit_sha256", lambda v: v == digest, f"that of {manifest}: these are the results of another kit"
    )
    date = fields.take("date", is_date, "a day such as 2026-11-21")
    conditions = _conditions(problems, fields)
    own_name = fields.take("own_name", is_short, "a short text") or ""
    measurements = _measurements(problems, fields, items)
    raise_problems(problems, str(path))
    samples = {name: _undisturbed(of_item) for name, of_item in measurements.items()}
    ops = {OpKey.parse(item["key"]): samples[item["id"]] for item in items if "key" in item}
    nets = [(tuple(item["picks"]), samples[item["id"]].median_ms) for item in items if "picks" in item]
    noise = _noise(measurements, [item["id"] for item in items if "picks" in item])
    return KitResults(space, ops, nets, conditions, date, noise, own_name)


def _read_manifest(path: Path) -> tuple[SearchSpace, list[dict[str, Any]], dict[str, Any]]:
    """Return the kit's space, its items, and the batch size and dtype of all of them."""
    data = check_format(read_json(path), path, KIT_FORMAT, KIT_VERSION)
    problems: list[str] = []
    check_keys(problems, "the kit", data, required=_MANIFEST, optional=frozenset())
    fields = Fields(problems, "the kit", data)
    batch_size = fields.take("batch_size", lambda v: is_int(v, 1, 65_536), "a whole number")
    dtype = fields.take("dtype", lambda v: v in ("float32", "int8"), '"float32" or "int8"')
    items = fields.take("items", lambda v: isinstance(v, list) and len(v) <= MAX_ITEMS, "a list") or []
    raw = fields.take("space", lambda v: isinstance(v, dict), "an object")
    raise_problems(problems, str(path))
    try:
        space = SearchSpace.from_dict(raw)
    except ArchError as e:
        raise ArchError(f"{path}: {e}") from e
    known = {str(key) for key in space_keys(space)}
    missing, seen = set(known), set()
    for i, item in enumerate(items):
        where = f"items[{i}]"
        if not isinstance(item, dict) or not is_text(item.get("id"), 100) or item["id"] in seen:
            problems.append(f"{where} has no id of its own")
            continue
        seen.add(item["id"])
        if ("key" in item) == ("picks" in item):
            problems.append(f"{where} has either a key or picks, not both")
        elif "key" in item and item["key"] not in missing:
            problems.append(
                f"{where}: key is {show(item['key'])}; wanted an operation of the space, each once"
            )
        elif "key" in item:
            missing.remove(item["key"])
        else:
            _check_choices(problems, where, item["picks"], space)
    problems += [f"no item for {key}" for key in sorted(missing)]
    raise_problems(problems, str(path))
    return space, items, {"batch_size": batch_size, "dtype": dtype}


def _check_choices(problems: list[str], where: str, choices: Any, space: SearchSpace) -> None:
    if not isinstance(choices, list):
        problems.append(f"{where}: picks is {show(choices)}; wanted a list")
        return
    try:
        space.arch(choices)
    except ArchError as e:
        problems.append(f"{where}: {e}")


def _conditions(problems: list[str], fields: Fields) -> Any:
    """Return the Conditions; whatever if there are problems."""
    loaders = {runtime.name: runtime.kit_loader for runtime in kit_runtimes().values()}
    runtime = fields.take("runtime", lambda v: v in [*loaders], " or ".join(loaders))
    provider = fields.take(
        "provider", lambda v: v == "" or is_text(v, 100), "the name of a provider, or empty"
    )
    threads = fields.take("threads", lambda v: is_int(v, 1, 1024), "a whole number from 1 to 1024")
    name = fields.take("device_name", is_short, "a short text")
    system = fields.take("system", is_short, "a short text")
    versions = fields.take("versions", lambda v: is_versions(v) and len(v) <= 20, "names and texts")
    if problems:
        return None
    common: dict[str, Any] = {
        "threads": threads, "batch_size": fields.data["batch_size"], "dtype": fields.data["dtype"],
        "memory_format": "contiguous",
        "device_name": name, "allocator": "unknown", "versions": versions, "system": system,
    }  # fmt: skip
    loader = loaders[runtime]
    assert loader is not None  # as it can be in a kit
    if provider in ("", loader.CPU):
        return Conditions(runtime=runtime, **common)
    # Such as a phone's neural processor: nothing that this package could measure on itself.
    return ForeignConditions(runtime=f"{runtime} ({provider})", **{**common, "memory_format": "unknown"})


def _measurements(
    problems: list[str], fields: Fields, items: list[dict[str, Any]]
) -> dict[str, list[Samples]]:
    """Return the measurements of each item."""
    rows = fields.take("items", lambda v: isinstance(v, list) and len(v) <= MAX_ITEMS, "a list") or []
    wanted = {item["id"] for item in items}
    found: dict[str, list[Samples]] = {}
    for i, row in enumerate(rows):
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(name, str) or name not in wanted or name in found:
            problems.append(f"items[{i}]: id is {show(name)}; wanted one of the kit's, each once")
        else:
            found[name] = _samples(Fields(problems, f"items[{i}] ({name})", row))
    missing = [item for item in items if item["id"] not in found]
    if not problems:
        problems += [f"{item['id']} ({item.get('key', 'a model')}) was not measured" for item in missing]
    return found


def _samples(row: Fields) -> list[Samples]:
    """Return the measurements of one row; none after noting what is wrong with them."""
    before = len(row.problems)
    row.data = {"ms": None, "warmup_runs": None, "median_ms": None, **row.data}
    runs = row.take("ms", _is_runs, "lists of times in ms above 0") or []
    row.take("warmup_runs", lambda v: is_int(v, 0, MAX_RUNS), "a whole number")
    if len(row.problems) > before:
        return []
    median = statistics.median(ms for of_one in runs for ms in of_one)
    if not is_ms(row.data["median_ms"]) or abs(row.data["median_ms"] - median) > 1e-6 * median + 1e-9:
        row.problems.append(f"{row.where}: median_ms is not the median of its runs")
    loads = row.take(
        "other_load",
        lambda v: _each(v, len(runs), lambda load: load is None or is_number(load, 0, 1)),
        "a share for each measurement",
    ) or [None] * len(runs)
    noise = row.take(
        "noise",
        lambda v: _each(v, len(runs), lambda why: _each(why, None, is_short)),
        "reasons for each measurement",
    )
    # What the first runners did not write is seen in the runs themselves, but for others' load.
    noise = noise or [disturbances(ms, load) for ms, load in zip(runs, loads, strict=True)]
    return [
        Samples(tuple(map(float, ms)), load, tuple(why))
        for ms, load, why in zip(runs, loads, noise, strict=True)
    ]


def _is_runs(value: Any) -> bool:
    """Tell the times of several measurements from what is malformed."""
    if not _each(value, None, lambda v: isinstance(v, list) and bool(v)):
        return False
    return 0 < sum(map(len, value)) <= MAX_RUNS and all(is_ms(ms) for of_one in value for ms in of_one)


def _each(values: Any, count: int | None, ok: Callable[[Any], bool]) -> bool:
    """Tell whether a value is a list, of ``count`` values if that is given, each of which is ``ok``."""
    return isinstance(values, list) and count in (None, len(values)) and all(map(ok, values))


def _undisturbed(found: list[Samples]) -> Samples:
    """Return the runs of undisturbed measurements in one row; of all, if there is none."""
    used = [one for one in found if not one.noise] or found
    return Samples(tuple(ms for one in used for ms in one.ms))


def _noise(found: dict[str, list[Samples]], nets: list[str]) -> KitNoise:
    every = [one for of_item in found.values() for one in of_item]
    noisy = [one for one in every if one.noise]
    noisy.sort(key=lambda one: (one.other_load or 0.0, spread(one.ms)))
    return KitNoise(
        visits=len(every),
        disturbed=len(noisy),
        nets=sum(all(one.noise for one in found[name]) for name in nets),
        load_known=2 * sum(one.other_load is not None for one in every) > len(every),
        most="; ".join(noisy[-1].noise) if noisy else "",
    )


#: Models from which on entries are fitted to them, and from which on the fit is evaluated.
LEAST_TO_FIT, LEAST_TO_EVALUATE = 8, 16
_PARTS = 8
_OWN_TIMES = "each operation alone, by a kit"

Picks = tuple[int, ...]


def kit_table(results: KitResults) -> LatencyTable:
    """Fit a table to a kit's operations and whole models, and validate it on them, an eighth at a time.

    Each eighth is predicted by a table that was fitted to the other seven; the table itself is fitted to all.
    Disturbed measurements count only where a file has no others; method and validation say how many there
    were.

    With fewer than 8 models, an entry is the operation's own time: such sums are not whole models' latencies,
    and the table stays unvalidated, as it does with fewer than 16.
    """
    space, nets = results.space, results.nets
    own = {
        key: Entry(s.median_ms, quantile(s.ms, 0.1), quantile(s.ms, 0.9), len(s.ms), "imported")
        for key, s in results.ops_ms.items()
    }
    if len(nets) < LEAST_TO_FIT:
        method = {"own_times": _OWN_TIMES, "nets": 0, **_method(results)}
        return LatencyTable(results.conditions, own, space=space, method=method, date=results.date)
    table = _fitted(results, own, nets)
    if len(nets) < LEAST_TO_EVALUATE:
        return table
    pairs: list[tuple[str, float, float]] = [("", 0.0, 0.0)] * len(nets)
    for part in range(_PARTS):
        others = _fitted(results, own, [model for i, model in enumerate(nets) if i % _PARTS != part])
        choices, ms = zip(*nets[part::_PARTS], strict=True)
        pairs[part::_PARTS] = compared(others, space, choices, ms)
    found = evaluate(
        pairs,
        conditions=results.conditions.describe(),
        date=results.date,
        noisy_nets=results.noise.nets,
    )
    return table.with_validation(of_conditions(found, results.conditions, space))


def _method(results: KitResults) -> dict[str, Any]:
    """Return what disturbed the measurement and what the device calls itself, for the record."""
    return {
        DISTURBED: "left out where others were not",
        "noise": dataclasses.asdict(results.noise),
        **({OWN_NAME: results.own_name} if results.own_name else {}),
    }


def _fitted(
    results: KitResults, own: dict[OpKey, Entry], nets: Sequence[tuple[Picks, float]]
) -> LatencyTable:
    """Return a table that is fitted to some of the kit's models."""
    method = {
        "own_times": _OWN_TIMES,
        "nets": len(nets),
        FITTED_ON: [list(choices) for choices, _ in nets],
        **_method(results),
    }
    return fitted_table(results.conditions, results.space, own, nets, method, date=results.date)
