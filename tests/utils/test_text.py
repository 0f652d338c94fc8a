"""Names, addresses and cells from outside are shown as what they are, and do nothing."""

from __future__ import annotations

import csv
import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_tools import Ran, Run, runner
from PIL import Image

from proxylessnas import Arch, Stage, create_model, save_weights
from proxylessnas.errors import (
    DataError,
    LatencyKeyError,
    ProxylessError,
    first_line,
    one_line,
    printable,
    shown_message,
)
from proxylessnas.utils.plotting import confusion_csv
from proxylessnas.utils.text import csv_rows, csv_text, shown_reason, shown_url

EVIL = "a\nerror: forged\x1b[2J\u202e\x9b\u2028.jpg"
SHOWN = r"a\nerror: forged\x1b[2J\u202e\x9b\u2028.jpg"


def test_texts() -> None:
    assert printable("Füße 猫\n\ta\x7f") == "Füße 猫\n\\ta\\x7f"
    assert one_line(EVIL) == one_line(one_line(EVIL)) == SHOWN
    assert one_line(Path("x") / EVIL) == f"x/{SHOWN}"
    message = f"{EVIL}: cannot be read:\n  first\n  {EVIL}\n"
    assert shown_message(message) == f"{SHOWN}: cannot be read:\n  first\n  {SHOWN}"
    assert shown_message(shown_message(message)) == shown_message(message)


