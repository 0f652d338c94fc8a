"""MBConv, the mobile inverted bottleneck: ``k5e3``, and ``k5e3s`` with squeeze-and-excite."""

from __future__ import annotations

from dataclasses import dataclass

from .spec import ConvSpec, Layers, OpSpec, squeeze


@dataclass(frozen=True)
class MBConv(OpSpec):
    """Mobile inverted bottleneck: 1x1 expansion (absent at ratio 1), depthwise kxk, linear 1x1 projection.

    Squeeze-and-excite stands behind the depthwise convolution. Names and order of the layers are those of the
    original checkpoints. Widths are not rounded to multiples of 8, as in the original code.
    """

    kind, title, letters, example = "mbconv", "MBConv", "kes", "k5e3"
    official, official_keys = "MBInvertedConvLayer", ("kernel_size", "expand_ratio", "use_se")
    optional = ("inverted_bottleneck",)

    kernel: int
    ratio: float
    squeezed: bool = False

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return what it is made of, first to last."""
        wide = round(in_channels * self.ratio)
        return (
            *([ConvSpec("inverted_bottleneck", in_channels, wide)] if self.ratio > 1 else []),
            ConvSpec("depth_conv", wide, wide, self.kernel, stride, groups=wide),
            *([squeeze(wide, in_channels)] if self.squeezed else []),
            ConvSpec("point_linear", wide, out_channels, act=False),
        )
