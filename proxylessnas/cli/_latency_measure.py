"""``proxylessnas latency measure``: how long do these models take here?"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from ..utils.checks import Range
from ..utils.progress import Steps
from ._arguments import MODEL_HELP, MOST_PIXELS, add_imports, add_int8, add_quiet
from ._command import Command
from ._options import add, add_options, settings_from, typed, whole
from ._output import ms, note, plural, print_json, print_table, printable, rate

if TYPE_CHECKING:
    from ..latency import Settings, Timing


class Measure(Command):
    """Measure models on this device.

    Measure the latency of models on this device, each in a process of its own: undisturbed, which is the 2 %
    quantile over the calls of many short windows, and as it is now (median, p10, p90). Their weights are
    random, which makes no difference. To compare models with each other, `proxylessnas bench` is fairer: it
    interleaves them.
    """

    name = "measure"
    example = """\
  $ proxylessnas latency measure proxyless_cpu proxyless_mobile --threads 2
  model             undisturbed  median   p10   p90  disturbance  runs  images/s
  proxyless_cpu            9.26    9.41  9.30  9.77         1.02    84       108
  proxyless_mobile         8.41    8.52  8.44  8.90         1.01    93       119

  milliseconds a call of 1 image; undisturbed: to compare by; median, p10, p90: as it is now
"""
    rest = "models"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ..runtimes.settings import Settings

        add(parser, "models MODEL", f"{MODEL_HELP}, or an exported file", nargs="+")
        add(parser, "--image-size N", "side of the input, px", type=whole(1, MOST_PIXELS))
        add(
            parser,
            "--seconds S",
            "measure so long, at least (default: 1)",
            type=typed(float, Range(0, 3600, open_low=True)),
            default=1.0,
        )
        add_options(parser, Settings, names={"batch_size": "--batch"})
        add_int8(parser)
        add_imports(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..latency import Settings

        settings = settings_from(args, Settings)
        words = list(dict.fromkeys(args.models))
        timings: dict[str, Timing] = {}
        with Steps(args.quiet, "measuring") as steps:
            for i, word in enumerate(words):
                steps(i, len(words), word)
                timings[word] = _measure(word, args, settings)
        if args.json:
            print_json({"nets": [_facts(word, timing) for word, timing in timings.items()]})
            return 0
        rows = [("model", "undisturbed", "median", "p10", "p90", "disturbance", "runs", "images/s")]
        for word, t in timings.items():
            now = (ms(t.median_ms), ms(t.p10_ms), ms(t.p90_ms), f"{t.disturbance:.2f}")
            rows.append((word, ms(t.undisturbed_ms), *now, f"{t.runs:,}", rate(t.images_per_second)))
        print_table(rows, "<>>>>>>>")
        conditions = next(iter(timings.values())).conditions
        of = plural(args.batch_size, "image")
        print(f"\nmilliseconds a call of {of}; undisturbed: to compare by; median, p10, p90: as it is now")
        print(printable(f"{conditions.describe()}; memory allocator: {conditions.allocator}"))
        for word, t in timings.items():
            if t.noisy:
                note(f"{word}: {'; '.join(t.noise)}")
        return 0


def _measure(word: str, args: argparse.Namespace, asked: Settings) -> Timing:
    from ..latency import MeasureSettings, measure
    from ..models.resolve import resolve
    from ..runtimes.files import file_runtimes

    model: Any = word
    size: Any = args.image_size
    if args.imports:  # the measuring process does not know these operations, but can unpickle them
        from ..models.factory import create_model

        arch = resolve(word).arch
        model, side = create_model(arch), size or arch.resolution or 224
        size = (arch.in_channels, side, side)
    own = asked.runtime == "torch" and file_runtimes(word)  # the default option: the file's own runtime
    limit = max(20.0, 4 * args.seconds)
    return measure(
        model, batch_size=asked.batch_size, device=asked.device, threads=asked.threads,
        runtime=None if own else asked.runtime, input_size=size,
        settings=settings_from(args, MeasureSettings, min_seconds=args.seconds, max_seconds=limit),
    )  # fmt: skip


def _facts(word: str, t: Timing) -> dict[str, Any]:
    names = "disturbance median_ms p10_ms p90_ms runs images_per_second".split()
    return {
        "net": word,
        "undisturbed_ms": t.undisturbed_ms,
        "uncertainty": t.uncertainty if math.isfinite(t.uncertainty) else None,
        **{name: getattr(t, name) for name in names},
        "noise": list(t.noise),
        "input_size": list(t.input_size),
        "date": t.date,
        "conditions": {**t.conditions.to_dict(), "versions": dict(t.conditions.versions)},
    }
