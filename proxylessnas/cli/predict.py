"""``proxylessnas predict``: what is on these images?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from ..errors import ImageError, one_line
from ._arguments import add_json
from ._command import Command
from ._model import Model, add_model_options, check_options, open_model, running
from ._options import add, whole
from ._output import bar, bold, error, plural, print_json

_BATCH = 16  # images a forward pass


class Predict(Command):
    """Classify images.

    Name the most probable classes of each image. Any usual kind of file will do (JPEG, PNG, WebP, GIF,
    TIFF, ...; grey, transparent, CMYK, 16-bit, rotated by EXIF). An image that cannot be read is reported,
    the others are classified, and the exit code is 1.
    """

    name = "predict"
    order = 50
    example = """\
  $ proxylessnas predict proxyless_w025_r112 fish.jpg --top 3
  fish.jpg
     87.4 %  █████████████████▌    tench
      9.0 %  █▊                    banded gecko
      1.2 %  ▎                     common newt

  with --json one document, also when something fails:
  {"net": ..., "weights": {"file", "sha256", "published"}, "preprocessing": {...},
   "images": [{"image", "predictions": [{"index", "wnid", "name", "probability"}]},
              {"image", "error"}], "failed": 1}
"""
    rest = "images"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add_model_options(parser)
        add(parser, "images IMAGE", "an image", nargs="+")
        add(parser, "--top K", "how many classes to name (default: 5)", type=whole(1), default=5)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        check_options(args)
        from ..utils.malloc import keep_freed_pages

        keep_freed_pages()
        model = open_model(args)
        from ..train.eval_data import class_labels

        names, labels, wnids = class_labels(model.model, model.dataset)
        results: list[dict[str, Any]] = []
        for path, found in _classified(model, args.images, args.top):
            if isinstance(found, str):
                error(found)
                results.append({"image": path, "error": found})
                continue
            results.append(
                {
                    "image": path,
                    "predictions": [
                        {"index": i, "wnid": wnids[i] if wnids else None, "name": names[i], "probability": p}
                        for i, p in found
                    ],
                }
            )
            if not args.json:
                print(bold(path))
                for i, p in found:
                    print(f"  {100 * p:5.1f} %  {bar(p)}  {one_line(labels[i])}")
        failed = sum("error" in result for result in results)
        if args.json:
            print_json({**model.to_dict(), "images": results, "failed": failed})
        if failed and len(results) > 1:
            error(f"{failed} of {plural(len(results), 'image')} could not be classified")
        return 1 if failed else 0


def _classified(
    model: Model, paths: list[str], top: int
) -> Iterator[tuple[str, list[tuple[int, float]] | str]]:
    """Yield each path, in order, with its classes and probabilities, or with what is wrong with it."""
    import torch

    from ..models.base import top_classes
    from ..train.batch_reader import one_thread

    transform = model.preprocessing.build()
    for start in range(0, len(paths), _BATCH):
        batch = paths[start : start + _BATCH]
        inputs: list[torch.Tensor] = []
        problems: dict[int, str] = {}
        with running(model, "use a smaller --input-size"):
            with one_thread():
                for i, path in enumerate(batch):
                    try:
                        inputs.append(_read(path, transform))
                    except ImageError as e:
                        problems[i] = str(e)
            found = iter(
                top_classes(model.model, torch.stack(inputs).to(model.device), top) if inputs else ()
            )
        for i, path in enumerate(batch):
            yield path, problems[i] if i in problems else next(found)


def _read(path: str, transform: Any) -> Any:
    from ..data.images import load_image

    if os.path.isdir(path):
        raise ImageError(
            f"{path}: is a folder; `proxylessnas eval` takes folders, predict takes {path}/*.jpg"
        )
    return transform(load_image(path))


COMMAND = Predict()
