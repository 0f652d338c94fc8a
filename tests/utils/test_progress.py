"""Bars: there on a terminal, silent elsewhere, with or without tqdm, and never wider than the terminal."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from runlog_tools import lines_left, terminal

from proxylessnas.errors import printable
from proxylessnas.utils import progress
from proxylessnas.utils.progress import Bar, StepBar, Steps, clock, columns, fitted, is_terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(total: int | None, enabled: bool = True) -> None:
    bar = Bar("net.pth", total, 1_000_000, enabled)
    bar.update(500_000)
    bar.update(500_000)
    bar.close()


@pytest.fixture(params=["tqdm", "without tqdm"])
def tqdm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a test with tqdm and without."""
    if request.param == "tqdm":
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    return bool(request.param == "tqdm")


@pytest.mark.parametrize("total", [2_000_000, None])
def test_terminal(total: int | None, tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(total)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "net.pth" in shown
    assert "2.0" in shown
    assert ("100" in shown) == (total is not None)
    assert shown.endswith("\n")


@pytest.mark.parametrize("stderr", [io.StringIO(), Terminal(), None], ids=["a file", "switched off", "none"])
def test_silence(stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    run(2_000_000, enabled=not isinstance(stderr, Terminal))
    assert stderr is None or stderr.getvalue() == ""


FIELDS = [("loss 1.234", 0), ("rate 0.0480", 3), ("left 41:10", 1), ("1.2 GiB", 2)]


@pytest.mark.parametrize("width", [1, 12, 40, 60, 80, 100, 200])
def test_a_step_bar_never_wraps_and_leaves_nothing(
    width: int, tqdm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(width, monkeypatch) as shown:
        bar = StepBar()
        bar.show("epoch 3/30", 120, 351, FIELDS)
        bar.show("epoch 3/30", 3510, 351, FIELDS[:1])
        bar.close()
        sys.stderr.write("after\n")
    (text,) = shown
    pieces = [piece for line in text.split("\n") for piece in line.split("\r") if piece.strip()]
    assert all(len(piece) < max(width, 2) for piece in pieces[:-1]), pieces
    assert "\x1b" not in text
    assert lines_left(text) == ["after", ""]
    if width >= 60:
        assert "epoch 3/30  34 % |" in pieces[0]
        assert "| 120/351  loss 1.234" in pieces[0]
        assert "| 351/351" in pieces[1]
    assert ("left 41:10" in text) == (width >= 60)
    assert ("1.2 GiB" in text) == (width >= 80)
    assert ("rate 0.0480" in text) == (width >= 100)
    assert ("█" in text) == (tqdm and width >= 40)


def test_what_is_printed_gets_a_line_of_its_own(tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(80, monkeypatch) as shown:
        bar = StepBar()
        for done in (10, 20):
            bar.show("epoch 1/2", done, 100, FIELDS)
            progress.make_room()
            sys.stderr.write(f"note {done}\n")
        bar.close()
        progress.make_room()
    assert lines_left(shown[0]) == ["note 10", "note 20", ""]


def test_a_step_bar_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes may be forked while it is there."""
    pytest.importorskip("tqdm")
    before = threading.active_count()
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = StepBar()
    bar.show("epoch 1/1", 1, 2, [])
    assert threading.active_count() == before
    assert "50 %" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    bar.close()


def test_a_bar_outlives_its_terminal(tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    bar = StepBar()
    bar.show("epoch 1/1", 1, 2, [])
    stream.close()
    bar.show("epoch 1/1", 2, 2, [])
    bar.clear()
    bar.close()


def test_what_counts_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_terminal(None)
    assert not is_terminal(io.StringIO())
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(closed)
    monkeypatch.setenv("TERM", "xterm")
    assert is_terminal(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())


def test_the_width_of_what_is_no_terminal() -> None:
    assert columns(None) == columns(io.StringIO()) == 80


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (100, "loss 1.234  rate 0.0480  left 41:10  1.2 GiB"),
        (44, "loss 1.234  rate 0.0480  left 41:10  1.2 GiB"),
        (43, "loss 1.234  left 41:10  1.2 GiB"),
        (30, "loss 1.234  left 41:10"),
        (10, "loss 1.234"),
        (4, "loss"),
        (0, ""),
    ],
)
def test_fields_give_way_by_their_number(width: int, text: str) -> None:
    assert fitted(FIELDS, width) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0:00"), (0, "0:00"), (59.6, "1:00"), (194, "3:14"), (100_000, "27:46:40")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\rc\nd é") == "a\\x1b[2Jb\\rc\nd é"


def test_what_is_done_is_shown_in_one_harmless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Steps(False, "measuring") as steps:
        steps(0, 2, "a\nerror: forged\x1b[31m\u202eb.txt")
        steps(1, 2)
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[31m" not in shown
    assert not {"\n", "\u202e"} & set(shown.strip())
