"""What is shown of a run, on a terminal and elsewhere, and the figures in it."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import pytest
import torch
from runlog_tools import EPOCHS, SIZES, STEPS, lines_left, rows, terminal, train

from proxylessnas.train.console import Console, Recent, TimeLeft
from proxylessnas.train.logger import RunLog, memory_mib

# ---- what is shown


RECORD = {
    "epoch": 1,
    "step": 10,
    "train_loss": 1.234,
    "val_loss": 1.101,
    "val_top1": 61.2,
    "images_per_second": 231.4,
    "waiting": 0.02,
    "seconds": 194.0,
    "seconds_left": 5238.0,
}


def show(log: RunLog) -> None:
    for step in range(1, STEPS + 1):
        log.step(step, 1, 2.0 - step / 10, 0.048, 231.0, waiting=0.02, memory_mib=1234.5)
    log.validating(1, 2)
    log.epoch(RECORD)


def test_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(EPOCHS, STEPS, first_line_s=0.0, line_every_s=0.0)
    values = {
        "loss": 1.2345,
        "rate": 0.048,
        "images_per_second": 231.4,
        "waiting": 0.021,
        "memory_mib": 1234.5,
        "seconds_left": 2470.0,
    }
    console.note("a\x1b[2Jb")
    assert console.is_due()
    console.step(3, 7, values)
    console.step(
        3, 8, {**values, "loss": 12345.0, "rate": 2.5e-5, "images_per_second": 2.34, "waiting": None}
    )
    console.step(3, 9, {"loss": float("nan"), "rate": 0.00125, "memory_mib": 512.0, "seconds_left": 1e5})
    console.validating(3, 1, 2)
    console.epoch({**RECORD, "val_loss": None, "val_top1": None})
    console.close()
    assert capsys.readouterr() == (
        "",
        "note: a\\x1b[2Jb\n"
        "epoch 3/3  step 7/10  loss 1.234  rate 0.0480  231 images/s  waiting 2 %  1.2 GiB  left 41:10\n"
        "epoch 3/3  step 8/10  loss 1.23e+04  rate 2.50e-05  2.3 images/s  1.2 GiB  left 41:10\n"
        "epoch 3/3  step 9/10  loss nan  rate 0.00125  512 MiB  left 27:46:40\n"
        "epoch 1/3  train loss 1.234  231 images/s  3:14  left 1:27:18\n",
    )


def test_plain_lines_come_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, **SIZES, curves=False) as log:
        show(log)
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/3  train loss 1.234  val loss 1.101  top-1 61.20 %  231 images/s  3:14  left 1:27:18"
    ]


@pytest.mark.parametrize("width", [30, 60, 120])
def test_a_terminal(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(width, monkeypatch) as shown, RunLog(tmp_path, **SIZES, curves=False) as log:
        log.note("hello")
        show(log)
        log.step(11, 2, 1.0, 0.048, 231.0)
        log.note("bye")
    (text,) = shown
    left = lines_left(text)
    assert left[0] == "note: hello"
    assert left[1].startswith("epoch 1/3  ")
    assert "top-1 61.20 %" in left[1]
    assert ("train loss 1.234" in left[1]) == (width >= 60)
    assert ("3:14" in left[1]) == (width >= 120)
    assert left[2:] == ["note: bye", ""]  # no bar is left behind
    bars = [piece for piece in text.replace("\n", "\r").split("\r") if "|" in piece]
    assert bars
    assert all(len(piece) < width for piece in [*bars, left[1]])
    assert "\x1b" not in text


@pytest.mark.parametrize("stderr", ["none", "closed"])
def test_nobody_listens(tmp_path: Path, stderr: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if stderr == "closed" else None)
    train(tmp_path, console=True)
    assert len(rows(tmp_path)) == EPOCHS


def test_a_slow_loader_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, **SIZES, console=False, curves=False) as log:
        for epoch, waiting in enumerate((0.25, 0.41, 0.6), 1):
            log.epoch({"epoch": epoch, "waiting": waiting, "seconds": 60.0})
    told = capsys.readouterr().err
    assert told.count("the loader is the bottleneck") == 1
    assert "41 % of epoch 2" in told
    assert "--workers" in told


# ---- figures


def test_time_left() -> None:
    left = TimeLeft(epochs=4, steps_per_epoch=10)
    now = 100.0
    assert left.seconds() is None
    for step in range(1, 11):
        now += 60.0 if step == 1 else 2.0  # a first step that waits for a compiler
        left.step(step, 1, now)
    assert left.seconds() == pytest.approx(30 * 2.0)
    left.epoch(1, now + 5.0)  # its validation
    assert left.seconds() == pytest.approx(30 * 2.0 + 3 * 5.0)
    left.step(11, 2, now + 9.0)  # 7 s between the epochs in all, and a step
    assert left.seconds() == pytest.approx(29 * 2.0 + 3 * 7.0)
    assert left.seconds_per_step == pytest.approx(2.0)


def test_time_left_after_a_continuation_and_with_few_calls() -> None:
    left = TimeLeft(epochs=100, steps_per_epoch=100)
    for k in range(6):  # called every tenth step, from the middle of epoch 91
        left.step(9050 + 10 * k, 91, 5.0 * k)
    assert left.seconds() == pytest.approx(900 * 0.5)
    for k in range(1, 400):  # slower from here on: the old speed is forgotten
        left.step(9100 + k, 92, 25.0 + 3.0 * k)
    assert left.seconds_per_step == pytest.approx(3.0, rel=0.5)
    one_step = TimeLeft(epochs=5, steps_per_epoch=1)
    for k in range(1, 4):
        one_step.step(k, k, 4.0 * k)
        one_step.epoch(k, 4.0 * k + 1)
    assert one_step.seconds() == pytest.approx(8.0, abs=3.0)


def test_recent() -> None:
    mean = Recent(window=4)
    assert [mean.add(v) for v in (1.0, 3.0)] == [1.0, 2.0]
    assert math.isnan(mean.add(float("nan")))
    assert mean.add(2.0) == 2.0
    for _ in range(40):
        last = mean.add(10.0)
    assert last == pytest.approx(10.0, abs=0.01)


def test_memory() -> None:
    before = memory_mib("cpu")
    if before is None:
        pytest.skip("this system does not tell")
    block = torch.ones(64 << 20, dtype=torch.uint8) + 1
    after = memory_mib(torch.device("cpu"))
    assert after is not None
    assert 10 < before <= after < 1 << 20
    del block


@pytest.mark.gpu
def test_memory_of_a_gpu() -> None:
    block = torch.ones(64 << 20, dtype=torch.uint8, device="cuda")
    assert 64 <= (memory_mib(block.device) or 0) < 1024
