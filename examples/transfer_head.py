"""Teach a published model your own classes: a new classifier is trained on the embeddings of a frozen body.

    python examples/transfer_head.py photos/ --model proxyless_cpu --out mine.safetensors

`photos/` holds one folder of images a class. Every fifth image is kept for validation. No GPU is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import proxylessnas
from proxylessnas.data.images import load_image


@torch.inference_mode()
def embed(body: torch.nn.Module, data: ImageFolder) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings [images, features] and the labels [images] of a whole data set."""
    embeddings, labels = [], []
    for images, targets in DataLoader(data, batch_size=32):
        embeddings.append(body(images))
        labels.append(targets)
    return torch.cat(embeddings), torch.cat(labels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a new classifier on a published model.")
    parser.add_argument("photos", type=Path, help="a folder with one folder of images a class")
    parser.add_argument("--model", default="proxyless_mobile", help="see `proxylessnas list`")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("mine.safetensors"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    transform = proxylessnas.get_weights(args.model).transforms()
    data = ImageFolder(args.photos, transform, loader=load_image)
    classes = len(data.classes)
    model = proxylessnas.create_model(args.model, pretrained=True, num_classes=classes).eval()
    head, model.classifier = model.classifier, torch.nn.Identity()  # without it the model returns embeddings
    x, y = embed(model, data)
    held_out = torch.arange(len(y)) % 5 == 4

    mean, std = x[~held_out].mean(0), x[~held_out].std(0) + 1e-3
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(args.steps):
        optimizer.zero_grad()
        F.cross_entropy(head((x[~held_out] - mean) / std), y[~held_out]).backward()
        optimizer.step()

    with torch.no_grad():  # fold the normalisation into the classifier, which then takes plain embeddings
        linear = head.linear
        linear.weight /= std
        linear.bias -= linear.weight @ mean
        model.classifier = head
        right = head(x[held_out]).argmax(1) == y[held_out]
    print(f"{classes} classes, {len(y)} images; validation: {int(right.sum())} of {len(right)} right")
    proxylessnas.save_weights(model, args.out, categories=data.classes)  # with architecture and preprocessing
    print(f"saved; use it with: proxylessnas predict {args.out} PHOTO")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
