"""``proxylessnas bench``: models side by side on this machine."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from ..utils.progress import Steps
from ._arguments import MODEL_HELP, add_imports, add_quiet, check_output, written
from ._command import Command, UsageError
from ._options import add, add_options, settings_from
from ._output import bold, millions, ms, note, print_json, printable, rate, table

if TYPE_CHECKING:
    from ..latency.benchmark import Bench, BenchRow
    from ..latency.settings import BenchSettings


_NOTES = 3  # lines whose noise is told one by one


class BenchModels(Command):
    """Compare models on this device: latency, size and accuracy.

    Measure models under every combination of runtimes, threads, batches and dtypes, in one interleaved run:
    each round gives everything one short window, in random order, and the figure to compare is undisturbed:
    the 2 % quantile of the calls. Several dtypes, such as float32,int8, are also shown side by side. Next to
    ImageNet models, torchvision's mobilenet_v2, mobilenet_v3_large and efficientnet_b0 are measured, and
    where timm is installed its mobilenetv3_large_100, efficientnet_lite0 and mnasnet_100. Without MODEL, the
    authors' four models.
    """

    name = "bench"
    order = 76
    example = """\
  $ proxylessnas bench proxyless_cpu timm/mnasnet_100 --threads 1,2 --png bench.png
  torch, 1 thread, batch 1
  model                           ms  median    p90  images/s  params   MACs  top-1
  proxyless_cpu                15.22   15.42  15.91        66  4.36 M  439 M   75.3
  timm/mnasnet_100             12.66   12.80  13.22        79  4.38 M  314 M   74.7
  torchvision/mobilenet_v2     12.60   12.77  13.04        79  3.50 M  301 M   72.2
  ...
"""
    rest = "models"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..latency.settings import BenchSettings

        add(
            parser,
            "models MODEL",
            f"{MODEL_HELP}; torchvision/NAME or timm/NAME, if installed; an exported file",
            nargs="*",
        )
        add(parser, "--no-peers", "none of torchvision's and timm's models but those named")
        names = {"runtimes": "--runtime", "batches": "--batch"}
        add_options(parser, BenchSettings, without=("seed", "imports"), names=names)
        add_imports(parser)
        group = parser.add_argument_group("results")
        add(group, "--csv FILE", "write everything as a table, with the machine")
        add(group, "--png FILE", "draw accuracy against latency; bars of latency if no accuracy is known")
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency.settings import BenchSettings

        settings = settings_from(args, BenchSettings)
        for option in ("csv", "png"):
            if getattr(args, option) is not None:
                check_output(getattr(args, option), f"--{option}", f".{option}")
        if args.png is not None:
            _check_panels(settings)
        from ..latency.benchmark import PEERS, SPECIALISED, bench

        with Steps(args.quiet, "bench") as steps:
            peers = () if args.no_peers else PEERS
            result = bench(args.models or SPECIALISED, settings, peers=peers, progress=steps)
        if args.json:
            rows = [row.to_dict() for row in result.rows]
            print_json({"rows": rows, "notes": list(result.notes), "rounds": result.rounds})
        else:
            _show(result)
        left_out = () if args.png is None else _left_out(result)
        for text in (*result.notes, *left_out):
            note(text)
        done = [written(args.csv, result.write_csv), written(args.png, result.write_png)]
        return 0 if all(done) else 1


def _check_panels(settings: BenchSettings) -> None:
    """Find out before anything is measured that a figure could not hold it.

    Raises:
        UsageError: there are more settings than panels.
    """
    from ..latency.plots import PANELS_UP_TO

    threads = set(settings.threads) if settings.device == "cpu" else {1}
    dtypes = set(settings.dtypes or (settings.dtype,))
    count = len(set(settings.runtimes)) * len(threads) * len(set(settings.batches)) * len(dtypes)
    if count > PANELS_UP_TO:
        raise UsageError(
            f"--png holds {PANELS_UP_TO} settings (runtimes x threads x batches x dtypes), not {count}: "
            "leave it out, or measure them in several runs"
        )


def _left_out(result: Bench) -> list[str]:
    """Return which models are not in the figure, and why."""
    from ..latency.plots import accuracy_panels

    panels = accuracy_panels(row.to_dict() for row in result.rows)
    return [f"{model} is not in the figure: {why}" for model, why in panels.left_out.items()]


def _show(result: Bench) -> None:
    groups: dict[str, list[BenchRow]] = {}
    for row in result.rows:
        groups.setdefault(row.setting, []).append(row)
    head = ("model", "ms", "median", "p90", "images/s", "params", "MACs", "top-1", "")
    lines = {setting: [_cells(row) for row in rows] for setting, rows in groups.items()}
    # All groups in one table, so that their columns are below each other.
    text = iter(
        table([head, *(cells for cells_ in lines.values() for cells in cells_)], "<>>>>>>><").splitlines()
    )
    titles = next(text)
    for i, (setting, cells) in enumerate(lines.items()):
        print(("\n" if i else "") + bold(setting))
        print(titles)
        for _ in cells:
            print(printable(next(text)))
    _show_dtypes(result)
    _explain(result)


def _show_dtypes(result: Bench) -> None:
    """Print the models of a bench of several dtypes side by side."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in result.rows:
        c = row.timing.conditions
        setting = row.setting.removesuffix(f", {c.dtype}")
        found.setdefault((setting, row.model.name), {})[c.dtype] = row.timing.undisturbed_ms
    for setting in dict.fromkeys(setting for setting, _ in found):
        models = {name: times for (of, name), times in found.items() if of == setting}
        dtypes = list(dict.fromkeys(dtype for times in models.values() for dtype in times))
        if len(dtypes) < 2:
            continue
        first, *others = dtypes
        rows = [("model", *dtypes, *(f"{first} / {other}" for other in others))]
        for name, times in models.items():
            cells = [ms(times.get(dtype, math.nan)) for dtype in dtypes]
            shares = [times.get(first, math.nan) / times.get(other, math.nan) for other in others]
            rows.append((name, *cells, *("-" if math.isnan(s) else f"{s:.2f}" for s in shares)))
        print("\n" + bold(f"{setting}: ms"))
        print(printable(table(rows, "<" + ">" * (len(rows[0]) - 1))))


