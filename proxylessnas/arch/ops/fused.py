"""Fused MBConv of EfficientNetV2: ``f3e4``, and ``f3e4s`` with squeeze-and-excite."""

from __future__ import annotations

from dataclasses import dataclass

from .spec import ConvSpec, Layers, OpSpec, squeeze


@dataclass(frozen=True)
class FusedMBConv(OpSpec):
    """Fused MBConv: a kxk convolution that expands, and a linear 1x1 projection (absent at ratio 1).

    Where arithmetic is cheap and memory is not, one dense convolution takes less time than an expansion and a
    depthwise one. At ratio 1 it is a single kxk convolution with ReLU6, as in EfficientNetV2.
    """

    kind, title, letters, example, mark = "fused", "fused MBConv", "fes", "f3e4", "f "
    official, official_keys = "FusedMBConvLayer", ("kernel_size", "expand_ratio", "use_se")
    optional = ("point_linear",)

    kernel: int
    ratio: float
    squeezed: bool = False

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return what it is made of, first to last."""
        wide = round(in_channels * self.ratio) if self.ratio > 1 else out_channels
        return (
            ConvSpec("fused_conv", in_channels, wide, self.kernel, stride),
            *([squeeze(wide, in_channels)] if self.squeezed else []),
            *([ConvSpec("point_linear", wide, out_channels, act=False)] if self.ratio > 1 else []),
        )
