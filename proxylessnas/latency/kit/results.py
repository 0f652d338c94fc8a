"""Read what a latency kit measured on another device, and make a latency table of it."""

from __future__ import annotations

import dataclasses
import hashlib
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
from ...runtimes.registry import runtimes
from ...runtimes.settings import Conditions
from ...utils.checks import Fields, check_keys, is_hex, is_int, is_number, is_text, show
from ...utils.files import read_bytes
from ..entries import ForeignConditions, is_date, is_ms, raise_problems
from ..fit import fitted_table
from ..measurement import Samples, pool, quantile
from ..metrics import evaluate
from ..table import Entry, LatencyTable
from ..table_io import check_format, read_json
from ..validate import DISTURBED, FITTED_ON, OWN_NAME, compared, of_conditions

KIT_FORMAT, KIT_VERSION = "proxylessnas latency kit", 1
RESULTS_FORMAT, RESULTS_VERSION = "proxylessnas latency results", 1
MAX_ITEMS = 100_000
MAX_RUNS = 1_000_000
_CPU = "CPUExecutionProvider"

_MANIFEST = frozenset("format version date made_by space batch_size dtype programs items".split())
_RESULTS = frozenset(
    "format version unit kit_sha256 runtime provider threads batch_size dtype device_name system versions "
    "rounds seconds min_runs date items".split()
)
_LATER = frozenset({"own_name"})  # what the first runners did not write


def kit_runtimes() -> dict[str, Runtime]:
    """Return the runtimes that a kit can have files for, by the name of these files, the usual one first."""
    found = [runtime for runtime in runtimes().values() if runtime.kit_format]
    return {r.kit_format: r for r in sorted(found, key=lambda r: r.kit_format != "onnx")}


@dataclass(frozen=True)
class KitNoise:
    """What disturbed a kit's measurement.

    Attributes:
        measurements: to all files together.
        disturbed: how many of them were, by other programs or by what made the runs unsteady.
        nets: whole models of which every visit was.
        load_known: whether the system told for most visits what other programs used.
        most: the reason of the most disturbed visit, in words; empty if there is none.
    """

    measurements: int = 0
    disturbed: int = 0
    nets: int = 0
    load_known: bool = False
    most: str = ""


@dataclass(frozen=True)
class KitResults:
    """What a kit measured.

    Attributes:
        space: the search space of the kit.
        ops_ms: the runs of every operation of the space, without those of disturbed visits where there are
            others.
        nets: ``(picks, median ms)`` of the whole models, likewise; ``space.arch(picks)`` is the model.
        conditions: the device and how it measured; those of a provider other than the CPU's are
            :class:`~proxylessnas.latency.entries.ForeignConditions`.
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
    space, items, batch_size = _read_manifest(manifest)
    data = check_format(read_json(path), path, RESULTS_FORMAT, RESULTS_VERSION)
    problems: list[str] = []
    check_keys(problems, "the results", data, required=_RESULTS, optional=_LATER)
    fields = Fields(problems, "the results", data)
    fields.take("unit", lambda v: v == "ms", '"ms"')
    fields.take("batch_size", lambda v: v == batch_size, f"{batch_size}, that of the kit")
    digest = hashlib.sha256(read_bytes(manifest)).hexdigest()
    fields.take(
        "kit_sha256", lambda v: v == digest, f"that of {manifest}: these are the results of another kit"
    )
    date = fields.take("date", is_date, "a day such as 2026-11-21")
    conditions = _conditions(problems, fields)
    own_name = fields.take("own_name", lambda v: is_text(v, 300), "a short text") or ""
    measurements = _visits(problems, fields, items)
    raise_problems(problems, str(path))
    samples = {name: _undisturbed(of_item) for name, of_item in measurements.items()}
    ops = {OpKey.parse(item["key"]): samples[item["id"]] for item in items if "key" in item}
    nets = [(tuple(item["picks"]), samples[item["id"]].median_ms) for item in items if "picks" in item]
    noise = _noise(measurements, [item["id"] for item in items if "picks" in item])
    return KitResults(space, ops, nets, conditions, date, noise, own_name)


def _read_manifest(path: Path) -> tuple[SearchSpace, list[dict[str, Any]], int]:
    """Return the kit's space, its items and the batch size."""
    data = check_format(read_json(path), path, KIT_FORMAT, KIT_VERSION)
    problems: list[str] = []
    check_keys(problems, "the kit", data, required=_MANIFEST, optional=frozenset())
    fields = Fields(problems, "the kit", data)
    batch_size = fields.take("batch_size", lambda v: is_int(v, 1, 65_536), "a whole number")
    fields.take("dtype", lambda v: v == "float32", '"float32"')
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
    return space, items, batch_size


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
    names = [runtime.name for runtime in kit_runtimes().values()]
    runtime = fields.take("runtime", lambda v: v in names, " or ".join(names))
    provider = fields.take(
        "provider", lambda v: v == "" or is_text(v, 100), "the name of a provider, or empty"
    )
    threads = fields.take("threads", lambda v: is_int(v, 1, 1024), "a whole number from 1 to 1024")
    fields.take("dtype", lambda v: v == "float32", '"float32"')
    name = fields.take("device_name", lambda v: is_text(v, 300), "a short text")
    system = fields.take("system", lambda v: is_text(v, 300), "a short text")
    versions = fields.take(
        "versions",
        lambda v: isinstance(v, dict) and len(v) <= 20 and all(is_text(t, 200) for t in (*v, *v.values())),
        "names and texts",
    )
    fields.take("kit_sha256", lambda v: is_hex(v, 64), "64 hexadecimal digits")
    if problems:
        return None
    common: dict[str, Any] = {
        "threads": threads, "batch_size": fields.data["batch_size"], "memory_format": "contiguous",
        "device_name": name, "allocator": "unknown", "versions": versions, "system": system,
    }  # fmt: skip
    if provider in ("", _CPU):
        return Conditions(runtime=runtime, **common)
    # Such as a phone's neural processor: nothing that this package could measure on itself.
    return ForeignConditions(runtime=f"{runtime} ({provider})", **{**common, "memory_format": "unknown"})


