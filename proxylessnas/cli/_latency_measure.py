"""``proxylessnas latency measure``: how long do these models take here?"""

from __future__ import annotations

import argparse
import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ..models.resolve import resolve
from ._command import Verb
from ._latency import MODEL_HELP, Steps, add_quiet, add_settings, check_graph, import_modules, ms
from ._options import MOST_PIXELS, above, whole
from ._output import bold, note, print_json, printable, table

if TYPE_CHECKING:
    from ..latency import Timing


class Measure(Verb):
    """Measures whole models, one after another."""

    name = "measure"
    summary = "measure models on this device"
    description = (
        "Measure the latency of models on this device, each in a process of its own: undisturbed, which is "
        "the 2 % quantile over the calls of many short windows, and as it is now (median, p10, p90). Their "
        "weights are random, which makes no difference. To compare models with each other, `proxylessnas "
        "bench` is fairer: it interleaves them."
    )
    example = """\
  $ proxylessnas latency measure proxyless_cpu proxyless_mobile --threads 2
  model               undisturbed  median   p10   p90  disturbance  runs  images/s
  proxyless_cpu            9.26    9.41  9.30  9.77         1.02    84       108
  proxyless_mobile         8.41    8.52  8.44  8.90         1.01    93       119

  milliseconds a call of 1 image; undisturbed: to compare by; median, p10, p90: as it is now
"""
    rest = "nets"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the action's arguments."""
        parser.add_argument("nets", metavar="MODEL", nargs="+", help=f"{MODEL_HELP}, or an exported file")
        parser.add_argument(
            "--image-size", type=whole(1, MOST_PIXELS), metavar="N", help="side of the input, px"
        )
        parser.add_argument(
            "--seconds", type=above(0, 3600), default=1.0, metavar="S",
            help="measure so long, at least (default: 1)",
        )  # fmt: skip
        add_settings(parser)
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Measure and report."""
        check_graph(args, [args.runtime])
        import_modules(args)
        from ..latency import Settings

        settings = Settings(
            args.runtime, args.device, args.threads, args.batch_size, args.dtype, args.memory_format,
            args.cuda_graph,
        )  # fmt: skip
        words = list(dict.fromkeys(args.nets))
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
            speed = f"{t.images_per_second:.{0 if t.images_per_second >= 100 else 1}f}"
            now = (ms(t.median_ms), ms(t.p10_ms), ms(t.p90_ms), f"{t.disturbance:.2f}")
            rows.append((word, ms(t.undisturbed_ms), *now, f"{t.runs:,}", speed))
        head, _, body = table(rows, "<>>>>>>>").partition("\n")
        print(bold(head))
        print(printable(body))
        conditions = next(iter(timings.values())).conditions
        of = "1 image" if args.batch_size == 1 else f"{args.batch_size} images"
        print(f"\nmilliseconds a call of {of}; undisturbed: to compare by; median, p10, p90: as it is now")
        print(printable(f"{conditions.describe()}; memory allocator: {conditions.allocator}"))
        for word, t in timings.items():
            if t.noisy:
                note(f"{word}: {'; '.join(t.noise)}")
        return 0


def _measure(word: str, args: argparse.Namespace, settings: Any) -> Timing:
    from ..latency import measure
    from ..runtimes.files import file_runtimes

    model: Any = word
    size: Any = args.image_size
    if args.imports:  # the measuring process does not know these operations, but can unpickle them
        from ..models.factory import create_model

        arch = resolve(word).arch
        model, side = create_model(arch), size or arch.resolution or 224
        size = (arch.in_channels, side, side)
    options: dict[str, Any] = dataclasses.asdict(settings)
    if options["runtime"] == "torch" and file_runtimes(word):
        options["runtime"] = None  # the default option: the file's own
    limit = max(20.0, 4 * args.seconds)
    return measure(model, input_size=size, min_seconds=args.seconds, max_seconds=limit, **options)


def _facts(word: str, t: Timing) -> dict[str, Any]:
    return {
        "net": word,
        "undisturbed_ms": t.undisturbed_ms,
        "uncertainty": t.uncertainty if math.isfinite(t.uncertainty) else None,
        "disturbance": t.disturbance,
        "median_ms": t.median_ms,
        "p10_ms": t.p10_ms,
        "p90_ms": t.p90_ms,
        "runs": t.runs,
        "images_per_second": t.images_per_second,
        "noise": list(t.noise),
        "input_size": list(t.input_size),
        "date": t.date,
        "conditions": {**t.conditions.to_dict(), "versions": dict(t.conditions.versions)},
    }


MEASURE = Measure()
