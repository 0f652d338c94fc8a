"""Use a model as a backbone: feature maps at several resolutions, for detection or segmentation.

    python examples/backbone_features.py --model proxyless_gpu --size 320

Add --pretrained to start from the published weights.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import proxylessnas


class Neck(nn.Module):
    """Bring the last three maps of a backbone to one width, as a feature pyramid does."""

    def __init__(self, backbone: nn.Module, width: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        channels = [info["num_chs"] for info in backbone.feature_info[-3:]]
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, kernel_size=1) for count in channels)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Map images [N, 3, H, W] to three maps [N, width, H / stride, W / stride], finest first."""
        maps = self.backbone.forward_intermediates(images, indices=3)
        return [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show the feature maps of a model.")
    parser.add_argument("--model", default="proxyless_mobile", help="see `proxylessnas list`")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images, px")
    parser.add_argument("--pretrained", action="store_true")
    args = parser.parse_args(argv)

    backbone = proxylessnas.create_model(args.model, pretrained=args.pretrained, num_classes=0)
    backbone.freeze_bn()  # small batches would spoil its statistics; this survives .train()
    neck = Neck(backbone).train()
    images = torch.rand(2, 3, args.size, args.size)

    print(f"{args.model}, images {list(images.shape)}")
    for info, x in zip(backbone.feature_info, backbone.forward_intermediates(images), strict=True):
        print(f"  stride {info['reduction']:2}  {list(x.shape)!s:18}  {info['module']}")
    maps = neck(images)
    sum(x.square().mean() for x in maps).backward()
    trained = sum(p.grad is not None for p in neck.parameters())
    print(f"pyramid: {[list(x.shape) for x in maps]}; {trained} parameter tensors received a gradient")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
