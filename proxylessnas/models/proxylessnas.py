"""The MBConv model that an :class:`~proxylessnas.arch.arch.Arch` describes (ProxylessNAS, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..arch.arch import Arch
from .base import ImageClassifier, check_in_chans, check_rate
from .layers import ConvLayer, ResidualBlock


class ProxylessNAS(ImageClassifier):
    """Stem, MBConv blocks, 1x1 convolution, global pooling, linear classifier.

    Modules and parameters have the names of the original checkpoints, so those load with ``strict=True``.

    Args:
        arch: the architecture.
        num_classes: outputs; 0 returns embeddings; None takes the architecture's.
        in_chans: input channels; None takes the architecture's.
        global_pool: "avg", "max", "avgmax" or "" (with num_classes=0).
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block with a shortcut; grows linearly from 0 over the
            blocks.
        device: where to create the parameters; "meta" creates none.

    Raises:
        ValueError: an argument is out of range.
        ArchError: a registered operation is missing.
    """

    def __init__(
        self,
        arch: Arch,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
    ) -> None:
        super().__init__(arch, arch.last, drop_rate)
        check_rate("drop_path_rate", drop_path_rate)
        options: dict[str, Any] = {
            "activation": arch.act, "eps": arch.bn_eps, "momentum": arch.bn_momentum, "device": device
        }  # fmt: skip
        self.in_chans = check_in_chans(in_chans, arch)
        self.first_conv = ConvLayer(self.in_chans, arch.stem, 3, arch.stem_stride, **options)
        blocks = arch.blocks
        steps = max(len(blocks) - 1, 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(block, drop_path_rate=drop_path_rate * i / steps, **options)
            for i, block in enumerate(blocks)
        )
        self.feature_mix_layer = ConvLayer(blocks[-1].out_channels, arch.last, 1, **options)
        self._set_head(num_classes, global_pool, device)
        reduction, last = arch.stem_stride, {}
        last[reduction] = (arch.stem, "first_conv")
        for i, block in enumerate(blocks):
            reduction *= block.stride
            last[reduction] = (block.out_channels, f"blocks.{i}")
        self.feature_info = [{"num_chs": c, "reduction": r, "module": m} for r, (c, m) in last.items()]

    def stem_and_blocks(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(module name, output)`` after the stem and after every block."""
        x = self.first_conv(x)
        yield "first_conv", x
        for i, block in enumerate(self.blocks):
            x = block(x)
            yield f"blocks.{i}", x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, [N, last, H / 32, W / 32] for the published models, before pooling."""
        x = self.first_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.feature_mix_layer(x)
