"""Pictures and reports: nets as figures, searches as movies, runs as one HTML file.

    >>> from proxylessnas import report
    >>> from proxylessnas.published import CPU, GPU
    >>> nets = {net.name: report.layers_of(net) for net in (GPU, CPU)}
    >>> report.net_figure(nets, "nets.svg")  # doctest: +SKIP
    >>> report.write_report("runs/mine", "mine.html")  # doctest: +SKIP

Everything is made from what a run's folder holds; drawing needs matplotlib (``pip install
'proxylessnas[train]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names

if TYPE_CHECKING:
    from .html_report import write_movie_page as write_movie_page
    from .html_report import write_report as write_report
    from .net_drawing import net_figure as net_figure
    from .net_words import net_text as net_text
    from .net_words import tree_text as tree_text
    from .pareto import pareto_figure as pareto_figure
    from .search_movie import write_movie as write_movie
    from .search_story import Story as Story
    from .search_story import read_story as read_story
    from .shapes import Layer as Layer
    from .shapes import layers_of as layers_of
    from .subjects import open_subject as open_subject
    from .train_story import TrainStory as TrainStory
    from .train_story import read_train_story as read_train_story
    from .tree_drawing import tree_figure as tree_figure

_HOME = {
    "write_movie_page": "html_report",
    "write_report": "html_report",
    "net_figure": "net_drawing",
    "net_text": "net_words",
    "tree_text": "net_words",
    "pareto_figure": "pareto",
    "write_movie": "search_movie",
    "Story": "search_story",
    "read_story": "search_story",
    "Layer": "shapes",
    "layers_of": "shapes",
    "open_subject": "subjects",
    "TrainStory": "train_story",
    "read_train_story": "train_story",
    "tree_figure": "tree_drawing",
}
__all__ = list(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
