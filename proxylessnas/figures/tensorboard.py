"""Images for TensorBoard: how alpha stands, and the model that would be derived."""

from __future__ import annotations

from collections.abc import Sequence

from ..arch.arch import Arch
from ..arch.space_base import Space
from ..arch.tree import TreeArch
from ..utils.plotting import PngBuffer, open_figure, require_matplotlib
from .draw_model import layers_of, model_figure
from .draw_tree import tree_figure
from .probability_map import ProbabilityMap, map_size_in


def probabilities_png(space: Space, probs: Sequence[Sequence[float]]) -> bytes:
    """Return the probabilities, [blocks][candidates], as a heat map.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    file = PngBuffer()
    width_in, height_in = map_size_in(space)
    with open_figure(file, 1.2 + width_in, 0.9 + height_in, dpi=100) as figure:
        ProbabilityMap(figure.add_subplot(), space).show(probs)
    return file.getvalue()


def model_png(arch: Arch | TreeArch) -> bytes:
    """Return the figure of a model.

    Raises:
        MissingExtraError: matplotlib is not installed.
        LatencyError: it has no blocks that could be drawn.
    """
    file = PngBuffer()
    if isinstance(arch, TreeArch):
        tree_figure(arch, file)
    else:
        model_figure({arch.name: layers_of(arch)}, file)
    return file.getvalue()
