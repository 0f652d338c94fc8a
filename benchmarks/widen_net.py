"""Give a trained model larger expansion ratios without changing what it computes.

    python benchmarks/widen_net.py runs/demo/model.safetensors proxyless_cifar10_demo --out wide.safetensors

The second argument, a model of the zoo or an architecture's text file, is the architecture of the trained
model with larger expansion ratios in some blocks. The channels that come into a block have random filters,
but its projection takes nothing of them yet, so that a wider model starts where the trained one ended (as in
Net2Net, Chen et al. 2016) and `proxylessnas finetune` goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from proxylessnas import create_model, save_weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Widen a trained model without changing what it computes.")
    parser.add_argument("trained", type=Path, help="its .safetensors file")
    parser.add_argument("arch", help="the wider architecture: a model of the zoo, or a text file")
    parser.add_argument("--out", type=Path, required=True, help="the wider model's .safetensors file")
    parser.add_argument("--seed", type=int, default=0, help="of the new filters")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    old, new = create_model(args.trained).eval(), create_model(args.arch).eval()
    narrow, wide = old.state_dict(), new.state_dict()
    if narrow.keys() != wide.keys():
        raise SystemExit(f"error: {args.arch} has other blocks than {args.trained}")
    for name, value in wide.items():
        inner = tuple(slice(0, n) for n in narrow[name].shape)
        if any(n > w for n, w in zip(narrow[name].shape, value.shape, strict=True)):
            raise SystemExit(f"error: {name} is narrower in {args.arch}: {tuple(value.shape)}")
        if name.endswith("point_linear.conv.weight"):
            value.zero_()
        elif value.shape != narrow[name].shape and ".mobile_inverted_conv." not in name:
            raise SystemExit(f"error: {name} is wider in {args.arch}; only expansion ratios may grow")
        value[inner] = narrow[name]
    new.preprocessing, new.categories = old.preprocessing, old.categories
    images = torch.randn(8, 3, 32, 32)
    with torch.inference_mode():
        difference = float((old(images) - new(images)).abs().max())
    if difference > 1e-4:
        raise SystemExit(
            f"error: the wider model computes something else: outputs differ by {difference:.2g}"
        )
    save_weights(new, args.out)
    print(f"{args.out}: largest difference of the outputs {difference:.2g}")


if __name__ == "__main__":
    main()
