"""Images for TensorBoard: those that are asked for, where there is time for them; no run is lost by one."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from report_tools import TINY, probs_of
from runlog_tools import SIZES, has_tensorboard, images

from proxylessnas.arch.published import CIFAR10_DEMO
from proxylessnas.figures.tensorboard import model_png, probabilities_png
from proxylessnas.train.logger import RunLog

needs_tensorboard = pytest.mark.skipif(not has_tensorboard(), reason="TensorBoard is not installed")


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


def test_images() -> None:
    pytest.importorskip("matplotlib")
    early, late = (probabilities_png(TINY, probs_of(TINY, step)) for step in (1, 30))
    assert size_of(early) == size_of(late)
    assert early != late
    width, height = size_of(model_png(CIFAR10_DEMO))
    assert height > width > 300


@needs_tensorboard
def test_drawing_does_not_hold_a_run_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure that took its time is not drawn anew at once, but for the last one."""
    with Image.new("RGB", (3, 2)) as image:
        file = io.BytesIO()
        image.save(file, "PNG")
    calls, now = [], [0.0]
    monkeypatch.setattr("proxylessnas.train.logger.time", SimpleNamespace(monotonic=lambda: now[0]))

    def draw() -> bytes:
        calls.append(now[0])
        now[0] += 0.05
        return file.getvalue()

    with RunLog(tmp_path, **SIZES, console=False, curves=False, tensorboard=True) as log:
        for step in range(1, 6):
            log.image("a/b", step, draw)
        log.image("other", 5, draw)
        log.image("a/b", 6, draw, last=True)
    found = images(tmp_path / "tensorboard")
    assert {tag: [step for step, _ in images] for tag, images in found.items()} == {
        "a/b": [1, 6],
        "other": [5],
    }
    assert found["a/b"][0][1] == file.getvalue()
    assert len(calls) == 3
    with RunLog(tmp_path / "off", **SIZES, console=False, curves=False) as log:
        log.image("a/b", 1, draw)
    assert len(calls) == 3


@needs_tensorboard
def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with RunLog(tmp_path, **SIZES, console=False, curves=False, tensorboard=True) as log:
        for step in (1, 2):
            log.image("net", step, lambda: model_png(CIFAR10_DEMO), last=True)
    assert capsys.readouterr().err.count("no figures in TensorBoard: drawing charts needs matplotlib") == 1
    assert images(tmp_path / "tensorboard") == {}
