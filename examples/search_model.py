"""Search a model for this machine: measure what operations cost, aim at a latency, check what comes out.

python examples/search_model.py --data photos/ --out runs/photos
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from proxylessnas import LatencyError, create_model, keep_freed_pages, latency
from proxylessnas.arch.spaces import read_space
from proxylessnas.search import read_search_recipe, search
from proxylessnas.train import Data, Settings, open_data
from proxylessnas.train.metrics import Metrics
from proxylessnas.utils.progress import Steps


class Known(torch.utils.data.Dataset):
    """The images that the search may see; the others judge its model. Any data set will do for a search."""

    def __init__(self, data: Data) -> None:
        self.images, self.targets, self.classes = data.train, list(data.train.labels), data.categories

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images.read(index), self.targets[index]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Search a model for this machine.")
    parser.add_argument("--data", default="digits", help="folder of class folders, or a data set's name")
    parser.add_argument("--out", type=Path, help="folder, whose run is resumed; default: one below runs/")
    parser.add_argument("--target-ms", type=float, help="default: the middle of what can be reached here")
    parser.add_argument("--epochs", type=int, help="of the warm-up, and of the search; default: the recipe's")
    parser.add_argument("--minutes", type=float, default=1.0, help="at most, to measure operations")
    args = parser.parse_args(argv)
    keep_freed_pages()  # much faster steps on many virtual machines
    out = args.out or Path("runs") / time.strftime("search-%Y%m%d-%H%M%S")
    data, path = open_data(args.data, val_fraction=0.2), out / "table.json"
    out.mkdir(parents=True, exist_ok=True)
    space = read_space("tiny").replace(num_classes=len(data.categories))

    # 1. What does each operation of the space cost here? Whole models, measured too, say how far to trust it.
    print(f"\nWhat do the operations of the space {space.name} cost on this machine?", flush=True)
    try:
        if not path.exists():
            asked = latency.BuildSettings(minutes=args.minutes)
            latency.build_table(space, asked, path=path, progress=Steps(False, "table"))
        table = latency.LatencyTable.load(path)
        print("  " + (latency.Validation.from_dict(v).verdict if (v := table.validation) else "unvalidated"))
        target = {"target_ms": args.target_ms or sum(table.range_ms()) / 2}
    except LatencyError as error:  # the machine may be too busy for any such thing
        print(f"  {error}. So the search has another aim")
        table, target = None, {"target_macs_m": 1.7}  # models of this space need 0.6 to 2.9 million

    # 2. The search trains weights on one part of what it may see, and the architecture on the other.
    print(f"\nWhich of its {space.count:,} models suits {len(data.train):,} images best?", flush=True)
    recipe = read_search_recipe("tiny").with_epochs(args.epochs, args.epochs).replace(**target)
    result = search(space, Known(data), recipe, out=Settings(out / "net", threads=1), table=table, force=True)
    if result.model is None:
        return 130  # Ctrl-C; the same command resumes
    # 3. What came out is a plain model with the weights of the search, which has measured its latency too.
    model = create_model(result.model).eval()
    metrics, read = Metrics(model.num_classes), model.preprocessing.build()
    for some in torch.arange(len(data.val)).split(256):
        x = torch.stack([read(data.val.read(i)) for i in some.tolist()])
        metrics.add(model(x).detach(), torch.tensor(data.val.labels)[some])
    print(f"\n{model.arch}\n{metrics.top1:.1f} % of {metrics.n} images that the search never saw are right.")
    print(f"To train it on: proxylessnas finetune {result.model} {args.data}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
