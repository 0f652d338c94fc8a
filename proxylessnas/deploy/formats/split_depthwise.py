"""Large depthwise filters as sums of small ones, for libraries that have no kernel for the large ones.

XNNPACK's depthwise kernels take up to 25 weights a channel. A 7x7 filter goes through its general
convolution, one channel at a time, and takes ten times as long as a 5x5 one. But a filter is the sum of its
rows, and rows at the same distance from the middle are a filter with symmetric padding and dilation: the
three rows in the middle, and each pair further out. The sum of these computes the same, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...models.batchnorm import fold_batchnorm

#: Weights a channel, up to which XNNPACK has a kernel of its own.
MOST_WEIGHTS = 25


class SplitDepthwise(nn.Module):
    """A depthwise convolution as a sum of smaller ones.

    Args:
        conv: for which :func:`is_wide` holds.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        height, width = conv.kernel_size
        middle = height // 2
        near = 1 if 3 * width <= MOST_WEIGHTS else 0
        parts = [_rows(conv, list(range(middle - near, middle + near + 1)), 1, near)]
        for far in range(near + 1, middle + 1):
            parts.append(_rows(conv, [middle - far, middle + far], 2 * far, far))
        if conv.bias is not None:
            parts[0].bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] as the convolution does."""
        y = self.parts[0](x)
        for part in list(self.parts)[1:]:
            y = y + part(x)
        return y


def is_wide(module: nn.Module) -> bool:
    """Return whether a module is a depthwise convolution too large for XNNPACK, and can be split."""
    if type(module) is not nn.Conv2d or module.groups != module.in_channels or module.padding_mode != "zeros":
        return False
    height, width = module.kernel_size
    same = module.padding == (height // 2, width // 2) and module.dilation == (1, 1)
    few = height % 2 == 1 and 2 * width <= MOST_WEIGHTS
    return same and few and height * width > MOST_WEIGHTS and module.out_channels == module.groups > 1


def split_depthwise(model: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """Return a copy of a model whose large depthwise convolutions are sums; BatchNorm is folded.

    Args:
        model: any model; it is not changed.
        wanted: whether to split the convolution of a name.

    Returns:
        A copy in evaluation mode.
    """
    twin = fold_batchnorm(model)
    for name, module in list(twin.named_modules()):
        if is_wide(module) and wanted(name):
            assert isinstance(module, nn.Conv2d)
            parent, _, own = name.rpartition(".")
            setattr(twin.get_submodule(parent), own, SplitDepthwise(module).eval())
    return twin


@torch.no_grad()
def _rows(conv: nn.Conv2d, rows: list[int], dilation: int, pad: int) -> nn.Conv2d:
    """Return the convolution with some rows of the filters."""
    width = conv.kernel_size[1]
    part = nn.Conv2d(
        conv.in_channels, conv.out_channels, (len(rows), width), (conv.stride[0], conv.stride[1]),
        (pad, width // 2), (dilation, 1), conv.groups, bias=False,
    )  # fmt: skip
    part.weight = nn.Parameter(conv.weight[:, :, rows].clone(), requires_grad=False)
    return part
