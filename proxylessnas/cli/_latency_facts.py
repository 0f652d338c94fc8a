"""What is told about a latency table, as JSON and as text."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import LatencyError
from ._latency import ms
from ._output import bar, bold, pairs, printable, table

if TYPE_CHECKING:
    from ..arch.arch import Arch
    from ..arch.space import SearchSpace
    from ..latency import LatencyTable, OpKey
    from ..latency.table import Breakdown

_GUESSED = "predicted"  # how an entry came to be, if nobody measured it
_LEGEND = "input and output: channels x px; /2: stride 2; +: with shortcut"
_COLUMNS = 8  # kinds of blocks side by side
_WIDTH = 74
_FIELDS = (  # of a validation: (name, what to write)
    ("mape_percent", "mean error {:.1f} %"),
    ("bias_percent", "bias {:+.1f} %"),
    ("kendall_tau", "Kendall tau {:.3f}"),
    ("within_5_percent", "{:.0f} % of them within 5 %"),
    ("within_10_percent", "{:.0f} % within 10 %"),
    ("ceiling_percent", "two runs of the same models differ by {:.1f} %"),
    ("ceiling_tau", "their Kendall tau {:.3f} is what this machine allows"),
)


def facts(found: LatencyTable, space: SearchSpace | None) -> dict[str, Any]:
    """Return everything about a table but its entries, as JSON values.

    Args:
        found: the table.
        space: the search space it is looked at with; None if there is none.
    """
    from ..latency import doubts

    known: dict[str, Any] = {
        "conditions": {**found.conditions.to_dict(), "versions": dict(found.conditions.versions)},
        "date": found.date,
        "source": found.source,
        "statistic": found.statistic,
        "disturbed": _disturbed(found),
        "entries": len(found.entries),
        "how": dict(_counts(found)),
        "offset_ms": found.offset_ms,
        "correction": _correction(found),
        "digest": found.digest,
        "validation": None if found.validation is None else dict(found.validation),
        "trust": doubts(found),
        "space": None if space is None else _space_facts(found, space),
    }
    return known


def _disturbed(found: LatencyTable) -> str | None:
    """Return what an entry is where the measurement was disturbed; None if the table does not say."""
    from ..latency.validate import DISTURBED

    what, nets, noise = (found.method.get(name) for name in (DISTURBED, "noisy_nets", "noise"))
    if isinstance(noise, dict) and isinstance(what, str):
        text = f"{noise.get('disturbed')} of {noise.get('visits')} visits, {what}"
        unknown = "" if noise.get("load_known") else "; what other programs used is not known"
        most = f"; at worst {noise['most']}" if noise.get("most") else ""
        return text + most + unknown
    if isinstance(nets, int):  # a table made here by an earlier version
        every = found.method.get("nets", "all")
        return f"of disturbed visits the 10 % quantile of the runs; {nets} of {every} models had no others"
    if isinstance(found.method.get("uncertainty_percent"), (int, float)):
        return (
            f"then {found.method.get('disturbance')} times as slow as undisturbed (median run over the 2 % "
            f"quantile); latencies are uncertain by {found.method['uncertainty_percent']:.2f} %"
        )
    return None


def _correction(found: LatencyTable) -> dict[str, Any]:
    """Return the line through the predictions, and whether that of the validation would help."""
    from ..latency import Validation

    known: dict[str, Any] = {
        **dataclasses.asdict(found.correction),
        "adopted": found.method.get("correction"),
        "another_would_help": None,
    }
    with contextlib.suppress(LatencyError):  # an older validation, or another program's
        evaluated = Validation.from_dict(found.validation or {})
        known["another_would_help"] = evaluated.correction_helps
        known["judged_before_percent"] = evaluated.judged_before_percent
        known["judged_after_percent"] = evaluated.judged_after_percent
    return known


def _space_facts(found: LatencyTable, space: SearchSpace) -> dict[str, Any]:
    have, need, missing = found.coverage(space)
    known: dict[str, Any] = {
        "name": space.name,
        "resolution": space.resolution,
        "num_classes": space.num_classes,
        "nets": space.count,
        "coverage": {"have": have, "need": need, "missing": [str(key) for key in missing]},
    }
    if not missing:
        for name, value, arch in zip(
            ("fastest", "slowest"), found.range_ms(space), _extremes(found, space), strict=True
        ):
            blocks = " | ".join(stage.ops for stage in arch.stages)
            known[name] = {"ms": value, "blocks": blocks, "arch": str(arch)}
    return known


def _extremes(found: LatencyTable, space: SearchSpace) -> tuple[Arch, Arch]:
    """Return the fastest and the slowest model of a space, as predicted."""
    costs = found.costs(space)[0].tolist()
    choices = [
        [
            best((i for i, allowed in enumerate(mask) if allowed), key=row.__getitem__)
            for row, mask in zip(costs, space.mask, strict=True)
        ]
        for best in (min, max)
    ]
    return space.arch(choices[0], name="fastest"), space.arch(choices[1], name="slowest")


def show(name: str, known: Mapping[str, Any], conditions: str) -> None:
    """Print facts as two columns; ``conditions`` are the table's, in words."""
    rows = [("conditions", textwrap.fill(conditions, _WIDTH))]
    if known["conditions"]["allocator"] != "unknown":
        rows.append(("allocator", known["conditions"]["allocator"]))
    rows.append(("date", known["date"]))
    if known["source"]:
        rows.append(("source", textwrap.fill(known["source"], _WIDTH)))
    how = ", ".join(f"{count} {kind}" for kind, count in known["how"].items())
    rows.append(("entries", f"{known['entries']}: {how}"))
    if known["statistic"] != "unknown":
        said = "undisturbed: the 2 % quantile" if known["statistic"] == "undisturbed" else known["statistic"]
        rows.append(("statistic", f"{said} of the runs"))
    if known["disturbed"]:
        rows.append(("disturbed", textwrap.fill(known["disturbed"], _WIDTH)))
    if abs(known["offset_ms"]) >= 0.0005:
        rows.append(("offset", f"{known['offset_ms']:.3f} ms a model, which belong to no operation"))
    if known["space"]:
        rows += _space_rows(known["space"])
    rows.append(("validated", _validation(known["validation"])))
    rows += [("correction", textwrap.fill(text, _WIDTH)) for text in _line(known["correction"])]
    print(bold(printable(name)))
    print(printable(pairs(rows, "  ")))


