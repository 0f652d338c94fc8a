"""The universal inverted bottleneck of MobileNetV4 (Qin et al. 2024): ``u3-5e4``, ``c7e4`` and ``n4``.

An inverted bottleneck with a depthwise convolution before the expansion, behind it, at both places or at
neither; behind it alone it is an MBConv. The one before has BatchNorm but no activation, the projection
likewise, and the stride is that of the last depthwise convolution. With ``s`` at the end, squeeze-and-excite
stands before the projection.
"""

from __future__ import annotations

from dataclasses import dataclass

from .spec import ConvSpec, Layers, OpSpec, squeeze


@dataclass(frozen=True)
class ExtraDW(OpSpec):
    """Depthwise, 1x1 expansion, depthwise with the stride, linear 1x1 projection: ``u3-5e4``.

    On narrow maps the first depthwise convolution is nearly free, and together they see as far as a larger
    one does.
    """

    kind, title, letters, example, mark = "extra_dw", "extra-depthwise bottleneck", "u-es", "u3-5e4", "u "
    official = "UIBExtraDWLayer"
    official_keys = ("start_kernel_size", "kernel_size", "expand_ratio", "use_se")

    start: int
    kernel: int
    ratio: float
    squeezed: bool = False

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return what it is made of, first to last."""
        wide = round(in_channels * self.ratio)
        return (
            ConvSpec("start_conv", in_channels, in_channels, self.start, groups=in_channels, act=False),
            ConvSpec("inverted_bottleneck", in_channels, wide),
            ConvSpec("depth_conv", wide, wide, self.kernel, stride, groups=wide),
            *([squeeze(wide, in_channels)] if self.squeezed else []),
            ConvSpec("point_linear", wide, out_channels, act=False),
        )


@dataclass(frozen=True)
class ConvNextLike(OpSpec):
    """Depthwise with the stride, 1x1 expansion, linear 1x1 projection: ``c7e4``.

    A large kernel costs little there, as it runs over the narrow map.
    """

    kind, title, letters, example, mark = "convnext", "ConvNeXt-like bottleneck", "ces", "c7e4", "c "
    official, official_keys = "UIBConvNextLayer", ("kernel_size", "expand_ratio", "use_se")

    kernel: int
    ratio: float
    squeezed: bool = False

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return what it is made of, first to last."""
        wide = round(in_channels * self.ratio)
        return (
            ConvSpec(
                "start_conv", in_channels, in_channels, self.kernel, stride, groups=in_channels, act=False
            ),
            ConvSpec("inverted_bottleneck", in_channels, wide),
            *([squeeze(wide, in_channels)] if self.squeezed else []),
            ConvSpec("point_linear", wide, out_channels, act=False),
        )


@dataclass(frozen=True)
class FFN(OpSpec):
    """1x1 expansion, linear 1x1 projection: ``n4``, which mixes channels alone and so has no stride."""

    kind, title, letters, example = "ffn", "1x1 bottleneck", "ns", "n4"
    official, official_keys = "UIBFFNLayer", ("expand_ratio", "use_se")
    strides = (1,)

    ratio: float
    squeezed: bool = False

    def layers(self, in_channels: int, out_channels: int, stride: int) -> Layers:
        """Return what it is made of, first to last."""
        wide = round(in_channels * self.ratio)
        return (
            ConvSpec("inverted_bottleneck", in_channels, wide),
            *([squeeze(wide, in_channels)] if self.squeezed else []),
            ConvSpec("point_linear", wide, out_channels, act=False),
        )
