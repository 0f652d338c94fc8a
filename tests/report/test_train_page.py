"""The report of a training run, whole, unfinished or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_tools import Page, search_folder, train_folder, write_lines

from proxylessnas import create_model, profile, report, save_weights
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.errors import DataError
from proxylessnas.report.train_page import _against, recipe_values
from proxylessnas.train.recipe import Recipe


@pytest.fixture(autouse=True)
def _matplotlib() -> None:
    pytest.importorskip("matplotlib")


def test_what_a_report_says(tmp_path: Path) -> None:
    folder, other = train_folder(tmp_path / "run"), train_folder(tmp_path / "other", epochs=2, done=False)
    notes = report.write_report(folder, tmp_path / "a.html", compare=[other])
    assert notes == [f"{other}: the run has not ended, or its result is not there: this is what there is"]
    page = Page(tmp_path / "a.html")
    assert page.headings() == [
        "What was asked", "What was found", "Curves", "Comparison", "Do it again", "Versions",
    ]  # fmt: skip
    for text in (
        "training of proxyless_cifar10_demo", "digits (900 for training, 100 for validation)", "78.00 %",
        "823,634", "from random weights", "sgd", "proxyless_cifar10_demo of the zoo: top-1", "0:15", "2.15.0",
        "<b>a note</b>",
        "proxylessnas train proxyless_cifar10_demo digits --recipe", "60.00 %",
    ):  # fmt: skip
        assert text in page.text, text
    assert [tag for tag, _ in page.tags].count("svg") == 7
    assert "<script" not in page.source


def test_a_run_that_has_not_ended(tmp_path: Path) -> None:
    folder = train_folder(tmp_path / "run", done=False)
    for gone, text in (
        ("log.jsonl", "No figure of the model: its file is written when the run ends"),
        ("epochs.csv", "holds no run"),
    ):
        (folder / gone).unlink()
        if gone == "epochs.csv":
            with pytest.raises(DataError, match=text):
                report.write_report(folder, tmp_path / "a.html")
        else:
            report.write_report(folder, tmp_path / "a.html")
            assert text in Page(tmp_path / "a.html").text


def test_damaged_files(tmp_path: Path) -> None:
    folder = train_folder(tmp_path / "run")
    log, table = (folder / "log.jsonl").read_text(), (folder / "epochs.csv").read_text().splitlines()
    (folder / "log.jsonl").write_text(log[: len(log) - 30])
    (folder / "epochs.csv").write_text("\n".join([*table[:3], "x,y", "4,36"]))
    (folder / "result.json").write_text("[")
    (folder / "model.safetensors").write_bytes(b"rubbish")
    (folder / "recipe.toml").write_bytes(b"\xff\x00")
    notes = report.write_report(folder, tmp_path / "a.html")
    assert [note.split(" (")[0] for note in notes] == [
        "the last line of log.jsonl is incomplete and left out",
        "2 damaged rows of epochs.csv are left out",
        "result.json is damaged and left out",
        "the run has not ended, or its result is not there: this is what there is",
        "model.safetensors cannot be read and is left out",
    ]
    page = Page(tmp_path / "a.html")
    assert all(note in page.text for note in notes)
    assert "60.00 %" in page.text


def test_a_table_alone_or_a_log_alone(tmp_path: Path) -> None:
    folder = train_folder(tmp_path / "run")
    whole = report.read_train_run(folder)
    (folder / "epochs.csv").unlink()
    assert [row["val_top1"] for row in report.read_train_run(folder).epochs] == [
        row["val_top1"] for row in whole.epochs
    ]
    write_lines(tmp_path / "empty", [])
    (tmp_path / "empty" / "search.jsonl").rename(tmp_path / "empty" / "log.jsonl")
    with pytest.raises(DataError, match=r"neither .* has a sound line"):
        report.read_train_run(tmp_path / "empty")


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    training, search = train_folder(tmp_path / "run"), search_folder(tmp_path / "search")
    with pytest.raises(DataError, match="is a search, which cannot be compared with a training"):
        report.write_report(training, tmp_path / "a.html", compare=[search])
    with pytest.raises(DataError, match="is a training, which cannot be compared with a search"):
        report.write_report(search, tmp_path / "a.html", compare=[training])
    assert not (tmp_path / "a.html").exists()


def test_values_of_a_recipe() -> None:
    values = recipe_values(Recipe().to_toml())
    assert values["epochs"] == str(Recipe().epochs)
    assert values["optimizer"] == Recipe().optimizer
    assert float(values["learning_rate"]) == Recipe().learning_rate


def test_the_page_is_called_after_the_run_and_counts_at_the_size_of_its_images(tmp_path: Path) -> None:
    """The model was made from a published one; what is on the page is its own."""
    folder = train_folder(tmp_path / "kitchen")
    model = create_model("proxyless_cifar10_demo")
    model.preprocessing = Preprocessing(64, 64)
    save_weights(model, folder / "model.safetensors")
    report.write_report(folder, tmp_path / "a.html")
    text = Page(tmp_path / "a.html").text
    assert "kitchen: training of proxyless_cifar10_demo" in text
    assert "kitchen by channels" in text, "the figure of the model"
    assert f"{profile(model, 64).macs / 1e6:.3g} M multiply-adds" in text


def test_trainings_are_compared_on_the_same_images_only(tmp_path: Path) -> None:
    mine, other = train_folder(tmp_path / "mine"), train_folder(tmp_path / "other", epochs=3, done=False)
    first = report.read_train_run(mine)
    assert _against(first, first) == "this run"
    assert (
        _against(first, report.read_train_run(other)) == "-8.00 points"
    )  # 90 - 60 / 3 = 70, 78 of the first
    log = other / "log.jsonl"
    log.write_text(log.read_text().replace('"validation": 100', '"validation": 90'))
    assert _against(first, report.read_train_run(other)) == "other images"
