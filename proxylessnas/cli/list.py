"""``proxylessnas list``: the models there are."""

from __future__ import annotations

import argparse
import fnmatch
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from ..errors import UnknownModelError
from ._arguments import add_json
from ._command import Command
from ._output import megabytes, millions, print_json, print_table

_OF_WEIGHTS = "name dataset num_classes params macs input_size size bundled".split()


class List(Command):
    """List the models with their size, input and published accuracy.

    List the models. Multiply-adds (MACs) are counted at the model's own input size, which is in pixels. Top-1
    is
    the accuracy in percent: the published one, not measured again here, unless it is marked as measured.
    Below the table is said which images it is of.
    """

    name = "list"
    order = 10
    example = """\
  $ proxylessnas list '*mobile*'
  model                params   MACs  input  top-1  weights
  proxyless_mobile     4.08 M  320 M    224   74.6  not here
  proxyless_mobile_14  6.86 M  581 M    224   76.7  in the cache
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("pattern", nargs="?", default="*", help="shell-style pattern, such as '*mobile*'")
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        from ..weights.cache import copy_path, weights_path
        from ..weights.registry import read_manifest

        everything = read_manifest()
        pattern = args.pattern.lower().replace("-", "_")
        names = [name for name in everything if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise UnknownModelError(f"no model matches {args.pattern!r}; there are: {', '.join(everything)}")
        models: list[dict[str, Any]] = []
        for name in names:
            w = everything[name]
            path = weights_path(w)
            here = _is_whole(path, w.size) or (not w.bundled and copy_path(w).is_file())
            metrics = {"metrics_status": w.metrics.get("status"), "metrics_images": w.metrics.get("images")}
            models.append(
                {
                    **{key: getattr(w, key) for key in _OF_WEIGHTS},
                    **{key: w.metrics.get(key) for key in ("top1", "top5")},
                    **metrics,
                    "measured": [dict(m) for m in w.metrics.get("measured", ())],
                    "path": str(path),
                    "here": here,
                    "cached": here and not w.bundled,
                }
            )
        if args.json:
            print_json({"nets": models})
            return 0
        rows = [("model", "params", "MACs", "input", "top-1", "weights")]
        for model in models:
            measured = "*" if model["metrics_status"] == "measured" else ""
            rows.append(
                (
                    model["name"],
                    millions(model["params"]),
                    millions(model["macs"]),
                    str(model["input_size"]),
                    "-" if model["top1"] is None else f"{model['top1']:.1f}{measured}",
                    _place(model),
                )
            )
        print_table(rows, "<>>>><")
        print()
        for line in _legend(models):
            print(textwrap.fill(line, 79, break_on_hyphens=False))
        print("`proxylessnas fetch NAME` brings the weights here.")
        return 0


def _legend(models: list[dict[str, Any]]) -> list[str]:
    """Return what the columns mean, and which images each accuracy is of."""
    known = Counter(model["metrics_images"] for model in models if model["metrics_images"])
    most = known.most_common(1)[0][0] if known else "images"
    lines = [f"top-1: percent of {most}, as published, not re-measured; input: pixels."]
    for images in [images for images in known if images != most]:
        names = ", ".join(model["name"] for model in models if model["metrics_images"] == images)
        lines.append(f"top-1 of {names}: of {images}.")
    if any(model["metrics_status"] == "measured" for model in models):
        lines.append("*: trained and measured by this project; `proxylessnas info NAME` says how.")
    measured: dict[str, list[str]] = {}
    for model in models:
        for m in model["measured"]:
            images = f"{m['n']:,} {m['images']}"
            measured.setdefault(images, []).append(f"{model['name']} {m['top1']:.1f} %")
    lines += [f"measured here on {images}: {', '.join(found)}." for images, found in measured.items()]
    return lines


def _place(model: dict[str, Any]) -> str:
    if model["bundled"]:
        return "in the package" if model["here"] else "missing"
    size = f" ({megabytes(model['size'])})" if model["size"] else ""
    return "in the cache" if model["here"] else f"not here{size}"


def _is_whole(path: Path, size: int | None) -> bool:
    """Tell whether the file is there and of its size, if that is known; `verify` looks closer."""
    return path.is_file() and size in (None, path.stat().st_size)


COMMAND = List()
