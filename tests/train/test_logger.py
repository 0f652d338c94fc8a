"""The log of a run: what it writes, what a kill leaves of it, and that it never stops a run."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runlog_tools import SIZES, STEPS, full_disk, has_tensorboard, lines, rows, scalars, story, train

from proxylessnas.errors import MissingExtraError
from proxylessnas.train.log_files import COLUMNS, EpochTable, LineLog
from proxylessnas.train.logger import RunLog

# ---- files


def test_the_files_of_a_run(tmp_path: Path) -> None:
    train(tmp_path / "a" / "b")
    log = lines(tmp_path / "a" / "b")
    assert [(x["event"], x["step"]) for x in log] == [
        ("note", 0),
        *[("step", 4), ("step", 8), ("step", 10), ("epoch", 10)],
        *[("step", 12), ("step", 16), ("step", 20), ("epoch", 20)],
        *[("step", 24), ("step", 28), ("step", 30), ("epoch", 30)],
        ("done", 30),
    ]
    assert log[1].items() >= {"epoch": 1, "loss": 0.5, "rate": 0.048, "images_per_second": 231.0}.items()
    assert log[1].items() >= {"waiting": 0.02, "memory_mib": 1234.5}.items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", log[0]["time"])
    table = rows(tmp_path / "a" / "b")
    assert tuple(table[0]) == COLUMNS
    assert [row["val_top1"] for row in table] == ["51.0", "52.0", "53.0"]
    assert [row["val_loss"] for row in table] == ["", "", ""]
    assert [row["waiting"] for row in table] == ["0.02"] * 3  # the log fills in what it knows
    assert float(table[0]["seconds_left"]) >= float(table[2]["seconds_left"]) == 0


def test_every_line_is_on_the_disk_at_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, **SIZES, console=False, curves=False) as log:
        log.event("start", path=tmp_path, share=float("nan"), nested={"a": [float("inf"), torch.tensor(2.5)]})
        log.step(1, 1, torch.tensor(float("nan")), 0.1)
        assert lines(tmp_path)[0].items() >= {"path": str(tmp_path), "share": None}.items()
        assert lines(tmp_path)[0]["nested"] == {"a": [None, 2.5]}
        assert lines(tmp_path)[1]["loss"] is None
        log.epoch({"epoch": 1, "val_loss": float("nan"), "extra": "kept"})
        assert rows(tmp_path)[0]["val_loss"] == ""
        assert lines(tmp_path)[2]["extra"] == "kept"


def test_steps_that_are_reported_now_and_then(tmp_path: Path) -> None:
    """A loop may report only every few steps; each multiple that was passed still gives a line."""
    with RunLog(
        tmp_path, epochs=1, steps_per_epoch=40, batch_size=1, console=False, step_lines_every=8
    ) as log:
        for step in (10, 20, 30, 40):
            log.step(step, 1, 1.0, 0.1)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40]
    with RunLog(tmp_path / "b", epochs=1, steps_per_epoch=5000, batch_size=1, console=False) as log:
        for step in range(1, 5001):
            log.step(step, 1, 1.0, 0.1)
    assert [line["step"] for line in lines(tmp_path / "b")] == list(range(50, 5001, 50))


def test_the_silent_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog.silent() as log:
        log.note("text")
        log.event("start")
        log.step(1, 1, 1.0, 0.1)
        log.validating(1, 2)
        log.epoch({"epoch": 1})
        assert log.rows == []
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


# ---- killed and continued


@pytest.mark.parametrize("kill_at", [0, 3.5, 4, 9.5, 9.9, 10, 11, 15.5, 19.9, 20, 27])
@pytest.mark.parametrize("back", [0, 1, 5])
def test_killed_and_continued_leaves_one_history(tmp_path: Path, kill_at: float, back: int) -> None:
    train(tmp_path / "whole")
    train(tmp_path / "cut", 0, kill_at)
    at = max(0, int(kill_at + 0.1) - back)  # steps at the last checkpoint
    # A checkpoint of an epoch's last step may be from before its validation.
    validated = at // STEPS - int(at > kill_at)
    train(tmp_path / "cut", at, validated=validated)
    assert story(tmp_path / "cut") == story(tmp_path / "whole")
    assert [row["epoch"] for row in rows(tmp_path / "cut")] == ["1", "2", "3"]
    assert not [path for path in (tmp_path / "cut").iterdir() if path.name.endswith(".tmp")]


LOG_FOR_EVER = """
import sys
from runlog_tools import SIZES
from proxylessnas.train.logger import RunLog
log = RunLog(sys.argv[1], **SIZES | {"epochs": 10**6}, curves=False, step_lines_every=1)
for step in range(1, 10**7):
    log.step(step, (step + 9) // 10, 1.0 / step, 0.1)
    if step % 10 == 0:
        log.epoch({"epoch": step // 10, "step": step})
    if step == 25:
        print("go", flush=True)
"""


def test_killed_for_good(tmp_path: Path, repo: Path) -> None:
    """A process that gets SIGKILL at any moment leaves whole files, and its successor tidies up."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repo), str(repo / "tests" / "tools")])}
    with subprocess.Popen(
        [sys.executable, "-c", LOG_FOR_EVER, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        time.sleep(0.2)
        process.kill()
    (tmp_path / "epochs.csv.1234-abcd.tmp").write_text("half", encoding="utf-8")
    seen = lines(tmp_path)
    steps = [line["step"] for line in seen if line["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 25
    ends = [int(row["epoch"]) for row in rows(tmp_path)]
    assert ends == list(range(1, len(ends) + 1))
    with RunLog(tmp_path, **SIZES, resume_step=23, resume_epoch=2, console=False, curves=False) as log:
        assert [row["epoch"] for row in log.rows] == [1, 2]
    assert [line["step"] for line in lines(tmp_path) if line["event"] == "step"] == list(range(1, 24))
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "epochs.csv"}


def test_a_line_cut_short_and_lines_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 0, 15)
    path = tmp_path / "log.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join([*whole[:2], b"\xff\x00 nonsense\n", b"[1]\n", b"\n", *whole[2:], b'{"event": "st'])
    )
    train(tmp_path, 10)
    train(tmp_path / "whole")
    assert story(tmp_path) == story(tmp_path / "whole")
    assert (tmp_path / "log.damaged.txt").read_bytes() == b"\xff\x00 nonsense\n[1]\n"
    told = capsys.readouterr().err
    assert "2 damaged line(s) moved to log.damaged.txt" in told
    path.write_text('{"event": "mine", "value": 1}', encoding="utf-8")  # no line end, but whole
    train(tmp_path, 30)
    assert [line["event"] for line in lines(tmp_path)] == ["mine", "note", "done"]


@pytest.mark.parametrize("damage", ["absent", "empty", "half", "text", "field", "binary"])
def test_a_damaged_table_is_made_anew(tmp_path: Path, damage: str) -> None:
    train(tmp_path, 0, 25)
    path = tmp_path / "epochs.csv"
    good = path.read_text(encoding="utf-8")
    if damage == "absent":
        path.unlink()
    elif damage == "half":
        path.write_text(good[: len(good) - 40], encoding="utf-8")
    else:
        text = {
            "empty": "",
            "text": good.replace("\n2,", "\nx,"),
            "field": '"' + "x" * 200_000,
            "binary": "\0\xff",
        }
        path.write_text(text[damage], encoding="latin-1")
    train(tmp_path, 25)
    assert [(r["epoch"], r["step"], r["val_top1"]) for r in rows(tmp_path)] == [
        ("1", "10", "51.0"),
        ("2", "20", "52.0"),
        ("3", "30", "53.0"),
    ]
    assert rows(tmp_path)[0] == next(iter(csv.DictReader(io.StringIO(good))))


def test_an_end_come_to_twice_is_told_once(tmp_path: Path) -> None:
    """A process may be killed behind its last line; the next one ends the run again."""
    train(tmp_path)
    before = story(tmp_path)
    train(tmp_path, 30)
    assert story(tmp_path) == before
    assert [line["event"] for line in lines(tmp_path)].count("done") == 1


def test_a_beginning_come_to_twice_is_told_once(tmp_path: Path) -> None:
    """A process may be killed before its first checkpoint; one killed later leaves its beginning."""
    for resume_step, wanted in (
        (0, ["begin", "step"]),
        (0, ["begin", "step"]),
        (1, ["begin", "step", "begin", "step"]),
    ):
        log = LineLog(tmp_path / "log.jsonl", resume_step, 0, pytest.fail)
        log.write("begin", {"step": 0})
        log.write("step", {"step": resume_step + 1})
        log.close()
        assert [line["event"] for line in lines(tmp_path)] == wanted


def test_an_epoch_done_twice_has_one_row(tmp_path: Path) -> None:
    table = EpochTable(tmp_path / "epochs.csv", 0, (), pytest.fail)
    for top1 in (1.0, 2.0):
        table.add({"epoch": 1, "val_top1": top1})
    assert [row["val_top1"] for row in rows(tmp_path)] == ["2.0"]
    assert EpochTable(tmp_path / "epochs.csv", 1, (), pytest.fail).rows == table.rows


# ---- what goes wrong with the disk


def test_a_full_disk_stops_no_run(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "log.jsonl"
    log = LineLog(path, 0, 0, told.append)
    log.write("start", {"step": 0})
    with full_disk(path.stat().st_size + 20):
        for step in range(3):
            log.write("step", {"step": step})
    log.write("step", {"step": 3})
    log.write("step", {"step": 4})
    log.close()
    assert [(x["event"], x["step"], x.get("lines_lost_before")) for x in lines(tmp_path)] == [
        ("start", 0, None),
        ("step", 3, 3),
        ("step", 4, None),
    ]
    (text,) = told
    assert str(path) in text
    assert "the run goes on" in text


def test_a_full_disk_at_the_end_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, **SIZES, console=False, curves=False, tensorboard=has_tensorboard()) as log:
        log.epoch({"epoch": 1, "train_loss": 1.0})
        with full_disk(0):
            log.step(11, 2, 1.0, 0.1)
            log.epoch({"epoch": 2, "train_loss": 0.9})
        assert [row["epoch"] for row in rows(tmp_path)] == ["1"]  # the old file is whole
        log.epoch({"epoch": 3, "train_loss": 0.8})
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]
    told = capsys.readouterr().err
    assert told.count("the table of epochs cannot be written") == 1
    assert told.count("the log cannot be written") == 1
    assert told.count("the log for TensorBoard cannot be written") == int(has_tensorboard())


def test_files_in_the_way_stop_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("log.jsonl", "epochs.csv", "curves.png"):
        (tmp_path / name).mkdir()
    train(tmp_path, curves=True)
    told = capsys.readouterr().err
    assert told.count("the log cannot be written (Is a directory") == 1
    assert told.count("the table of epochs cannot be written (Is a directory") == 1


# ---- optional parts


@pytest.mark.skipif(not has_tensorboard(), reason="TensorBoard is not installed")
def test_tensorboard_shows_one_history(tmp_path: Path) -> None:
    train(tmp_path, 0, 19, tensorboard=True)
    for path in (
        tmp_path / "tensorboard"
    ).iterdir():  # as if it were of another process and an earlier second
        path.rename(path.with_name("events.out.tfevents.0000000001.host.1"))
    assert scalars(tmp_path / "tensorboard")["train/loss"][-1][0] == 16
    train(tmp_path, 13, tensorboard=True)
    found = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in found["train/loss"]] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    assert found["train/loss"][0] == (4, 0.5)
    assert found["epoch/val_top1"] == [(10, 51.0), (20, 52.0), (30, 53.0)]
    assert "epoch/val_loss" not in found


def test_tensorboard_that_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, 0, 15)
    before = (tmp_path / "log.jsonl").read_bytes()
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'proxylessnas[train]'")):
        train(tmp_path, 10, tensorboard=True)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train(tmp_path, 0, 25, curves=True)
    first = (tmp_path / "curves.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    train(tmp_path, 20, curves=True)
    assert (tmp_path / "curves.png").read_bytes() != first


def test_curves_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train(tmp_path, curves=True)
    assert capsys.readouterr().err.count("note: no curves.png: ") == 1
    assert not (tmp_path / "curves.png").exists()
