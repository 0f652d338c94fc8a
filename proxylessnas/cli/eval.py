"""``proxylessnas eval``: how often is a net right?"""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import DataError
from ._net import add_net_options, check_options, open_net, running
from ._output import Progress, error, note, pairs, plural, print_json, printable
from ._verb import UsageError, Verb

_MANY = 500  # pictures from which on worker processes pay for their start


class Eval(Verb):
    """Measures top-1 and top-5 accuracy on a folder of pictures."""

    name = "eval"
    order = 60
    summary = "measure top-1 and top-5 accuracy on a folder of pictures"
    description = (
        "Measure accuracy on DIR, which holds one folder of pictures a class. Folders are matched to the "
        "net's classes by wnid (n01440764, also if only some of the 1000 are there), by class name, or by "
        "number; if none of these fits, by sorted position, with a note. A folder without sub-folders will "
        "do if the file names hold wnids. Pictures that cannot be read are named and left out, and the exit "
        "code is 1."
    )
    example = """\
  $ proxylessnas eval proxyless_w025_r112 photos
  net        proxyless_w025_r112
  weights    /home/me/.cache/torch/hub/proxylessnas/proxyless_w025_r112-d4bfc7a6.pth
  sha256     d4bfc7a6fd8c2ee846cbad32a42153f454b02f73da605c6506bb233dc236ebbb
  transform  resize 128 (bilinear), crop 112, mean 0.5 0.5 0.5, std 0.5 0.5 0.5
  pictures   200 of 200 classes (labels: wnid)
  top-1      57.50 %  (115 of 200)
  top-5      76.50 %  (153 of 200)
  speed      260 pictures/s on cpu
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""
        add_net_options(parser)
        parser.add_argument("folder", metavar="DIR", help="the pictures, one folder a class")
        parser.add_argument(
            "--batch-size", type=int, default=32, metavar="N", help="pictures at a time (default: 32)"
        )
        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help=f"processes that read pictures (default: none below {_MANY} pictures, else up to 4)",
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
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Evaluate and report."""
        for option in ("batch_size", "limit"):
            value = getattr(args, option)
            if value is not None and value < 1:
                raise UsageError(f"--{option.replace('_', '-')} must be at least 1, not {value}")
        if args.workers is not None and not 0 <= args.workers <= 256:
            raise UsageError(f"--workers must be 0 to 256, not {args.workers}")
        check_options(args)
        if not os.path.isdir(args.folder):  # before anything is downloaded
            what = (
                "is a file; a folder of pictures is expected"
                if os.path.exists(args.folder)
                else "no such folder"
            )
            raise DataError(f"{args.folder}: {what}")

        from ..datasets import labelled_images
        from ..evaluate import evaluate
        from ..memory import keep_freed_pages

        keep_freed_pages()
        net = open_net(args)
        pictures = labelled_images(
            args.folder,
            net.model.num_classes,
            net.dataset,
            names=net.model.categories,
            labels=args.labels,
        )
        for text in pictures.notes:
            note(text)
        if args.limit is not None:
            pictures = pictures.limit(args.limit)
        workers = args.workers
        if workers is None:
            workers = min(4, os.cpu_count() or 1) if len(pictures) >= _MANY else 0
        progress = Progress(0 if args.quiet else len(pictures))
        try:
            with running(net, "use a smaller --batch-size or --input-size"):
                result = evaluate(
                    net.model,
                    pictures.samples,
                    net.preprocessing.build(),
                    batch_size=args.batch_size,
                    workers=workers,
                    device=net.device,
                    progress=lambda r: progress.update(r.n + len(r.unreadable), f"top-1 {r.top1:.1f} %"),
                )
        finally:
            progress.close()
        for reason in result.unreadable:
            error(reason)
        document: dict[str, Any] = {
            **net.to_dict(),
            "data": args.folder,
            "labels_from": pictures.labels_from,
            "classes": pictures.classes,
            "n": result.n,
            "top1": round(result.top1, 4),
            "top5": round(result.top5, 4),
            "top1_correct": result.top1_correct,
            "top5_correct": result.top5_correct,
            "images_per_second": round(result.images_per_second, 2),
            "unreadable": list(result.unreadable),
            "device": str(net.device),
            "batch_size": args.batch_size,
            "workers": workers,
        }
        if args.json:
            print_json(document)
        elif result.n:
            _show(document)
        if result.unreadable:
            error(f"{len(result.unreadable)} of {plural(len(pictures), 'picture')} could not be read")
        return 1 if result.unreadable else 0


def _show(d: dict[str, Any]) -> None:
    from ..transforms import Preprocessing

    n, speed = d["n"], d["images_per_second"]
    rows = [
        ("net", d["net"]),
        ("weights", d["weights"]["file"]),
        ("sha256", d["weights"]["sha256"] or "not known"),
        ("transform", str(Preprocessing.from_dict(d["preprocessing"]))),
        ("pictures", f"{n:,} of {d['classes']:,} classes (labels: {d['labels_from']})"),
        ("top-1", f"{d['top1']:.2f} %  ({d['top1_correct']:,} of {n:,})"),
        ("top-5", f"{d['top5']:.2f} %  ({d['top5_correct']:,} of {n:,})"),
        ("speed", f"{speed:.{0 if speed >= 10 else 1}f} pictures/s on {d['device']}"),
    ]
    print(printable(pairs(rows)))


VERB = Eval()
