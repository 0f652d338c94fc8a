"""The progress bar of a download: there on a terminal, silent elsewhere, with or without tqdm."""

from __future__ import annotations

import io
import sys

import pytest

from proxylessnas.progress import Bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(total: int | None, enabled: bool = True) -> None:
    bar = Bar("net.pth", total, 1_000_000, enabled)
    bar.update(500_000)
    bar.update(500_000)
    bar.close()


@pytest.mark.parametrize("tqdm", [True, False], ids=["tqdm", "without tqdm"])
@pytest.mark.parametrize("total", [2_000_000, None])
def test_terminal(total: int | None, tqdm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
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
