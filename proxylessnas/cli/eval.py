"""``proxylessnas eval``: how often is a model right?"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._arguments import add_quiet, check_output, written
from ._command import Command, UsageError
from ._model import Model, add_model_options, check_options, open_model, running
from ._options import add, whole
from ._output import error, note, pairs, plural, print_json, printable, table

if TYPE_CHECKING:
    from ..train.eval_data import EvalData
    from ..train.evaluate import Evaluation

_MANY = 500  # images from which on worker processes pay for their start


class Eval(Command):
    """Measure top-1 and top-5 accuracy on a folder of images.

    Measure accuracy on DATA: a folder with one folder of images a class, or the test part of a data set
    known by name (cifar10, cifar100, fashion-mnist, digits). Folders are matched to the model's classes by
    wnid (n01440764, also if only some of the 1000 are there), by class name, or by number; if none of these
    fits, by sorted position, with a note. A folder without sub-folders will do if the file names hold wnids.
    Images that cannot be read are named and left out, and the exit code is 1.
    """

    name = "eval"
    order = 60
    example = """\
  $ proxylessnas eval proxyless_w025_r112 photos
  model      proxyless_w025_r112
  weights    /home/me/.cache/torch/hub/proxylessnas/proxyless_w025_r112-d4bfc7a6.pth
  sha256     d4bfc7a6fd8c2ee846cbad32a42153f454b02f73da605c6506bb233dc236ebbb
  transform  resize 128 (bilinear), crop 112, mean 0.5 0.5 0.5, std 0.5 0.5 0.5
  images     200 of 200 classes (labels: wnid)
  top-1      57.50 %  (115 of 200)
  top-5      76.50 %  (153 of 200)
  loss       1.8898  (cross-entropy, nats)
  ece        13.46 %  (calibration error: confidence against accuracy)
  speed      260 images/s on cpu

  which classes are bad, and what they are taken for:
  $ proxylessnas eval runs/a/model.safetensors data/test --per-class --confusion c.png
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_model_options(parser)
        add(
            parser,
            "data DATA",
            "a folder of images, one folder a class; or cifar10, cifar100, fashion-mnist, digits",
        )
        add(parser, "--per-class", "list the classes, those with the lowest accuracy first")
        add(
            parser,
            "--confusion FILE",
            "write which class was taken for which: a table (.csv) or an image (.png)",
        )
        for name, low, high, default, help in (
            ("batch-size", 1, 65_536, 32, "images at a time (default: 32)"),
            (
                "workers",
                0,
                256,
                None,
                f"processes that read images (default: none below {_MANY} images, else up to 4)",
            ),
            ("limit", 1, 1_000_000_000, None, "only so many, spread evenly; always the same"),
        ):
            parser.add_argument(f"--{name}", type=whole(low, high), default=default, metavar="N", help=help)
        parser.add_argument(
            "--labels",
            choices=("number", "position"),
            help="read folder names as class numbers, or take the folders in sorted order",
        )
        add_quiet(parser)

    def run(self, args: argparse.Namespace) -> int:
        check_options(args)
        # Before anything is downloaded or computed:
        if args.confusion is not None:
            check_output(args.confusion, "--confusion", ".csv", ".png")
        from ..train.eval_data import check_source, open_source

        check_source(args.data)
        if args.labels is not None and not os.path.isdir(args.data):
            raise UsageError(f"--labels is about the names of folders, but {args.data} is a data set")
        from ..utils.malloc import keep_freed_pages

        keep_freed_pages()
        model = open_model(args)
        words = {"labels": args.labels, "limit": args.limit}
        data = open_source(args.data, model.model, model.preprocessing, model.dataset, **words)
        for text in data.notes:
            note(text)
        workers = _workers(args, data.n)
        result = _evaluated(args, model, data, workers)
        for reason in result.unreadable:
            error(reason)
        document = _document(args, model, data, result) | {"workers": workers}
        if args.json:
            classes = result.classes(data.names)
            print_json({**document, "per_class": classes, "confusion": result.confusion_by_name(data.names)})
        elif result.n:
            _show(document)
            if args.per_class:
                print("\n" + printable(_table(result.classes(data.names))))
        failed = bool(result.unreadable)
        if args.confusion is not None and result.metrics is not None:
            from ..utils.plotting import confusion_csv, confusion_png

            write = confusion_csv if Path(args.confusion).suffix.lower() == ".csv" else confusion_png
            confusion = result.metrics.confusion
            failed |= not written(args.confusion, lambda file: write(confusion, data.names, file))
        if result.unreadable:
            error(f"{len(result.unreadable)} of {plural(data.n, 'image')} could not be read")
        return int(failed)