@pytest.mark.parametrize("kind", [ProxylessError, DataError, LatencyKeyError])
def test_errors_are_safe_to_show(kind: type[Exception]) -> None:
    assert str(kind(f"{EVIL}: is no folder\n  give one")) == f"{SHOWN}: is no folder\n  give one"
    assert first_line(ValueError("\n\x1b[31mred\nnext")) == r"\x1b[31mred"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host.org/a/b.pth", "https://host.org/a/b.pth"),
        ("http://[::1]:80/b", "http://[::1]:80/b"),
        ("http://localhost:8000/b", "http://localhost:8000/b"),
        ("https://me:pw@host:1/b?token=x#y", "https://***@host:1/b?***"),
        ("https://me:p@w/x@host/b", "https://***@host/b"),
        ("https://me:p%40host/b", "https://***@host/b"),
        ("me:pw@host/b", "***@host/b"),
        ("https://me:pw", "https://me:***"),
        ("https://me:p?w@host/b", "https://***@?***"),
        ("https://me:p#w@host/b", "https://***@#***"),
        ("http://a\n\x1b[2J", r"http://a\n\x1b[2J"),
        ("http://" + "a" * 300, "http://" + "a" * 190 + "..."),
    ],
)
def test_addresses(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_what_libraries_say_of_addresses() -> None:
    said = "Failed to parse: 'http://me:p w@host/x'\n[Errno 2] (_ssl.c:1007) url: /x?token=y"
    shown = "Failed to parse: ***@host/x' [Errno 2] (_ssl.c:1007) url: /x?***"
    assert shown_reason(said).replace("'http://me:*** ", "") == shown


CELLS: list[Any] = [
    "=cmd|' /C calc'!A0", "@SUM(1+1)", "+1\ta", "-a", "\t=1", "\r=1", "\n=1", " =1", "'=1", "''@x", "'",
    "\uff1d1",     "-1.5e3", "+7", "plain", "it's", 'a "b", c', "a\rb", "a\nb", "", "?", "a\u2028b",
]  # fmt: skip


def test_cells_that_spreadsheets_would_run_are_quoted_and_read_back() -> None:
    columns = [f"{i}" for i in range(len(CELLS))]
    text = csv_text(columns, [CELLS])
    (head, row) = csv.reader(io.StringIO(text, newline=""))
    assert head == columns
    for cell, written in zip(CELLS, row, strict=True):
        runs = cell.lstrip("'").strip()[:1] in ("=", "@", "+", "-", "\uff1d") and cell not in ("-1.5e3", "+7")
        assert written == (f"'{cell}" if runs else cell)
    assert list(csv_rows(text)) == [dict(zip(columns, CELLS, strict=True))]


def test_numbers_stay_numbers() -> None:
    assert csv_text(["a", "b", "c", "d"], [(-1, -0.5, None, True)]) == "a,b,c,d\n-1,-0.5,,True\n"
    assert csv_text(["a"], [["=b"]], head=False) == "'=b\n"
    with pytest.raises(ValueError, match="2 cells in a table of 1 columns"):
        csv_text(["a"], [[1, 2]])


def test_a_cell_of_digits_takes_no_time() -> None:
    begin = time.process_time()
    csv_text(["a"], [["-" + "1" * 200_000 + "x"]])
    assert time.process_time() - begin < 2  # quadratic: minutes


def test_short_long_and_empty_rows() -> None:
    assert list(csv_rows("a,b\n\n1\r\n2,3,4\n")) == [{"a": "1", "b": "?"}, {"a": "2", "b": "3"}]
    assert list(csv_rows("")) == list(csv_rows("\n\n")) == []


def test_classes_of_a_confusion_matrix(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "@SUM(1+1)", "cat"]
    confusion_csv(torch.tensor([[1, 0, 2], [0, 3, 0], [0, 0, 4]]), names, tmp_path / "a.csv")
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert rows[0] == ["true \\ predicted", "'=cmd|' /C calc'!A0", "'@SUM(1+1)", "cat"]
    assert rows[1:] == [
        ["'=cmd|' /C calc'!A0", "1", "0", "2"],
        ["'@SUM(1+1)", "0", "3", "0"],
        ["cat", "0", "0", "4"],
    ]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command, all of whose output is safe to show."""
    plain = runner(capsys)

    def checked(*words: object) -> Ran:
        ran = plain(*words)
        assert printable(ran.out) == ran.out
        assert printable(ran.err) == ran.err
        assert not re.search("^error: forged", ran.out + ran.err, re.MULTILINE)
        assert all(line.startswith(("error: ", "note: ", "epoch ", "  ")) for line in ran.err.splitlines()), (
            ran.err
        )
        return ran

    return checked


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and class folders of images that forge an error."""
    root = tmp_path_factory.mktemp("evil")
    torch.manual_seed(1)
    save_weights(
        create_model(
            Arch(
                "small", stem=8, first=8, last=16, num_classes=2, resolution=32, stages=(Stage(8, 2, "k3e2"),)
            )
        ),
        root / "net.safetensors",
        categories=["cat", "dog\nerror: forged"],
    )
    for name in ("cat", "dog\nerror: forged"):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(folder / f"{i}\x1b[2J\nerror: forged.png")
    (root / "images" / "cat" / EVIL).write_bytes(b"no image")
    return root


def test_names_of_images(run: Run, evil: Path) -> None:
    good = evil / "images" / "cat" / "0\x1b[2J\nerror: forged.png"
    ran = run("predict", evil / "net.safetensors", good, evil / "images" / "cat" / EVIL, evil / EVIL)
    assert ran.code == 1
    assert r"cat/0\x1b[2J\nerror: forged.png" in ran.out.splitlines()[0]
    assert r"dog\nerror: forged" in ran.out
    assert len(ran.out.splitlines()) == 3
    told = [line for line in ran.err.splitlines() if SHOWN in line]
    assert [re.search("is not an image|no such file", line) is not None for line in told] == [True, True]
    found = run("predict", evil / "net.safetensors", good, "--json").json
    assert found["images"][0]["image"] == str(good)
    assert {p["name"] for p in found["images"][0]["predictions"]} == {"cat", "dog\nerror: forged"}


def test_names_of_classes(run: Run, evil: Path, tmp_path: Path) -> None:
    ran = run("eval", evil / "net.safetensors", evil / "images", "--per-class", "--workers", "0",
              "--confusion", tmp_path / "a.csv")  # fmt: skip
    assert r"dog\nerror: forged" in ran.out
    finetuned = run("finetune", evil / "net.safetensors", evil / "images", "--epochs", "2", "--workers", "0",
                    "--out", tmp_path / EVIL)  # fmt: skip
    assert finetuned.code == 0
    assert SHOWN in finetuned.out
    assert len(finetuned.out.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("info", EVIL), ("info", f"./{EVIL}"), ("info", f"{EVIL}.safetensors"), ("info", "--" + EVIL),
        (EVIL,), ("plot", EVIL), ("report", EVIL), ("predict", "proxyless_cpu", "a.jpg", "--weights", EVIL),
        ("verify", f"{EVIL}.pth"), ("export", f"{EVIL}.pth", "a.onnx"), ("search", "show", EVIL),
        ("latency", "show", EVIL), ("eval", f"{EVIL}.pth", EVIL), ("train", f"{EVIL}.txt", EVIL),
        ("search", "run", "--data", "digits", "--space", EVIL), ("bench", f"{EVIL}.pth"),
        ("plot", "--bench", EVIL, "-o", "a.svg"),
        ("predict", "proxyless_cpu", "a.jpg", "--import", EVIL),
    ],
)  # fmt: skip
def test_names_that_lead_nowhere(run: Run, words: tuple[str, ...], tmp_path: Path) -> None:
    ran = run(*words)
    assert ran.code in (1, 2)
    (told,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert r"\x1b[2J" in told