@dataclass(frozen=True)
class _Measurement:
    """The runs of one visit to a file, and what disturbed them."""

    samples: Samples
    noise: tuple[str, ...]


def _visits(
    problems: list[str], fields: Fields, items: list[dict[str, Any]]
) -> dict[str, list[_Measurement]]:
    """Return the visits to each item."""
    rows = fields.take("items", lambda v: isinstance(v, list) and len(v) <= MAX_ITEMS, "a list") or []
    wanted = {item["id"] for item in items}
    found: dict[str, list[_Measurement]] = {}
    for i, row in enumerate(rows):
        where = f"items[{i}]"
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(name, str) or name not in wanted or name in found:
            problems.append(f"{where}: id is {show(name)}; wanted one of the kit's, each once")
            continue
        runs, warmup = _runs(row.get("ms")), row.get("warmup_runs")
        if runs is None or not is_int(warmup, 0, MAX_RUNS):
            problems.append(
                f"{where} ({name}): wanted lists of times in ms above 0 and a number of warm-up runs"
            )
            continue
        loads = row.get("other_load", [None] * len(runs))
        if not _each(loads, len(runs), lambda v: v is None or is_number(v, 0, 1)):
            problems.append(f"{where} ({name}): other_load is {show(loads)}; wanted a share for each visit")
            continue
        warmups = [warmup] + [0] * (len(runs) - 1)
        measurements = [
            Samples(ms, before, True, load) for ms, before, load in zip(runs, warmups, loads, strict=True)
        ]
        # What the first runners did not write is told by the runs themselves, but for others' load.
        noise = row.get("noise", [list(measurement.noise) for measurement in measurements])
        if not _each(noise, len(runs), lambda v: isinstance(v, list) and all(is_text(t, 300) for t in v)):
            problems.append(f"{where} ({name}): noise is {show(noise)}; wanted reasons for each visit")
            continue
        found[name] = [
            _Measurement(measurement, tuple(why))
            for measurement, why in zip(measurements, noise, strict=True)
        ]
        median = statistics.median(ms for measurement in runs for ms in measurement)
        if row.get("median_ms") is None or not _close(row["median_ms"], median):
            problems.append(f"{where} ({name}): median_ms is not the median of its runs")
    missing = [item for item in items if item["id"] not in found]
    if not problems:
        problems += [f"{item['id']} ({item.get('key', 'a model')}) was not measured" for item in missing]
    return found


def _undisturbed(measurements: list[_Measurement]) -> Samples:
    """Return the runs of undisturbed visits in one row; of all, if there is none."""
    used = [measurement.samples for measurement in measurements if not measurement.noise] or [
        measurement.samples for measurement in measurements
    ]
    return pool(used)


def _noise(measurements: dict[str, list[_Measurement]], nets: list[str]) -> KitNoise:
    every = [measurement for of_item in measurements.values() for measurement in of_item]
    noisy = [measurement for measurement in every if measurement.noise]
    noisy.sort(key=lambda measurement: (measurement.samples.other_load or 0.0, measurement.samples.spread))
    return KitNoise(
        measurements=len(every),
        disturbed=len(noisy),
        nets=sum(all(measurement.noise for measurement in measurements[name]) for name in nets),
        load_known=2 * sum(measurement.samples.other_load is not None for measurement in every) > len(every),
        most="; ".join(noisy[-1].noise) if noisy else "",
    )


def _runs(measurements: Any) -> list[tuple[float, ...]] | None:
    """Return the times of each visit; None if they are malformed."""
    if not isinstance(measurements, list) or not all(isinstance(v, list) and v for v in measurements):
        return None
    count = sum(map(len, measurements))
    fine = 0 < count <= MAX_RUNS and all(
        is_ms(value) for measurement in measurements for value in measurement
    )
    return [tuple(map(float, measurement)) for measurement in measurements] if fine else None


def _each(values: Any, count: int, ok: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(ok, values))


def _close(a: Any, b: float) -> bool:
    return is_ms(a) and abs(a - b) <= 1e-6 * b + 1e-9


#: Models from which on entries are fitted to them, and from which on the fit is judged.
LEAST_TO_FIT, LEAST_TO_JUDGE = 8, 16
_PARTS = 8
_OWN_TIMES = "each operation alone, by a kit"

Picks = tuple[int, ...]


def kit_table(results: KitResults) -> LatencyTable:
    """Fit a table to a kit's operations and whole models, and judge it on the same models, an eighth at a
    time.

    The models are split into eight parts; those of each part are predicted by a table that was fitted to the
    other seven, so the validation is of models that the fit did not see. The table itself is fitted to all.

    Disturbed visits count only where a file has no others; the method and the validation say how many there
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
    if len(nets) < LEAST_TO_JUDGE:
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
