"""Figures of models show every block, in files that are whole or not there."""

from __future__ import annotations

import io
import math
import re
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from chart_tools import size_of
from latency_table_tools import SPACE, little
from PIL import Image
from report_tools import TINY
from torch import nn

from proxylessnas import Arch, Stage, register_op, report
from proxylessnas.arch.published import CIFAR, CPU, GPU, MOBILE, PUBLISHED
from proxylessnas.errors import DataError, LatencyKeyError, MissingExtraError, UnknownModelError
from proxylessnas.figures.draw_model import KERNEL_COLORS, SKIPPED, timed_layers
from proxylessnas.figures.draw_tree import OPERATIONS, cell_graph
from proxylessnas.report.page import inline


@pytest.fixture(autouse=True)
def _matplotlib(request: pytest.FixtureRequest) -> None:
    if "without" not in request.node.name:
        pytest.importorskip("matplotlib")


def texts_of(svg: str) -> list[str]:
    """Return the texts of an inline SVG, in order."""
    return ["".join(e.itertext()).strip() for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


def drawn(models: dict[str, list[report.Layer]], **options: str) -> list[str]:
    file = io.BytesIO()
    report.model_figure(models, file, **options)
    return texts_of(inline(file, "a", "b"))


class Pointwise(nn.Conv2d):
    """An operation of a user's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 1, stride)


# ---- layers


@pytest.mark.parametrize(
    "arch", [a for a in PUBLISHED.values() if isinstance(a, Arch)], ids=lambda arch: arch.name
)
def test_layers_are_those_of_the_model(arch: Arch) -> None:
    layers = report.layers_of(arch)
    blocks = layers[1:-2]
    assert [layer.kind for layer in (layers[0], *layers[-2:])] == ["stem", "last", "classifier"]
    assert [(b.kernel, b.mid_channels) for b in arch.blocks] == [(b.kernel, b.channels[1]) for b in blocks]
    labels = [
        f"{b.op.kernel}×{b.op.kernel}  e{b.op.ratio}" if b.kind == "mbconv" else SKIPPED for b in arch.blocks
    ]
    assert labels == [b.label for b in blocks]
    assert [b.kind == "zero" for b in arch.blocks] == [b.kind == SKIPPED for b in blocks]
    for before, layer in pairwise(layers):
        assert layer.size == before.out_size
        assert layer.channels[0] == before.channels[2]
    assert layers[-1].channels[::2] == (arch.last, arch.num_classes)


def test_times_are_those_of_the_table() -> None:
    table = little()
    arch = SPACE.arch([1, 2, 0, 1])
    layers, text = timed_layers(arch, table)
    total = table.predict(arch)
    assert math.isclose(sum(layer.ms or 0.0 for layer in layers), total)
    assert text == f"{total:.3g} ms"
    assert [layer.ms for layer in layers if layer.kind == SKIPPED] == [0.0]
    with pytest.raises(LatencyKeyError, match="no entry"):
        timed_layers(GPU, table)
    guessed, text = timed_layers(Arch.parse(str(arch).replace("resolution=32", "resolution=64")), table, True)
    assert "operations guessed" in text
    assert all(layer.ms is not None for layer in guessed)


# ---- figures of models


def test_the_paper_s_figure(tmp_path: Path) -> None:
    """The GPU model is short and wide; the others are long and narrow: so are their columns."""
    models = {arch.name: report.layers_of(arch) for arch in (GPU, CPU, MOBILE)}
    for name in ("nets.svg", "nets.png"):
        report.model_figure(models, tmp_path / name)
    width, height = size_of(tmp_path / "nets.png")
    assert width > 1000
    assert height > 900
    with Image.open(tmp_path / "nets.png") as image:
        seen = {color for _, color in image.convert("RGB").getcolors(1 << 24) or []}
    for fill, _ in KERNEL_COLORS.values():
        assert tuple(bytes.fromhex(fill[1:])) in seen
    texts = drawn(models)
    assert texts.count("5×5  e3") == sum("k5e3" in b.token for a in (GPU, CPU, MOBILE) for b in a.blocks)
    assert {"proxyless_gpu", "14 blocks, 8 skipped", "224", "7", "1728", "skipped"} <= set(texts)
    assert list(ET.parse(tmp_path / "nets.svg").getroot().iter("{http://www.w3.org/2000/svg}text")) == []


def test_shades_are_apart_in_grey_print() -> None:
    grey = [
        Image.new("RGB", (1, 1), fill).convert("L").getpixel((0, 0)) for fill, _ in KERNEL_COLORS.values()
    ]
    assert grey == sorted(grey, reverse=True)
    assert min(a - b for a, b in pairwise(grey)) > 40


def test_a_figure_is_the_same_each_time(tmp_path: Path) -> None:
    models = {"a": report.layers_of(TINY.arch([0] * 6))}
    for name in ("a.svg", "b.svg"):
        report.model_figure(models, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_by_latency() -> None:
    layers, _ = timed_layers(SPACE.arch([1, 2, 0, 1]), little())
    texts = drawn({"net": layers}, by="latency")
    assert f"{max(layer.ms or 0.0 for layer in layers):.2f} ms" in texts
    assert "net" in texts
    with pytest.raises(DataError, match="needs the latency of every layer"):
        drawn({"net": report.layers_of(GPU)}, by="latency")


def test_odd_models_and_names() -> None:
    """Kernels without a colour of their own; operations of the user's; names with markup in them."""
    register_op("a_very_long_operation_name", Pointwise)
    stage = Stage(8, 2, "k9e1 a_very_long_operation_name -")
    odd = Arch("x", stem=8, first=0, last=8, stages=(stage,))
    texts = drawn({"$x_{<b>": report.layers_of(odd, resolution=32)})
    assert {"$x_{<b>", "9×9  e1", "a_very_long_o…"} <= set(texts)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model to draw"):
        report.model_figure({}, tmp_path / "a.svg")
    with pytest.raises(DataError, match="wanted channels or latency"):
        report.model_figure({"a": report.layers_of(GPU)}, tmp_path / "a.svg", by="x")
    with pytest.raises(OSError, match="no_such_folder"):
        report.model_figure(
            {"a": report.layers_of(TINY.arch([0] * 6))}, tmp_path / "no_such_folder" / "a.svg"
        )
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda p: report.model_figure({"a": report.layers_of(GPU)}, p),
        lambda p: report.tree_figure(CIFAR, p),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install --force-reinstall matplotlib"):
            draw(tmp_path / "a.svg")


# ---- texts


def test_models_as_text() -> None:
    text = report.model_text(report.layers_of(MOBILE), "mobile", note="9 ms")
    lines = text.splitlines()
    assert lines[0] == "mobile: 20 blocks, 2 skipped, 9 ms"
    assert len([line for line in lines if "7×7" in line]) == str(MOBILE).count("k7")
    assert max(map(len, lines)) < 100
    plain = report.model_text(report.layers_of(MOBILE), "mobile", ascii_only=True)
    assert plain.isascii()
    tree = report.tree_text(CIFAR)
    assert all(word in tree for word in CIFAR.words)
    assert max(map(len, tree.splitlines())) < 100


# ---- tree cells


def test_a_cell_as_a_graph() -> None:
    import networkx

    graph = cell_graph("7mdi7m5d5577")
    assert networkx.is_directed_acyclic_graph(graph)
    operations = [op for *_, op in graph.edges(data="op") if op not in ("", "shortcut")]
    assert sorted(operations) == sorted("7mdi7m5d5577")
    assert [graph.edges[edge]["op"] for edge in (("0", "00"), ("0", "01"), ("00", "000"), ("01", "011"))] == [
        *"7md" + "m"
    ]
    assert [graph.edges[edge]["op"] for edge in (("1", "10"), ("1", "11"), ("10", "100"))] == ["5", "d", "5"]
    assert len([1 for *_, op in graph.edges(data="op") if op == "shortcut"]) == 2


def test_tree_cells(tmp_path: Path) -> None:
    file = io.BytesIO()
    report.tree_figure(CIFAR, file, cells=[1, 19])
    texts = texts_of(inline(file, "a", "b"))
    assert {"cell 1", "cell 19", "18 ch, 32 px", "46 ch, 16 px; halves the map"} <= set(texts)
    letters = CIFAR.words[0] + CIFAR.words[18]
    words = " ".join(texts)
    for letter, (name, *_) in OPERATIONS.items():
        first = name.split()[0]
        assert (first in words) == any(OPERATIONS[known][0].split()[0] == first for known in letters), letter
    with pytest.raises(DataError, match="has no cell 55; they are 1 to 54"):
        report.tree_figure(CIFAR, tmp_path / "a.png", cells=[55])
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_of_cells(tmp_path: Path) -> None:
    report.tree_figure(CIFAR, tmp_path / "a.svg", cells=range(1, 11))
    assert len(re.findall(r"<path", (tmp_path / "a.svg").read_text())) > 120


# ---- what is meant


def test_subjects(tmp_path: Path) -> None:
    assert report.open_subject("proxyless-mobile14").arch == PUBLISHED["proxyless_mobile_14"]
    (tmp_path / "mine.txt").write_text(str(TINY.arch([0] * 6)))
    found = report.open_subject(tmp_path / "mine.txt")
    assert (found.name, found.arch) == ("mine", TINY.arch([0] * 6))
    with pytest.raises(UnknownModelError, match="no file or folder is called so"):
        report.open_subject("proxyless_gpuu")
    with pytest.raises(DataError, match="holds no run"):
        report.open_subject(tmp_path)


def test_functions_stay_functions_when_modules_are_imported() -> None:

    assert all(callable(getattr(report, name)) for name in report.__all__)
    assert set(report.__all__) <= set(dir(report))
