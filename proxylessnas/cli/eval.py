"""``proxylessnas eval``: how often is a model right?"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ._command import UsageError, Verb
from ._eval_data import EvalData, check_source, open_source
from ._model import add_model_options, check_options, open_model, running
from ._output import Progress, error, note, pairs, plural, print_json, printable, table

if TYPE_CHECKING:
    from ..train.evaluate import Evaluation

_MANY = 500  # images from which on worker processes pay for their start


class Eval(Verb):
    """Measures accuracy and calibration on a folder of images or a known data set."""

    name = "eval"
    order = 60
    summary = "measure top-1 and top-5 accuracy on a folder of images"
    description = (
        "Measure accuracy on DATA: a folder with one folder of images a class, or the test part of a data "
        "set known by name (cifar10, cifar100, fashion-mnist, digits). Folders are matched to the model's "
        "classes by wnid (n01440764, also if only some of the 1000 are there), by class name, or by number; "
        "if none of these fits, by sorted position, with a note. A folder without sub-folders will do if the "
        "file names hold wnids. Images that cannot be read are named and left out, and the exit code is 1."
    )
    example = """\
  $ proxylessnas eval proxyless_w025_r112 photos
  model        proxyless_w025_r112
  weights    /home/me/.cache/torch/hub/proxylessnas/proxyless_w025_r112-d4bfc7a6.pth
  sha256     d4bfc7a6fd8c2ee846cbad32a42153f454b02f73da605c6506bb233dc236ebbb
  transform  resize 128 (bilinear), crop 112, mean 0.5 0.5 0.5, std 0.5 0.5 0.5
  images   200 of 200 classes (labels: wnid)
  top-1      57.50 %  (115 of 200)
  top-5      76.50 %  (153 of 200)
  loss       1.8898  (cross-entropy, nats)
  ece        13.46 %  (calibration error: confidence against accuracy)
  speed      260 images/s on cpu

  which classes are bad, and what they are taken for:
  $ proxylessnas eval runs/a/model.safetensors data/test --per-class --confusion c.png
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""
        add_model_options(parser)
        parser.add_argument(
            "data",
            metavar="DATA",
            help="a folder of images, one folder a class; or cifar10, cifar100, fashion-mnist, digits",
        )
        parser.add_argument(
            "--per-class", action="store_true", help="list the classes, those with the lowest accuracy first"
        )
        parser.add_argument(
            "--confusion",
            metavar="FILE",
            help="write which class was taken for which: a table (.csv) or an image (.png)",
        )
        parser.add_argument(
            "--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)"
        )
        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help=f"processes that read images (default: none below {_MANY} images, else up to 4)",
        )
        parser.add_argument(
            "--limit", type=int, metavar="N", help="only so many, spread evenly; always the same"
        )
        parser.add_argument(
            "--labels",
            choices=("number", "position"),
            help="read folder names as class numbers, or take the folders in sorted order",
        )
        parser.add_argument("--quiet", action="store_true", help="no progress bar")
        parser.add_argument("--json", action="store_true", help="print one JSON document, which holds it all")

    def run(self, args: argparse.Namespace) -> int:
        """Evaluate and report."""
        for option in ("batch_size", "limit"):
            value = getattr(args, option)
            if value is not None and value < 1:
                raise UsageError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
        if args.workers is not None and not 0 <= args.workers <= 256:
            raise UsageError(f"--workers must be 0 to 256, not {args.workers}")
        check_options(args)
        # Before anything is downloaded or computed:
        if args.confusion is not None:
            _check_output(args.confusion)
        check_source(args.data, args.labels)

        from ..train.batch_reader import NO_WORKERS, allowed_workers
        from ..train.evaluate import evaluate_batches
        from ..utils.malloc import keep_freed_pages

        keep_freed_pages()
        model = open_model(args)
        data = open_source(args.data, model, labels=args.labels, limit=args.limit)
        for text in data.notes:
            note(text)
        workers = args.workers
        if workers is None:
            workers = min(4, os.cpu_count() or 1) if data.n >= _MANY else 0
        if workers and not allowed_workers(workers):
            note(NO_WORKERS)
        progress = Progress(0 if args.quiet else data.n)
        try:
            with running(model, "use a smaller --batch-size or --input-size"):
                result = evaluate_batches(
                    model.model,
                    data.batches(args.batch_size, workers),
                    device=model.device,
                    progress=lambda r: progress.update(r.n + len(r.unreadable), f"top-1 {r.top1:.1f} %"),
                )
        finally:
            progress.close()
        for reason in result.unreadable:
            error(reason)
        document: dict[str, Any] = {
            **model.to_dict(),
            "data": args.data,
            "labels_from": data.labels_from,
            "classes": data.classes,
            "n": result.n,
            "top1": round(result.top1, 4),
            "top5": round(result.top5, 4),
            "top1_correct": result.top1_correct,
            "top5_correct": result.top5_correct,
            "loss": _finite(result.loss),
            "ece": _finite(result.ece),
            "images_per_second": round(result.images_per_second, 2),
            "unreadable": list(result.unreadable),
            "device": str(model.device),
            "batch_size": args.batch_size,
            "workers": workers,
        }
        if args.json:
            classes = _classes(result, data.names)
            print_json({**document, "per_class": classes, "confusion": _confusion(result, data.names)})
        elif result.n:
            _show(document)
            if args.per_class:
                print("\n" + printable(_table(_classes(result, data.names))))
        failed = bool(result.unreadable)
        if args.confusion is not None and result.metrics is not None:
            failed |= not _write(args.confusion, result, data)
        if result.unreadable:
            error(f"{len(result.unreadable)} of {plural(data.n, 'image')} could not be read")
        return int(failed)


