"""Images and reports: models as figures, searches as movies, runs as one HTML file.

    >>> from proxylessnas import report
    >>> from proxylessnas.arch.published import CPU, GPU
    >>> models = {model.name: report.layers_of(model) for model in (GPU, CPU)}
    >>> report.model_figure(models, "nets.svg")  # doctest: +SKIP
    >>> report.write_report("runs/mine", "mine.html")  # doctest: +SKIP

Everything is made from what a run's folder holds; drawing needs matplotlib (``pip install
'proxylessnas[train]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from ..figures.draw_model import Layer as Layer
    from ..figures.draw_model import layers_of as layers_of
    from ..figures.draw_model import model_figure as model_figure
    from ..figures.draw_tree import tree_figure as tree_figure
    from .draw_search import write_movie as write_movie
    from .model_page import model_text as model_text
    from .model_page import tree_text as tree_text
    from .pareto import pareto_figure as pareto_figure
    from .report import write_movie_page as write_movie_page
    from .report import write_report as write_report
    from .resolve import open_subject as open_subject
    from .runs import SearchRun as SearchRun
    from .runs import TrainRun as TrainRun
    from .runs import read_run as read_run
    from .runs import read_train_run as read_train_run

_NAMES = {
    "..figures.draw_model": "Layer layers_of model_figure",
    "..figures.draw_tree": "tree_figure",
    ".draw_search": "write_movie",
    ".model_page": "model_text tree_text",
    ".pareto": "pareto_figure",
    ".report": "write_movie_page write_report",
    ".resolve": "open_subject",
    ".runs": "Story TrainStory read_run read_train_run",
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _NAMES)
