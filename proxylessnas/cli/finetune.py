"""``proxylessnas finetune``: a trained body, new classes."""

from __future__ import annotations

import argparse

from ._verb import Verb


class Finetune(Verb):
    """Trains a published net on new classes."""

    name = "finetune"
    order = 65
    summary = "train a published net on your own classes"
    description = (
        "Train NET, with its published weights and a new classifier, on DATA. Killed at any moment, the same "
        "command goes on from the last checkpoint. Under torchrun it trains on several GPUs, CPUs or "
        "machines. DIR gets the recipe, checkpoints, log.jsonl, epochs.csv, curves.png and the trained "
        "model.safetensors, which every other verb takes as NET."
    )
    example = """\
  $ proxylessnas finetune proxyless_cifar10_demo digits --epochs 3 --out runs/digits
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""
        from ._train import add_arguments

        parser.add_argument(
            "net", metavar="NET", help="a net of the zoo, or a .safetensors file of save_weights"
        )
        add_arguments(parser, "finetune")
        parser.add_argument("--weights", metavar="FILE", help="weights of NET: .safetensors or .pth")
        parser.add_argument(
            "--keep-classifier",
            action="store_true",
            help="start from its classifier too: train further on the classes that NET knows",
        )
        parser.add_argument(
            "--freeze-epochs",
            type=int,
            metavar="N",
            help="train nothing but the classifier for N epochs first",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Train and report."""
        from ._train import fitted, keep_pages, opened_data, report, resolved_recipe, settings, told

        if told(args, freeze_epochs=args.freeze_epochs):
            return 0
        keep_pages(args)
        recipe = resolved_recipe(args, freeze_epochs=args.freeze_epochs)
        from ..train import finetune

        data = opened_data(args, recipe)
        recipe = fitted(recipe, data, args)
        result = finetune(
            args.net, data, recipe, out=settings(args), weights=args.weights, teacher=args.teacher,
            keep_classifier=args.keep_classifier,
        )  # fmt: skip
        return report(args, result)


VERB = Finetune()
