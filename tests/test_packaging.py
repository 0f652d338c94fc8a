"""What `pip install` gives: wheel and sdist are built, installed outside the repository, and used there."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging_tools import run, run_uninstalled, site_packages

PIP = ["pip", "--disable-pip-version-check"]

USE_IT = """
import json, sys
import proxylessnas
from proxylessnas.data import categories, named
assert len(named.load_digits()[0]) == 1797
names = proxylessnas.list_models()
for name in names:
    model = proxylessnas.create_model(name)
weights = {name: proxylessnas.get_weights(name) for name in proxylessnas.list_models(pretrained=True)}
print(json.dumps({
    "file": proxylessnas.__file__, "version": proxylessnas.__version__, "names": names,
    "input_size": {name: entry.input_size for name, entry in weights.items()},
    "classes": [len(categories.categories("imagenet")), len(categories.categories("cifar10"))],
    "label": weights["proxyless_w025_r112"].categories[0],
}))
"""


class Built(NamedTuple):
    """Where the built files are, and the tree they were built from."""

    tree: Path
    sdist: Path
    wheel: Path
    wheel_from_sdist: Path
    left: set[str]  # what the build left in the tree


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if "__pycache__" not in path.relative_to(folder).parts
    }


def _build(tree: Path, out: Path, *what: str) -> None:
    run([sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", out, tree], cwd=out.parent)


@pytest.fixture(scope="session")
def built(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the wheel straight from the tree, and the sdist with a wheel from that."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("built")
    copy = Path(shutil.copytree(tree, out / "tree"))
    before = _files(copy)
    _build(copy, out / "straight", "--wheel")
    _build(copy, out / "through")
    (straight,) = (out / "straight").glob("*.whl")
    (through,) = (out / "through").glob("*.whl")
    (sdist,) = (out / "through").glob("*.tar.gz")
    return Built(tree, sdist, straight, through, _files(copy) ^ before)


def _version(tree: Path) -> str:
    namespace: dict[str, str] = {}
    exec((tree / "proxylessnas" / "_version.py").read_text(encoding="utf-8"), namespace)
    return namespace["__version__"]


def test_a_build_leaves_the_tree_as_it_was(built: Built) -> None:
    assert built.left == set()


def test_a_failed_build_leaves_the_tree_as_it_was(tree: Path, tmp_path: Path) -> None:
    """The manifest's copy would hide the manifest itself from then on."""
    pytest.importorskip("build")
    copy = Path(shutil.copytree(tree, tmp_path / "tree"))
    (copy / "proxylessnas" / "_version.py").write_text("oops!", encoding="utf-8")
    before = _files(copy)
    with pytest.raises(AssertionError, match="oops!"):
        _build(copy, tmp_path / "out", "--wheel")
    assert _files(copy) == before


def test_wheel_contents(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
        manifest = wheel.read("proxylessnas/weights_manifest.json")
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
    modules = {
        name for name in _files(built.tree) if name.startswith("proxylessnas/") and name.endswith(".py")
    }
    assert modules <= names
    assert manifest == (built.tree / "weights_manifest.json").read_bytes()
    folders = ("proxylessnas/assets/", "proxylessnas/report/templates/")
    data = {name for name in _files(built.tree) if name.startswith(folders)}
    assert "proxylessnas/report/templates/report.html" in data
    assert {"proxylessnas/assets/imagenet_classes.tsv", "proxylessnas/assets/digits.safetensors"} <= data
    assert data | {"proxylessnas/py.typed"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"proxylessnas"}, "no tests, no hubconf"
    assert any(name.endswith("LICENSE") for name in names)
    assert f"Version: {_version(built.tree)}" in text
    assert "License-Expression: MIT" in text
    for name in ("torch", "torchvision", "jinja2", "pillow", "requests", "safetensors"):
        assert f"Requires-Dist: {name}" in text


def test_the_wheel_from_the_sdist_is_the_same(built: Built) -> None:
    def contents(path: Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as wheel:
            return {entry.filename: entry.CRC for entry in wheel.infolist()}

    assert contents(built.wheel) == contents(built.wheel_from_sdist)


def test_sdist_contents(built: Built) -> None:
    """Whoever gets the sdist can run the tests and the hub entry file from it."""
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    expected = {"weights_manifest.json", "hubconf.py", "_build/backend.py", "LICENSE", "CITATION.cff"}
    expected |= {"Makefile", ".ci/run", "tests/conftest.py", "tests/offline/sitecustomize.py"}
    expected |= {"examples/photos/cat.jpg", "examples/photos/README.md", "examples/photos/cifar10/dog.jpg"}
    expected |= {"proxylessnas/assets/digits.safetensors", "proxylessnas/assets/README.md"}
    assert expected <= names
    assert "proxylessnas/weights_manifest.json" not in names
    assert not [name for name in names if name.endswith(".pyc")]


def _environment(folder: Path) -> Path:
    """Make a virtual environment that borrows torch and the rest from this one, but not this package.

    The .pth files in a folder that a .pth file adds are not read, so an editable install of this package
    stays unseen.
    """
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = Path(run([python, "-c", code], cwd=folder).stdout.strip())
    (purelib / "borrowed.pth").write_text("\n".join(site_packages()) + "\n", encoding="utf-8")
    return python


def _install(python: Path, what: Path) -> None:
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet"]
    run([sys.executable, "-m", *PIP, "--python", python, "install", *options, what], cwd=what.parent)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_outside_the_repository(built: Built, tmp_path: Path, kind: str) -> None:
    """The models, the manifest, the class names and the command are all there."""
    python = _environment(tmp_path / "environment")
    _install(python, getattr(built, kind))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = json.loads(run([python, "-c", USE_IT], cwd=elsewhere).stdout)
    assert Path(done["file"]).is_relative_to(tmp_path / "environment")
    assert done["version"] == _version(built.tree)
    assert len(done["names"]) == 8
    assert set(done["input_size"]) == set(done["names"])
    assert done["input_size"]["proxyless_w025_r112"] == 112
    assert done["classes"] == [1000, 10]
    assert done["label"] == "tench"
    listed = run([python.parent / "proxylessnas", "list"], cwd=elsewhere).stdout
    assert all(name in listed for name in done["names"])
    assert _files(elsewhere) == set()


def test_the_zip_that_torch_hub_downloads(tree: Path, tmp_path: Path) -> None:
    """GitHub's zip: one folder, no git, and links would come out as text files."""
    archive = shutil.make_archive(str(tmp_path / "main"), "zip", root_dir=tree.parent, base_dir=tree.name)
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "hub")
    folder = tmp_path / "hub" / tree.name
    code = f"""
import torch
model = torch.hub.load({str(folder)!r}, "proxyless_mobile14", source="local")
import proxylessnas
assert proxylessnas.__file__.startswith({str(folder)!r})
print(proxylessnas.get_weights("proxyless_mobile14").input_size, sum(p.numel() for p in model.parameters()))
"""
    assert run_uninstalled(code, cwd=tmp_path).stdout.split() == ["224", "6857568"]


def test_no_symbolic_links(tree: Path) -> None:
    assert [path for path in tree.rglob("*") if path.is_symlink()] == []


def test_torch_is_never_pinned(tree: Path) -> None:
    """A pin, or an upper bound, would tear apart the torch and torchvision pair that a user has."""
    config = configparser.ConfigParser()
    config.read(tree / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].strip().splitlines()
    needed = [line.partition(";")[0] for line in lines]  # behind it is which Python a line is for
    assert "torchvision" in needed
    assert not [line for line in needed if "==" in line or "<" in line or "~" in line]