def _cells(row: BenchRow) -> tuple[str, ...]:
    model, t = row.model, row.timing
    measured = "*" if row.top1 is not None and model.top1_status == "measured here" else ""
    return (
        model.name, ms(t.undisturbed_ms), ms(t.median_ms), ms(t.p90_ms),
        rate(t.images_per_second),
        *(millions(count) if count else "-" for count in (model.params, model.macs)),
        "-" if row.top1 is None else f"{row.top1:.1f}{measured}", "uncertain" if t.noisy else "",
    )  # fmt: skip


def _explain(result: Bench) -> None:
    rows = result.rows
    from ..latency.plots import DATASETS

    first = rows[0].timing
    sizes = sorted({row.timing.input_size[1] for row in rows})
    pixels = f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px, each model's own"
    print(
        f"\nms: a call of a whole batch, undisturbed, of {result.rounds} interleaved rounds; median, p90: as "
        f"it is now\ninput: {pixels}"
    )
    if any(row.model.top1 is not None for row in rows):
        print("top-1: accuracy in percent as published, not re-measured" + _star(rows))
    for name, dataset in {row.model.name: row.model.dataset for row in rows}.items():
        if dataset not in (None, "imagenet"):
            print(printable(f"top-1 of {name}: on {DATASETS.get(str(dataset), dataset)}, not on ImageNet"))
    versions: dict[str, Any] = {}
    for row in rows:
        versions.update(row.timing.conditions.versions)
    c = first.conditions
    print(printable(f"{c.device_name}; memory allocator: {c.allocator}; {first.date}"))
    print(printable(", ".join(f"{name} {version}" for name, version in versions.items())))
    noisy = [row for row in rows if row.timing.noisy]
    for row in noisy[:_NOTES]:
        note(f"{row.model.name} ({row.setting}): {'; '.join(row.timing.noise)}")
    if len(noisy) > _NOTES:
        note(f"{len(noisy)} of {len(rows)} lines are uncertain; --csv and --json write all reasons")


def _star(rows: tuple[BenchRow, ...]) -> str:
    measured = any(row.model.top1_status == "measured here" for row in rows)
    return "; *: measured by this project" if measured else ""


COMMAND = BenchModels()
