"""``proxylessnas plot``: on the terminal and as files; every mistake is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_tools import Run, runner
from report_tools import TINY, Page, bench_file, lines_of, search_folder, write_lines

from proxylessnas.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys, "plot")


def test_models_on_the_terminal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(str(TINY.arch([0, 4, 1, 2, 3, 4], "mine")))
    done = run("proxyless-gpu", tmp_path / "mine.txt", "proxyless_cifar")
    assert (done.code, done.err) == (0, "")
    assert [line for line in done.out.splitlines() if "blocks" in line or "tree cells" in line] == [
        "proxyless_gpu: 14 blocks, 8 skipped", "mine: 5 blocks, 2 skipped",
        "proxyless_cifar: 54 tree cells in 3 stages",
    ]  # fmt: skip
    assert run("proxyless_gpu", "--ascii").out.isascii()


def test_a_run_s_folder(run: Run, tmp_path: Path) -> None:
    """Finished: its model, also by its own table. Unfinished: what it would derive now, with a note."""
    done = run(search_folder(tmp_path / "run"), "--by", "latency")
    assert done.out.startswith("run: 7 blocks, 0 skipped, ")
    assert done.out.count(" ms") > 8
    unfinished = run(write_lines(tmp_path / "now", lines_of(done=False)))
    assert unfinished.out.startswith("now: 7 blocks")
    assert unfinished.err.strip().endswith(
        "the search has not ended; shown is the model that it would derive now"
    )
    empty = run(write_lines(tmp_path / "empty", lines_of(done=False)[:1]))
    assert (empty.code, empty.err.count("\n")) == (1, 1)
    assert "no epoch of it has ended after its warm-up" in empty.err


def test_files(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = search_folder(tmp_path / "run")
    for name, words, start in (
        ("a.svg", ["proxyless_w025_r112", folder, folder], b"<?xml"),
        ("a.png", [folder, "--table", folder / "table.json", "--text"], b"\x89PNG"),
        ("b.svg", ["proxyless_cifar", "--cell", 1], b"<?xml"),
        ("a.gif", [folder, "--frames", 2], b"GIF89a"),
        ("a.html", [folder], b"<!doctype html>"),
    ):
        done = run(*words, "-o", tmp_path / name)
        assert (done.code, done.out.splitlines()[-1]) == (0, str(tmp_path / name)), done.err
        assert (tmp_path / name).read_bytes().startswith(start)
    assert Page(tmp_path / "a.html").headings() == ["The search, step by step"]


def test_accuracy_against_latency(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = bench_file(
        tmp_path / "bench.csv", {"proxyless_gpu": (30.0, 75.1), "proxyless_mobile": (20.0, 74.6)}
    )
    assert run("--bench", table, "-o", tmp_path / "front.svg").code == 0
    assert (tmp_path / "front.svg").read_bytes().startswith(b"<?xml")
    done = run("--bench", tmp_path / "absent.csv", "-o", tmp_path / "front2.svg")
    assert (done.code, done.err.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "name a model, a file or a run's folder"),
        (["nonsense"], 1, "unknown model 'nonsense'"),
        (["absent.txt"], 1, "absent.txt"),
        (["."], 1, "holds no run"),
        (["proxyless_gpu", "-o", "a.bmp"], 2, "-o writes a .svg or .png"),
        (["proxyless_gpu", "-o", "nowhere/a.svg"], 1, "there is no folder nowhere"),
        (
            ["proxyless_gpu", "-o", "a.gif"],
            2,
            "of the folder of one search, not of proxyless_gpu, which is none",
        ),
        (["proxyless_gpu", "proxyless_cpu", "-o", "a.html"], 2, "not of several"),
        (
            ["proxyless_gpu", "--by", "latency"],
            2,
            "--by latency needs --table T: proxyless_gpu comes with none",
        ),
        (["proxyless_gpu", "--table", "pixel1"], 1, "the latency table has no entry for stem"),
        (["proxyless_gpu", "--table", "absent.json"], 1, "no latency table at absent.json"),
        (["proxyless_gpu", "--by", "channels", "--table", "pixel1"], 2, "--table is for --by latency"),
        (["proxyless_cifar", "--by", "latency"], 1, "has no latency by operations"),
        (["proxyless_cifar", "proxyless_gpu", "-o", "a.svg"], 2, "which is drawn alone"),
        (["proxyless_cifar", "-o", "a.svg", "--cell", "0"], 1, "has no cell 0; they are 1 to 54"),
        (["proxyless_gpu", "--cell", "1"], 2, "--cell is for the figure (-o) of a model of tree cells"),
        (["proxyless_gpu", "--frames", "1"], 2, "--frames: wanted a whole number from 2 to 1000"),
        (["--eval", "a.json"], 2, "--eval needs --bench"),
        (["--bench", "a.csv"], 2, "--bench needs -o FILE"),
        (["proxyless_gpu", "--bench", "a.csv", "-o", "a.svg"], 2, "leave the models out"),
    ],
)
def test_mistakes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, message: str
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.code == code
    assert message in done.err
    assert len(done.err.splitlines()) == (1 if code == 1 else 2)
    assert list(tmp_path.iterdir()) == []


def test_guesses_for_what_a_table_lacks(run: Run) -> None:
    done = run("proxyless_mobile", "--table", "pixel1", "--predict-missing")
    assert done.code == 0
    assert "operations guessed" in done.out.splitlines()[0]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plot", "report"):
        assert main([command, "--help"]) == 0
        assert f"$ proxylessnas {command} " in capsys.readouterr().out
