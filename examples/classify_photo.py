"""Classify photos with a published model.

    python examples/classify_photo.py examples/photos/cat.jpg --model proxyless_cpu

The first run fetches the weights; later ones find them in the cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import proxylessnas
from proxylessnas.data.images import load_image


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Classify photos with a published model.")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--model", default="proxyless_mobile", help="see `proxylessnas list`")
    args = parser.parse_args(argv)

    weights = proxylessnas.get_weights(args.model)
    model = proxylessnas.create_model(args.model, pretrained=True).eval()
    transform = weights.transforms()  # the preprocessing these weights were trained with
    batch = torch.stack([transform(load_image(photo)) for photo in args.photos])
    with torch.inference_mode():
        probabilities = model(batch).softmax(dim=1)  # [photos, classes]
    for photo, row in zip(args.photos, probabilities, strict=True):
        values, indices = row.topk(5)
        print(photo)
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            print(f"  {value:6.1%}  {weights.categories[index]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