def _check_output(file: str) -> None:
    """Check where the confusion matrix is to be written.

    Raises:
        UsageError: neither a table nor an image by its ending.
        DataError: it cannot be written there.
        MissingExtraError: what draws it is not installed.
    """
    ending = os.path.splitext(file)[1].lower()
    if ending not in (".csv", ".png"):
        raise UsageError(f"--confusion writes a .csv or a .png file, not {file!r}")
    folder = os.path.dirname(file) or os.curdir
    if not os.path.isdir(folder):
        raise DataError(f"--confusion {file}: there is no folder {folder}")
    if os.path.isdir(file):
        raise DataError(f"--confusion {file}: is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"--confusion {file}: the folder {folder} cannot be written")
    if ending == ".png":
        from ..utils.plotting import require_matplotlib

        require_matplotlib()


def _write(file: str, result: Evaluation, data: EvalData) -> bool:
    """Write the confusion matrix; the results are out already, so a full disk is no reason to lose them."""
    from ..utils.plotting import confusion_csv, confusion_png

    assert result.metrics is not None
    write = confusion_csv if Path(file).suffix.lower() == ".csv" else confusion_png
    try:
        write(result.metrics.confusion, data.names, file)
    except OSError as e:
        error(f"{file}: cannot be written ({e.strerror or e})")
        return False
    return True


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _classes(result: Evaluation, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what happened to the images of each class that has any, in output order."""
    found = []
    for i, row in enumerate(result.confusion):
        n, correct = sum(row), row[i]
        if n:
            wrong = [*row[:i], 0, *row[i + 1 :]]
            most = max(range(len(row)), key=wrong.__getitem__)
            taken = {"index": most, "name": names[most], "n": wrong[most]} if wrong[most] else None
            share = round(100 * correct / n, 4)
            found.append(
                {"index": i, "name": names[i], "n": n, "correct": correct, "top1": share, "taken_for": taken}
            )
    return found


def _confusion(result: Evaluation, names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Return how often each class was taken for which: a matrix of 1000 x 1000 is nearly all zeros."""
    return {
        names[i]: {names[j]: n for j, n in enumerate(row) if n}
        for i, row in enumerate(result.confusion)
        if any(row)
    }


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


VERB = Eval()
