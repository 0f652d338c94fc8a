"""``proxylessnas finetune``: a trained body, new classes."""

from __future__ import annotations

import argparse

from ._command import Command
from ._options import add
from ._output import note


class Finetune(Command):
    """Train a published model on your own classes.

    Train MODEL, with its published weights, on DATA. Its classifier is kept where its classes are those of
    DATA, in the same order, and else starts anew. Killed at any moment, the same command goes on from the
    last checkpoint. Under torchrun it trains on several GPUs, CPUs or machines. DIR gets the recipe,
    checkpoints, log.jsonl, epochs.csv, curves.png and the trained model.safetensors, which every other
    command takes as MODEL.
    """

    name = "finetune"
    order = 65
    example = """\
  $ proxylessnas finetune proxyless_cifar10_demo digits --epochs 3 --out runs/digits
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        from ._train import add_arguments

        add(parser, "model MODEL", "a model of the zoo, or a .safetensors file of save_weights")
        add_arguments(parser, "finetune", "freeze_epochs")
        add(parser, "--weights FILE", "weights of MODEL: .safetensors or .pth")
        group = parser.add_mutually_exclusive_group()
        add(
            group,
            "--keep-classifier",
            "start from its classifier too, and freeze nothing: train further on the classes MODEL knows "
            "(the default where they are the same; a run that is continued goes on as it began)",
            default=None,
        )
        group.add_argument(
            "--new-classifier",
            action="store_false",
            default=None,
            dest="keep_classifier",
            help="start with a new classifier in any case",
        )

    def run(self, args: argparse.Namespace) -> int:
        from ._train import is_set, resolved_recipe, train

        freeze = args.freeze_epochs
        preset = args.recipe == args.parser.get_default("recipe")
        asked = freeze is not None or is_set(args, "freeze_epochs")
        if args.keep_classifier and preset and not asked:
            freeze = 0  # the preset's is there for a classifier that knows nothing yet
        recipe = resolved_recipe(args, freeze_epochs=freeze)
        if args.show_recipe:
            print(recipe.to_toml(), end="")
            if args.keep_classifier is None and preset and not asked:
                note("freeze_epochs is 0 where the classifier is kept, as DATA has the classes of MODEL")
            return 0
        from ..train.setup import Start

        thaw = preset and not asked
        start = Start(args.model, args.weights is None, args.weights, args.keep_classifier, thaw=thaw)
        return train(args, recipe, start)


COMMAND = Finetune()
