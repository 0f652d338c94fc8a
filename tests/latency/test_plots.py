"""Charts of latencies show what they are given, with any names, in files that are whole or not there."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chart_tools import share_of, size_of
from PIL import Image

from proxylessnas.errors import DataError, MissingExtraError
from proxylessnas.latency.plots import Named, Point, accuracy_png, latency_png, prediction_png

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
ODD = ["a" * 300, "$x_{", "two\nlines", "", "\x1b[31m", "100 %"]


@pytest.fixture(autouse=True)
def _matplotlib(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("matplotlib")


def point(name: str = "net", ms: float = 10.0, **changes: Any) -> Point:
    values = {"name": name, "ms": ms, "low_ms": 0.9 * ms, "high_ms": 1.2 * ms, "top1": 70 + ms / 10}
    return Point(**{**values, "published": True, "peer": False, **changes})


# ---- accuracy against latency


def test_own_models_and_others_have_colours_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    accuracy_png({"torch": [point("a"), point("b", 20.0)]}, path)
    assert share_of(path, BLUE) > 1e-5
    assert share_of(path, ORANGE) == 0
    accuracy_png({"torch": [point("a"), point("b", 20.0, peer=True)]}, path, note="a machine")
    assert share_of(path, ORANGE) > 1e-5


def test_published_accuracies_are_hollow_marks(tmp_path: Path) -> None:
    hollow, filled = tmp_path / "hollow.png", tmp_path / "filled.png"
    accuracy_png({"torch": [point(published=True)]}, hollow)
    accuracy_png({"torch": [point(published=False)]}, filled)
    assert share_of(filled, BLUE) > 1.5 * share_of(hollow, BLUE) > 0


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
def test_a_panel_a_setting(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.png"
    accuracy_png({f"setting {i}": [point(ms=1.0 + i)] for i in range(count)}, path)
    across = 1 if count == 1 else 2 if count <= 4 else 3
    width, height = size_of(path)
    assert 600 * across < width < 1400 * across
    assert height > 400 * -(-count // across)


def test_small_and_large_latencies_in_one_panel(tmp_path: Path) -> None:
    """A logarithmic axis, on which neither is squeezed to the edge."""
    path = tmp_path / "a.png"
    nets = [point("small", 0.01), point("large", 1e4, top1=99.9), point("low", top1=0.1)]
    accuracy_png({"torch": nets}, path)
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    sides = range(pixels.width), range(pixels.height)
    columns = [x for x in sides[0] if any(pixels.getpixel((x, y)) == BLUE for y in sides[1])]
    assert max(columns) - min(columns) > 0.5 * pixels.width


def test_any_names_and_crowds(tmp_path: Path) -> None:
    nets = [point(name, 10 + i % 3 / 50, top1=75 + i % 4 / 100) for i, name in enumerate(ODD * 4)]
    accuracy_png({"$\\frac": nets}, tmp_path / "a.png", note="$x_{")
    prediction_png([(1, 1)], tmp_path / "b.png", title="$x_{" * 40, summary="word " * 100,
                   named=[Named(name, 1 + i / 99, 1.0) for i, name in enumerate(ODD)])  # fmt: skip
    assert max(*size_of(tmp_path / "a.png"), *size_of(tmp_path / "b.png")) < 2500


def test_nothing_or_too_much_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        accuracy_png({}, tmp_path / "a.png")
    with pytest.raises(DataError, match="nothing to draw"):
        accuracy_png({"torch": []}, tmp_path / "a.png")
    with pytest.raises(DataError, match="13 settings"):
        accuracy_png({str(i): [point()] for i in range(13)}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# ---- predicted against measured


def test_predictions(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    prediction_png([(i, 1.05 * i) for i in range(10, 30)], path, summary="good")
    assert share_of(path, BLUE) > 1e-5
    assert share_of(path, ORANGE) == 0
    width, height = size_of(path)
    assert 0.8 < width / height < 1.2  # one scale for both axes
    prediction_png([], path, named=[Named("a", 1.0, 2.0)])
    assert share_of(path, ORANGE) > 1e-5


@pytest.mark.parametrize("value", [1e-9, 1.0, 1e9])
def test_a_single_model_and_any_size(tmp_path: Path, value: float) -> None:
    prediction_png([(value, value)], tmp_path / "a.png")


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_what_is_no_latency(tmp_path: Path, pair: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="not a positive number"):
        prediction_png([pair], tmp_path / "a.png")
    with pytest.raises(DataError, match="nothing to draw"):
        prediction_png([], tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# ---- files and libraries


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    import matplotlib

    prediction_png([(1, 1), (2, 2)], tmp_path / "a.png", named=[Named("x", 1.5, 1.4)])
    accuracy_png({"torch": [point("x")]}, tmp_path / "c.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "text.usetex": True, "savefig.dpi": 30}):
        prediction_png([(1, 1), (2, 2)], tmp_path / "b.png", named=[Named("x", 1.5, 1.4)])
        accuracy_png({"torch": [point("x")]}, tmp_path / "d.png")
    for one, other in (("a", "b"), ("c", "d")):
        assert (tmp_path / f"{one}.png").read_bytes() == (tmp_path / f"{other}.png").read_bytes()


PYPLOT = """
import sys
from proxylessnas.latency.plots import prediction_png
assert "matplotlib" not in sys.modules
prediction_png([(1, 2)], sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""


def test_pyplot_is_not_needed(tmp_path: Path, repo: Path) -> None:
    words = [sys.executable, "-c", PYPLOT, str(tmp_path / "a.png")]
    done = subprocess.run(words, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'proxylessnas\[train\]'"):
        prediction_png([(1, 1)], tmp_path / "a.png")
    with pytest.raises(MissingExtraError, match="matplotlib"):
        accuracy_png({"torch": [point()]}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_latency_without_accuracy_is_drawn_as_bars(tmp_path: Path) -> None:
    """One bar a model, as long as its latency, with its figure and the line from 10 to 90 %."""
    from xml.etree import ElementTree

    points = [
        Point("slow", 8.0, 7.0, 9.0, None, False, False),
        Point("$fast", 2.0, 1.9, 2.1, None, False, True),
    ]
    file = io.BytesIO()
    latency_png({"torch, 1 thread": points, "none": []}, file, note="a machine")
    svg = ElementTree.fromstring(file.getvalue())
    texts = [text for element in svg.iter() if (text := (element.text or "").strip())]
    for said in ("slow", "$fast", "8", "2", "torch, 1 thread", "latency of a call (ms)", "a machine"):
        assert said in texts
    fills = {}
    for element in svg.iter():
        color = re.search(r"fill: (#0072b2|#d55e00)", element.get("style", ""))
        if color:
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", element.get("d", ""))]
            fills[color[1]] = max(xs) - min(xs)
    assert fills["#0072b2"] / fills["#d55e00"] == pytest.approx(8 / 2, rel=0.01)
    with pytest.raises(DataError, match="nothing to draw"):
        latency_png({}, tmp_path / "a.png")
    with pytest.raises(DataError, match="13 settings"):
        latency_png({str(i): points for i in range(13)}, tmp_path / "a.png")