def _workers(args: argparse.Namespace, images: int) -> int:
    """Return how many processes are to read images."""
    from ..train.batch_reader import NO_WORKERS, allowed_workers

    workers: int | None = args.workers
    if workers is None:
        workers = min(4, os.cpu_count() or 1) if images >= _MANY else 0
    if workers and not allowed_workers(workers):
        note(NO_WORKERS)
    return workers


def _evaluated(args: argparse.Namespace, model: Model, data: EvalData, workers: int) -> Evaluation:
    from ..train.evaluate import evaluate_batches
    from ..utils.progress import StepBar, is_terminal

    bar = None if args.quiet or not is_terminal(sys.stderr) else StepBar()

    def show(r: Evaluation) -> None:
        if bar is not None and bar.is_due():
            fields = [(f"{r.images_per_second:.0f} images/s", 1), (f"top-1 {r.top1:.1f} %", 0)]
            bar.show("eval", r.n + len(r.unreadable), data.n, fields)

    try:
        with running(model, "use a smaller --batch-size or --input-size"):
            batches = data.batches(args.batch_size, workers)
            return evaluate_batches(model.model, batches, device=model.device, progress=show)
    finally:
        if bar is not None:
            bar.close()


def _document(args: argparse.Namespace, model: Model, data: EvalData, result: Evaluation) -> dict[str, Any]:
    counts = "n top1_correct top5_correct".split()
    return {
        **model.to_dict(),
        "data": args.data,
        "labels_from": data.labels_from,
        "classes": data.classes,
        **{name: getattr(result, name) for name in counts},
        "top1": round(result.top1, 4),
        "top5": round(result.top5, 4),
        "loss": _finite(result.loss),
        "ece": _finite(result.ece),
        "images_per_second": round(result.images_per_second, 2),
        "unreadable": list(result.unreadable),
        "device": str(model.device),
        "batch_size": args.batch_size,
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _table(classes: list[dict[str, Any]]) -> str:
    """Return the classes as a table, the worst first; of equals, those with more images."""
    rows = [("class", "images", "top-1", "most often taken for")]
    for c in sorted(classes, key=lambda c: (c["top1"], -c["n"])):
        taken = f"{c['taken_for']['name']} ({c['taken_for']['n']:,})" if c["taken_for"] else "-"
        rows.append((c["name"], f"{c['n']:,}", f"{c['top1']:.2f} %", taken))
    return table(rows, "<>><")


def _show(d: dict[str, Any]) -> None:
    from ..data.transforms import Preprocessing

    n, speed = d["n"], d["images_per_second"]
    rows = [
        ("model", d["net"]),
        ("weights", d["weights"]["file"]),
        ("sha256", d["weights"]["sha256"] or "not known"),
        ("transform", str(Preprocessing.from_dict(d["preprocessing"]))),
        ("images", f"{n:,} of {d['classes']:,} classes (labels: {d['labels_from']})"),
        ("top-1", f"{d['top1']:.2f} %  ({d['top1_correct']:,} of {n:,})"),
        ("top-5", f"{d['top5']:.2f} %  ({d['top5_correct']:,} of {n:,})"),
        ("loss", f"{d['loss']:.4f}  (cross-entropy, nats)"),
        ("ece", f"{d['ece']:.2f} %  (calibration error: confidence against accuracy)"),
        ("speed", f"{speed:.{0 if speed >= 10 else 1}f} images/s on {d['device']}"),
    ]
    print(printable(pairs(rows)))


COMMAND = Eval()
