"""``proxylessnas report``: one file of a run, and in a real browser a page that works."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import open_browser
from cli_tools import Run, runner
from report_tools import Page, lines_of, search_folder, train_folder, write_lines

HOME, RIGHT = "\ue011", "\ue014"  # as WebDriver calls these keys


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    pytest.importorskip("matplotlib")
    return runner(capsys, "report")


def test_reports(run: Run, tmp_path: Path) -> None:
    done = run(train_folder(tmp_path / "training"))
    assert (done.code, done.out) == (0, f"{tmp_path / 'training' / 'report.html'}\n")
    assert done.err == ""
    cut = write_lines(tmp_path / "cut", lines_of(steps=3, done=False))
    done = run(cut, "-o", tmp_path / "a.html")
    assert done.code == 0
    assert done.err == (
        "note: the search has not ended, or its log was cut off: this is what there is\n"
        "note: not in the folder any more: space.toml, search.toml\n"
    )
    assert Page(tmp_path / "a.html").headings()[0] == "What was asked"
    assert {path.name for path in tmp_path.iterdir()} == {"training", "cut", "a.html"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["absent"], 1, "absent: no such folder"),
        (["."], 1, ".: holds no run; expected is search.jsonl"),
        ([".", "-o", "a.pdf"], 2, "-o writes a .html or .htm file"),
        ([".", "-o", "nowhere/a.html"], 1, "there is no folder nowhere"),
        (["."], 1, "holds no run"),
    ],
)
def test_mistakes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert (done.code, message in done.err) == (code, True), done.err
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_says_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "search.jsonl").write_text('{"event": "arch"')
    done = run(tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: {tmp_path / 'search.jsonl'}: does not begin as the log of a search does "
        "(no sound line with 'begin')\n"
    )


def test_in_a_browser(run: Run, tmp_path: Path) -> None:
    """No complaint in the console; the slider and its button work with keys alone; it fits a phone."""
    with open_browser(tmp_path / "profile") as browser:
        file = tmp_path / "a.html"
        assert run(search_folder(tmp_path / "run", steps=10), "-o", file).code == 0
        for dark in (False, True):
            scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
            browser.emulate("setEmulatedMedia", features=scheme)
            browser.emulate(
                "setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True
            )
            browser.open(file.as_uri())
            assert browser.run("return document.documentElement.scrollWidth") <= 390
            back = browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (back == "rgb(17, 20, 26)") is dark
        browser.run("document.getElementById('moment').focus()")
        last = browser.text("#now")
        assert last.startswith(
            "epoch 2, step 100; expected latency 0.74 ms (target 0.8 ms); derived model 70.00 %"
        )
        assert browser.text("#probs tbody td.pick") == browser.text("#probs tbody td")
        browser.press(HOME)
        first = browser.text("#now")
        assert first.startswith("epoch 1, step 10; ")
        cursors = (
            "return [...document.querySelectorAll('.cursor')].map((line) => Number(line.getAttribute('x1')))"
        )
        at_start = browser.run(cursors)
        browser.press(RIGHT)
        assert browser.text("#now").startswith("epoch 1, step 20; ")
        assert all(a < b for a, b in zip(at_start, browser.run(cursors), strict=True))
        assert browser.run(
            "return document.getElementById('moment').getAttribute('aria-valuetext')"
        ) == browser.text("#now")
        browser.run("document.getElementById('play').focus()")
        browser.press(" ")
        assert browser.text("#play") == "Pause"
        browser.wait("document.getElementById('now').innerText.startsWith('epoch 2, step 100')")
        browser.wait("document.getElementById('play').innerText === 'Play'")
        models = browser.text("#model").splitlines()
        assert [" ".join(line.split()) for line in models] == [
            "16 ch k3e2 k3e2",
            "24 ch k3e2 k3e2",
            "40 ch k3e2 k3e2",
        ]
        requests = browser.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in requests if not name.startswith("data:")] == []
        assert browser.complaints() == []
        assert len(browser.screenshot()) > 20_000
