"""Accuracy against latency from the files of bench and eval, with the Pareto front."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from chart_tools import share_of
from report_tools import bench_file

from proxylessnas.errors import DataError
from proxylessnas.latency.plots import Point, accuracy_panels, accuracy_png, pareto_front
from proxylessnas.report.pareto import pareto_figure, read_bench, read_eval

GREY = (107, 107, 107)


@pytest.fixture(autouse=True)
def _matplotlib() -> None:
    pytest.importorskip("matplotlib")


def point(name: str, ms: float, top1: float, published: bool = True) -> Point:
    return Point(name, ms, ms, ms, top1, published, False)


def eval_file(path: Path, model: str, top1: float, **changes: object) -> Path:
    path.write_text(json.dumps({"net": model, "top1": top1, "n": 200, "data": "photos", **changes}))
    return path


def text_of(benches: list[Path], **options: list[Path]) -> str:
    file = io.BytesIO()
    pareto_figure(benches, file, **options)
    return file.getvalue().decode()


def test_the_front() -> None:
    """No model on it is equalled or beaten in both; every other one is."""
    points = [point("a", 1, 60), point("b", 2, 70), point("c", 2, 65), point("d", 3, 70), point("e", 9, 71)]
    assert [p.name for p in pareto_front(points)] == ["a", "b", "e"]
    assert [p.name for p in pareto_front(reversed(points))] == ["a", "b", "e"]
    assert pareto_front([]) == []


def test_the_front_is_drawn(tmp_path: Path) -> None:
    line = {}
    for name, points in {
        "steps": [point("a", 1, 60), point("b", 5, 75), point("c", 9, 80)],
        "none": [point("a", 1, 80), point("b", 5, 75), point("c", 9, 60)],
    }.items():
        accuracy_png({"torch": points}, tmp_path / "a.png")
        line[name] = share_of(tmp_path / "a.png", GREY)
    assert line["steps"] > 1.5 * line["none"]


def test_names_that_a_spreadsheet_would_run_are_read_back(tmp_path: Path) -> None:
    models: dict[str, tuple[float, float | str]] = {"=1+1": (1.0, 50.0), "'@a": (2.0, 60.0), "a": (3.0, 70.0)}
    table = bench_file(tmp_path / "a.csv", models)
    assert "'=1+1," in table.read_text()
    assert [row["net"] for row in read_bench(table)] == list(models)


def test_what_is_not_drawn_is_said(tmp_path: Path) -> None:
    models = {"proxyless_gpu": (30.0, 75.1), "proxyless_mobile": (20.0, 74.6), "mine": (10.0, "")}
    table = bench_file(tmp_path / "a.csv", models)
    assert pareto_figure([table], tmp_path / "a.png") == ["mine is not drawn: its accuracy is not known"]
    other = eval_file(tmp_path / "other.json", "other", 80.0)
    assert pareto_figure([table], tmp_path / "b.png", evals=[other]) == [
        "mine is not drawn: its accuracy is not known",
        "other was evaluated, but not in a bench",
    ]
    assert "measured top-1: on" not in text_of([table], evals=[other])


def test_files_of_a_bench(tmp_path: Path) -> None:
    models = {"proxyless_gpu": (30.0, 75.1), "proxyless_mobile": (20.0, 74.6), "mine": (10.0, "")}
    table = bench_file(tmp_path / "a.csv", models)
    rows = read_bench(table)
    assert [(row["net"], row["median_ms"], row["top1"]) for row in rows] == [
        ("proxyless_gpu", 30.0, 75.1), ("proxyless_mobile", 20.0, 74.6), ("mine", 10.0, None),
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows, "notes": [], "rounds": 7}))
    assert read_bench(tmp_path / "a.json") == rows
    panels = accuracy_panels(rows)
    assert [(name, len(points)) for name, points in panels.points.items()] == [
        ("torch, 1 thread, batch 1", 2)
    ]
    assert (panels.accuracy, panels.note) == ("top-1 on ImageNet (%)", "a machine; torch 2.15; 2026-01-02")
    svg = text_of([table])
    for text in (
        "proxyless_gpu",
        "this package, top-1 published",
        "Pareto front",
        "a machine; torch 2.15; 2026-01-02",
    ):
        assert text in svg
    assert ">mine<" not in svg


def test_the_undisturbed_latency_is_drawn(tmp_path: Path) -> None:
    """That of a file of an earlier version, which has none, is its median."""
    new = bench_file(tmp_path / "new.csv", {"quick": (30.0, 75.1)}, undisturbed_ms="21.5")
    old = bench_file(tmp_path / "old.csv", {"slow": (40.0, 74.6)})
    rows = [*read_bench(new), *read_bench(old)]
    assert [row["undisturbed_ms"] for row in rows] == [21.5, None]
    (points,) = accuracy_panels(rows).points.values()
    assert [(point.name, point.ms) for point in points] == [("quick", 21.5), ("slow", 40.0)]
    wrong = bench_file(tmp_path / "wrong.csv", {"quick": (30.0, 75.1)}, undisturbed_ms="-1")
    with pytest.raises(DataError, match="row 1 holds a value that makes no sense"):
        read_bench(wrong)


def test_several_benches_and_evaluations(tmp_path: Path) -> None:
    """A model that was evaluated has the accuracy measured there; fronts of both kinds are apart."""
    models = {"proxyless_gpu": (30.0, 75.1), "proxyless_mobile": (20.0, 74.6), "mine": (10.0, "")}
    benches = [
        bench_file(tmp_path / "a.csv", models),
        bench_file(tmp_path / "b.csv", models, device_name="another"),
    ]
    evals = [
        eval_file(tmp_path / "1.json", "mine", 61.0, data="imagenet photos"),
        eval_file(tmp_path / "2.json", "proxyless_gpu", 71.0, data="imagenet photos"),
    ]
    svg = text_of(benches, evals=evals)
    for text in (
        ">mine<", "torch, 1 thread, batch 1; another", "this package, top-1 measured", "top-1 published",
        "200 images of imagenet photos", "Pareto front, measured",
    ):  # fmt: skip
        assert text in svg
    eval_file(tmp_path / "2.json", "proxyless_gpu", 71.0, n=50, data="imagenet photos")
    with pytest.raises(DataError, match="not of the same images"):
        text_of(benches, evals=evals)


@pytest.mark.parametrize(
    "text", ["", "{", "a,b\n1,2\n", '{"rows": [{}]}', '{"rows": 3}', "{" * 10**5, "\0\0"]
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(DataError, match=r"is no result of a bench|has no rows") as e:
        read_bench(tmp_path / "a")
    assert "proxylessnas bench --csv" in str(e.value)
    with pytest.raises(DataError, match="is no result of an evaluation"):
        read_eval(tmp_path / "a")


@pytest.mark.parametrize(
    ("column", "value"), [("median_ms", "nan"), ("top1", "x"), ("peer", "1"), ("threads", "")]
)
def test_values_that_make_no_sense(tmp_path: Path, column: str, value: str) -> None:
    path = bench_file(tmp_path / "a.csv", {"net": (1.0, 50.0)})
    head, row = (
        line.split(",") for line in path.read_text().replace('"', "").replace("3.11, ", "").splitlines()
    )
    row[head.index(column)] = value
    path.write_text(",".join(head) + "\n" + ",".join(row) + "\n")
    with pytest.raises(DataError, match="row 1 holds a value that makes no sense"):
        read_bench(path)


def test_what_cannot_be_read_or_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_bench(tmp_path / "absent.csv")
    odd = bench_file(tmp_path / "b.csv", {"net": (1.0, 50.0)}, runtime="abacus")
    with pytest.raises(DataError, match="a setting that makes no sense"):
        pareto_figure([odd], tmp_path / "a.svg")
    assert not (tmp_path / "a.svg").exists()


def test_a_bench_without_any_accuracy_is_drawn_as_bars(tmp_path: Path) -> None:
    svg = text_of([bench_file(tmp_path / "a.csv", {"mine": (4.0, "")})])
    for text in (">mine<", ">4<", "latency of a call (ms)"):
        assert text in svg
    assert "top-1" not in svg
