"""``proxylessnas train``: a model from random weights."""

from __future__ import annotations

import argparse

from ._command import Command
from ._options import add


class Train(Command):
    """Train an architecture from scratch on a folder of images.

    Train MODEL from random weights on DATA. Killed at any moment, the same command goes on from the last
    checkpoint. Under torchrun it trains on several GPUs, CPUs or machines. DIR gets the recipe, checkpoints,
    log.jsonl, epochs.csv, curves.png and the trained model.safetensors, which every other command takes as
    MODEL.
    """

    name = "train"
    order = 70
    example = """\
  $ proxylessnas train proxyless_cifar10_demo digits --recipe small-images --epochs 10 --out runs/digits
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ._train import add_arguments

        add(parser, "model MODEL", "a model of the zoo or an architecture file")
        add_arguments(parser, "scratch")

    def run(self, args: argparse.Namespace) -> int:
        from ._train import resolved_recipe, train

        recipe = resolved_recipe(args)
        if args.show_recipe:
            print(recipe.to_toml(), end="")
            return 0
        from ..train.setup import Start

        return train(args, recipe, Start(args.model))


COMMAND = Train()
