"""``proxylessnas train``: a net from random weights."""

from __future__ import annotations

import argparse

from ._command import Command


class Train(Command):
    """Trains an architecture from scratch."""

    name = "train"
    order = 70
    summary = "train an architecture from scratch on a folder of pictures"
    description = (
        "Train NET from random weights on DATA. Killed at any moment, the same command goes on from the last "
        "checkpoint. Under torchrun it trains on several GPUs, CPUs or machines. DIR gets the recipe, "
        "checkpoints, log.jsonl, epochs.csv, curves.png and the trained model.safetensors, which every other "
        "command takes as NET."
    )
    example = """\
  $ proxylessnas train proxyless_cifar10_demo digits --recipe small-images --epochs 10 --out runs/digits
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        from ._train import add_arguments

        parser.add_argument("net", metavar="NET", help="a net of the zoo or an architecture file")
        add_arguments(parser, "scratch")

    def run(self, args: argparse.Namespace) -> int:
        """Train and report."""
        from ._train import fitted, keep_pages, opened_data, report, resolved_recipe, settings, told

        if told(args):
            return 0
        keep_pages(args)
        recipe = resolved_recipe(args)
        from ..train.run import run_from
        from ..train.setup import Start

        data = opened_data(args, recipe)
        recipe = fitted(recipe, data, args)
        out = settings(args)
        return report(
            args, run_from(args.net, data, recipe, out, None, args.teacher, Start(args.net), told=True)
        )


COMMAND = Train()