def _line(known: Mapping[str, Any]) -> list[str]:
    """Return what to say of a table's correction, if anything."""
    is_none = (known["scale"], known["offset_ms"]) == (1.0, 0.0)
    helps, adopted = known["another_would_help"], known["adopted"]
    if is_none and helps is None:
        return []
    text = "none"
    if not is_none:
        text = f"{known['scale']:.4g} x prediction {known['offset_ms']:+.3f} ms"
    if isinstance(adopted, dict) and not is_none:
        text += (
            f", fitted on {adopted.get('fitted_on_nets')} models; validated is the corrected table on "
            f"{adopted.get('judged_on_nets')} others"
        )
    if helps is not None:
        errors = f"{known['judged_before_percent']:.1f} to {known['judged_after_percent']:.1f} %"
        other = "one" if is_none else "another"
        text += (
            f"; {other} would help: mean error from {errors} on models it was not fitted on (`proxylessnas "
            "latency validate --adopt-correction`)"
            if helps
            else f"; {other} would not help (mean error from {errors})"
        )
    return [text]


def _space_rows(space: Mapping[str, Any]) -> list[tuple[str, str]]:
    have, need = space["coverage"]["have"], space["coverage"]["need"]
    count = f"{space['nets']:,}" if space["nets"] < 1e6 else f"{space['nets']:.1e}".replace("e+", "e")
    classes = f"{space['num_classes']} class{'es' * (space['num_classes'] != 1)}"
    rows = [("space", f"{space['name']}: {space['resolution']} px, {classes}, {count} models")]
    rows.append(("coverage", f"{have} of {need} operations ({math.floor(100 * have / need)} %)"))
    missing = space["coverage"]["missing"]
    if missing:
        more = [f"and {len(missing) - 3} more"] if len(missing) > 3 else []
        rows.append(("missing", "\n".join([*missing[:3], *more])))
    for name in ("fastest", "slowest"):
        if name in space:
            rows.append((f"{name} model", f"{ms(space[name]['ms'])} ms\n{_stages(space[name]['blocks'])}"))
    return rows


