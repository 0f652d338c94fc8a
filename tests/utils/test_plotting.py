"""Charts show what they are given, with any class names, in files that are whole or not there."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chart_tools import share_of, size_of

from proxylessnas.data.categories import categories
from proxylessnas.errors import DataError, MissingExtraError
from proxylessnas.utils.plotting import confusion_csv, confusion_png, curves_png, require_matplotlib

needs_matplotlib = pytest.mark.usefixtures("_matplotlib")
DARK, GREY, BLUE, ORANGE, GREEN = (8, 48, 107), (228, 228, 228), (0, 114, 178), (213, 94, 0), (0, 158, 115)
ODD = ["a" * 300, "$x_{", "two\nlines", "=1+1", "猫", "", "a,b", 'say "hi"', "\x1b[31m", "100 %"]


@pytest.fixture
def _matplotlib() -> None:
    pytest.importorskip("matplotlib")


def identity(n: int) -> torch.Tensor:
    return 5 * torch.eye(n, dtype=torch.long)


# ---- confusion matrices


@needs_matplotlib
@pytest.mark.parametrize("n", [1, 2, 10, 26, 1500])
def test_a_diagonal(tmp_path: Path, n: int) -> None:
    """A right answer is a cell of the darkest shade; the matrix fills most of the image."""
    path = tmp_path / "a.png"
    confusion_png(identity(n), [f"class {i}" for i in range(n)], path)
    cells = min(n, 750)  # 1500 classes share cells by twos
    assert 0.4 / cells < share_of(path, DARK) < 1.1 / cells
    assert share_of(path, GREY) < 0.001
    assert all(500 < side < 3500 for side in size_of(path))
    confusion_png(identity(n).flip(0).tolist(), [str(i) for i in range(n)], path)
    if n > 1:
        assert 0.3 / cells < share_of(path, DARK) < 1.1 / cells


@needs_matplotlib
def test_absent_classes_are_grey_rows_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    counts = identity(30)
    counts[:15] = 0
    counts[20, :15] = 1  # the absent classes are predicted, though
    confusion_png(counts, [str(i) for i in range(30)], path)
    assert 0.3 < share_of(path, GREY) < 0.5
    names = [str(i) for i in range(1000)]
    few = torch.zeros(1000, 1000, dtype=torch.long)
    few[500:510, 500:510] = identity(10)
    confusion_png(few, names, path)
    assert share_of(path, GREY) < 0.01
    assert share_of(path, DARK) > 0.04
    confusion_png(0 * few, names, path)
    assert share_of(path, GREY) > 0.4


@needs_matplotlib
def test_any_names(tmp_path: Path) -> None:
    for n in (10, 60, 61):
        confusion_png(identity(n), (ODD * 10)[:n], tmp_path / "a.png")
        assert max(size_of(tmp_path / "a.png")) < 2500


def test_table(tmp_path: Path) -> None:
    counts = torch.arange(100).view(10, 10)
    confusion_csv(counts, ODD, tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    quoted = [f"'{name}" if name == "=1+1" else name for name in ODD]
    assert head == ["true \\ predicted", *quoted]
    assert [row[0] for row in rows] == quoted
    assert [[int(cell) for cell in row[1:]] for row in rows] == counts.tolist()


@needs_matplotlib
@pytest.mark.parametrize(("counts", "names"), [([[1, 2]], ["a", "b"]), ([[1]], ["a", "b"]), ([], [])])
def test_what_does_not_fit(tmp_path: Path, counts: list[list[int]], names: list[str]) -> None:
    for write in (confusion_png, confusion_csv):
        with pytest.raises(DataError, match=rf"{len(names)} names do not fit"):
            write(counts, names, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# ---- learning curves


def epoch(i: int, **changes: Any) -> dict[str, Any]:
    loss = math.exp(-i / 10)
    values = {"train_loss": 0.5 + 2 * loss, "val_loss": 0.3 + 2 * loss, "val_top1": 90 * (1 - loss)}
    return {"epoch": i, "step": 10 * i, **values, "rate": 0.05 / i, "memory_mib": None, **changes}


@needs_matplotlib
@pytest.mark.parametrize("epochs", [1, 30, 300])
def test_learning_curves(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "a.png"
    curves_png([epoch(i + 1) for i in range(epochs)], path)
    for color in (BLUE, ORANGE, GREEN):
        assert share_of(path, color) > 1e-5
    assert size_of(path)[1] > 900


@needs_matplotlib
def test_missing_values_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = [epoch(i + 1) for i in range(6)]
    rows[0].update(train_loss=None, val_loss=math.inf, val_top1=math.nan)
    del rows[1]["val_loss"], rows[1]["rate"]
    curves_png(rows, path)
    whole = size_of(path)
    assert share_of(path, ORANGE) > 1e-5
    curves_png([epoch(i + 1, val_loss=None, val_top1=None) for i in range(6)], path)
    assert share_of(path, ORANGE) == 0
    assert share_of(path, BLUE) > 1e-5
    assert size_of(path)[1] < 0.8 * whole[1]  # no panel without anything in it
    curves_png([{"epoch": 1, "val_top1": 10.0}], path)
    assert share_of(path, ORANGE) > 1e-5


@needs_matplotlib
@pytest.mark.parametrize("loss", [1e30, 1e-12, 0.0])
def test_extreme_losses_and_rates(tmp_path: Path, loss: float) -> None:
    curves_png([epoch(1, rate=0.0), epoch(2, train_loss=loss, rate=0.0)], tmp_path / "a.png")
    assert share_of(tmp_path / "a.png", BLUE) > 1e-5


@needs_matplotlib
@pytest.mark.parametrize("rows", [[], [{"epoch": 1}], [epoch(1, **dict.fromkeys(list(epoch(1))[2:]))]])
def test_nothing_to_draw(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        curves_png(rows, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


# ---- files and libraries


@needs_matplotlib
def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    curves_png([epoch(1)], str(path))
    first = path.read_bytes()
    curves_png([epoch(1)], path)
    assert path.read_bytes() == first  # no date in it: the same figures give the same file
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        curves_png([epoch(1)], tmp_path / "nowhere" / "a.png")


@needs_matplotlib
def test_settings_of_the_user_are_neither_used_nor_changed(tmp_path: Path) -> None:
    import matplotlib

    curves_png([epoch(1)], tmp_path / "a.png")
    with matplotlib.rc_context({"axes.facecolor": "black", "text.usetex": True, "savefig.dpi": 30}):
        before = dict(matplotlib.rcParams)
        curves_png([epoch(1)], tmp_path / "b.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


PYPLOT = """
import sys
from proxylessnas.utils.plotting import confusion_png, curves_png
assert "matplotlib" not in sys.modules
curves_png([{"epoch": 1, "rate": 0.1}], sys.argv[1])
confusion_png([[1]], ["a"], sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""


@needs_matplotlib
def test_pyplot_is_not_needed(tmp_path: Path, repo: Path) -> None:
    words = [sys.executable, "-c", PYPLOT, str(tmp_path / "a.png")]
    done = subprocess.run(words, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (
        require_matplotlib,
        lambda: curves_png([epoch(1)], tmp_path / "a.png"),
        lambda: confusion_png(identity(10), categories("cifar10"), tmp_path / "a.png"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'proxylessnas\[train\]'"):
            draw()
    assert list(tmp_path.iterdir()) == []
    confusion_csv(identity(10), categories("cifar10"), tmp_path / "a.csv")
