"""Pictures for TensorBoard: how alpha stands, and the net that would be derived."""

from __future__ import annotations

from collections.abc import Sequence

from ..arch.arch import Arch
from ..arch.space import SearchSpace
from ..arch.tree import TreeArch
from ..utils.plotting import PngBuffer, open_figure, require_matplotlib
from .draw_model import layers_of, net_figure
from .draw_tree import tree_figure
from .probability_map import ProbabilityMap


def probabilities_png(space: SearchSpace, probs: Sequence[Sequence[float]]) -> bytes:
    """Return the probabilities, [blocks][candidates], as a heat map.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    file = PngBuffer()
    with open_figure(
        file, 1.2 + 0.6 * len(space.columns), 0.9 + 0.24 * len(space.positions), dpi=100
    ) as figure:
        ProbabilityMap(figure.add_subplot(), space).show(probs)
    return file.getvalue()


def net_png(arch: Arch | TreeArch) -> bytes:
    """Return the figure of a net.

    Raises:
        MissingExtraError: matplotlib is not installed.
        LatencyError: it has no blocks that could be drawn.
    """
    file = PngBuffer()
    if isinstance(arch, TreeArch):
        tree_figure(arch, file)
    else:
        net_figure({arch.name: layers_of(arch)}, file)
    return file.getvalue()