def _stages(blocks: str) -> str:
    """Return the blocks of a model in lines of whole stages."""
    together = blocks.replace(" ", "\xa0").replace("\xa0|\xa0", "\xa0| ")
    return textwrap.fill(together, _WIDTH).replace("\xa0", " ")


def _validation(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "no: it was never compared with measured models"
    nets, date = found.get("nets", "some"), found.get("date", "date unknown")
    figures = [
        text.format(found[name]) for name, text in _FIELDS if isinstance(found.get(name), (int, float))
    ]
    noisy = found.get("noisy_nets")
    if noisy:
        figures.append(f"{noisy} were disturbed while they were measured")
    head = f"on {nets} random models that it was not made from, {date}:"
    together = ", ".join(figure.replace(" ", "\xa0") for figure in figures)
    return textwrap.fill(f"{head} {together}", _WIDTH).replace("\xa0", " ")


def show_entries(found: LatencyTable) -> None:
    """Print what each operation costs: a row a place in a model, a column a kind of block."""
    keys = sorted(found.entries, key=_place)
    places: dict[tuple[Any, ...], dict[str, OpKey]] = {}
    for key in keys:
        places.setdefault(key[1:], {})[key.op] = key
    # What occurs at one place only, such as the fixed parts, gets no column of its own.
    count = Counter(key.op for key in keys)
    once = [key for key in keys if count[key.op] == 1]
    if once:
        cells = [(_name(key), _input(key), _output(key), _cell(found, key)) for key in once]
        print(table([("", "input", "output", "ms"), *cells], "<<<>"))
    ops = sorted(op for op in count if count[op] > 1)
    for first in range(0, len(ops), _COLUMNS):
        columns = ops[first : first + _COLUMNS]
        rows = [("input", "output", *columns)]
        for at_place in places.values():
            if any(op in at_place for op in columns):
                key = next(iter(at_place.values()))
                row = [_cell(found, at_place[op]) if op in at_place else "" for op in columns]
                rows.append((_input(key), _output(key) + _notes(key), *row))
        print(("\n" if once or first else "") + table(rows, "<<" + ">" * len(columns)))
    print(f"\nms; {_LEGEND}{_guess_legend(_counts(found)[_GUESSED])}")


def show_breakdown(name: str, found: Breakdown) -> None:
    """Print the operations of a model in order, with their share of its latency."""
    most = max(part for _, part, _ in found.parts)
    rows = [("", "input", "output", "ms", "share", "")]
    for key, part, how in found.parts:
        share = f"{100 * part / found.total_ms:.1f} %"
        mark = "~" * (how == _GUESSED)
        rows.append((_name(key), _input(key), _output(key), f"{mark}{part:.3f}", share, bar(part / most, 16)))
    if abs(found.offset_ms) >= 0.0005:
        share = f"{100 * found.offset_ms / found.total_ms:.1f} %"
        rows.append(("no operation", "", "", f"{found.offset_ms:.3f}", share, ""))
    rows.append(("total", "", "", f"{found.total_ms:.3f}", "", ""))
    print(bold(printable(name)))
    print(table(rows, "<<<>><"))
    print(f"\n{_LEGEND}{_guess_legend(found.predicted)}")


def _place(key: OpKey) -> tuple[int, ...]:
    """Return where in a model an operation is, for sorting."""
    part = {"stem": 0, "last": 2, "classifier": 3}.get(key.op, 1)
    return part, -key.size, key.in_channels, -key.shortcut, key.stride


def _name(key: OpKey) -> str:
    return key.op + _notes(key)


def _notes(key: OpKey) -> str:
    return " /2" * (key.stride == 2) + " +" * key.shortcut


def _input(key: OpKey) -> str:
    return f"{key.in_channels}x{key.size}"


def _output(key: OpKey) -> str:
    return str(key.out_channels) if key.op == "classifier" else f"{key.out_channels}x{key.out_size}"


def _cell(found: LatencyTable, key: OpKey) -> str:
    return "~" * (found.entries[key].how == _GUESSED) + f"{found.lookup(key):.3f}"


def _guess_legend(guessed: int) -> str:
    return "; ~: guessed, not measured" if guessed else ""


def _counts(found: LatencyTable) -> Counter[str]:
    return Counter(entry.how for entry in found.entries.values())
