"""Fine-tune a published model on few images, and train the same model on them from scratch.

    python benchmarks/finetune_transfer.py cifar10_jpg --seeds 3

100 images a class of CIFAR-10 are trained on, enlarged to the model's 112 px; 1,000 images of the test part
are classified at the end. Both runs have the same number of epochs and images; each has its own recipe.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import harness

NAME = "proxyless_w025_r112"


def main() -> int:
    parser = harness.make_parser(__doc__, "finetune_transfer")
    parser.add_argument("data", help="folder with train/ and test/, or cifar10[:folder]")
    parser.add_argument("--weights", help=f"file of {NAME}'s weights (default: fetched)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--a-class", type=int, default=100, help="training images a class")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    args = parser.parse_args()
    harness.start(args)
    import dataclasses

    from proxylessnas.train import Settings, finetune, open_data, read_recipe, train

    rows = []
    for seed in range(args.seeds):
        data = open_data(args.data, limit=args.a_class, seed=seed)
        spread = [i * len(data.val) // args.test for i in range(args.test)]
        data = dataclasses.replace(data, val=data.val.take(spread))
        for kind, call in (("finetune", finetune), ("scratch", train)):
            recipe = read_recipe(kind).with_epochs(args.epochs).replace(seed=seed, batch_size=32)
            options = {"weights": args.weights} if kind == "finetune" and args.weights else {}
            with tempfile.TemporaryDirectory() as folder:
                settings = Settings(Path(folder, "run"), device="cpu", workers=0, console=False)
                # The validation part is looked at, never chosen by: the last weights are kept.
                result = call(NAME, data, recipe, out=settings, **options)
            rows.append(
                {"kind": kind, "seed": seed, "top1": round(result.top1, 2), "seconds": round(result.seconds)}
            )
            print(rows[-1], flush=True)
    for kind in ("finetune", "scratch"):
        values = [row["top1"] for row in rows if row["kind"] == kind]
        print(f"{kind}: mean {statistics.mean(values):.2f} %, {min(values):.2f} to {max(values):.2f}")
    harness.write_rows(args, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
