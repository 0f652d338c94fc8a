"""Models out of a supernet: in memory through ``search.derive``, and out of a search's folder."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from latency_table_tools import SPACE as TIMED
from latency_table_tools import little
from search_tools import SPACE, batch, same, small_model, state_of
from train_tools import differences_of, environment, noise_folder, run_command, tensors, watched

import proxylessnas
from proxylessnas import DataError, LatencyError, ProxylessNAS, create_model, profile, search
from proxylessnas.search import DeriveSettings
from proxylessnas.search import run as after
from proxylessnas.search.constraints import size_costs
from proxylessnas.search.supernet import seeded
from proxylessnas.train import Settings

SHARED = 1e-5


def test_the_public_names() -> None:
    """What the package promises for a search; a module of the same name would hide it."""
    wanted = {
        "SearchSpace",
        "SuperNet",
        "SearchRecipe",
        "SearchResult",
        "derive",
        "DeriveSettings",
        "read_search_recipe",
        "search",
        "search_seeds",
        "SeedResults",
    }
    assert set(search.__all__) == wanted
    assert wanted <= set(dir(search))
    package = Path(search.__file__).parent
    for path in package.glob("*.py"):
        importlib.import_module(f"proxylessnas.search.{path.stem}")
    for name in wanted:
        assert not isinstance(getattr(search, name), type(sys)), f"a module is called {name} too"
        assert not (package / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="has no attribute 'serch'"):
        search.serch  # noqa: B018


def test_the_space_alone_needs_nothing_of_a_search() -> None:
    code = """
import sys
from proxylessnas.search import SearchSpace
assert SearchSpace.__name__ == "SearchSpace"
assert not [name for name in sys.modules if name.startswith(("proxylessnas.train", "proxylessnas.search."))]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_a_model_in_memory() -> None:
    """The example of the documentation: (architecture, model), the model a plain one that shares nothing."""
    model = small_model()
    before, path = state_of(model), model.path
    arch, child = search.derive(model, name="mine")
    assert type(child) is ProxylessNAS
    assert child.arch is arch
    assert arch.name == "mine"
    assert list(SPACE.choices(arch)) == model.alphas.most_probable()
    model.set_path(SPACE.choices(arch))
    x = batch()[0]
    with torch.no_grad():
        assert torch.allclose(child.eval()(x), model.eval()(x), rtol=0, atol=SHARED)
    model.set_path(path)
    for p in child.parameters():
        p.data.zero_()
    assert same(before, model.state_dict())


def test_targets_are_met() -> None:
    model = small_model()
    size = (SPACE.in_channels, SPACE.resolution, SPACE.resolution)
    ranges = {name: costs.range() for name, costs in size_costs(model).items()}
    limits = {f"target_{name}_m": low + 0.4 * (high - low) for name, (low, high) in ranges.items()}
    for chosen in ({"target_macs_m": limits["target_macs_m"]}, limits):
        _, child = search.derive(model, DeriveSettings(**chosen))
        found = profile(child, size)
        costs = {"target_macs_m": found.macs / 1e6, "target_params_m": found.params / 1e6}
        assert all(costs[name] <= limit for name, limit in chosen.items())
        assert costs["target_macs_m"] >= 0.85 * limits["target_macs_m"]
    arch, _ = search.derive(model, DeriveSettings(min_depth=2))
    assert "-" not in [token for stage in arch.stages for token in stage.tokens]
    with pytest.raises(DataError, match="no model of this space keeps to params"):
        search.derive(model, DeriveSettings(target_params_m=1e-6))


def test_a_latency_target_needs_a_table(tmp_path: Path) -> None:
    table, model = little(), seeded(TIMED, 0)
    low, high = table.range_ms()
    target = low + 0.4 * (high - low)
    path = table.save(tmp_path / "table.json")
    for given in (table, path, str(path)):
        arch, _ = search.derive(model, DeriveSettings(target_ms=target), table=given)
        assert 0.85 * target <= table.predict(arch) <= target
    with pytest.raises(DataError, match="needs a latency table"):
        search.derive(model, DeriveSettings(target_ms=target))
    with pytest.raises(LatencyError, match="nowhere"):
        search.derive(model, DeriveSettings(target_ms=target), table=tmp_path / "nowhere.json")


def test_statistics_are_computed_anew_from_all_batches() -> None:
    """As if the model had seen just these images; the supernet's own statistics stay."""
    model = small_model()
    before = state_of(model)
    batches = [batch(seed)[0] for seed in range(3)]
    _, old = search.derive(model)
    _, new = search.derive(model, calibration=iter(batches))
    mean = new.first_conv.bn.running_mean
    stem = old.first_conv.conv
    with torch.no_grad():
        wanted = torch.stack([stem(x).mean((0, 2, 3)) for x in batches]).mean(0)
    assert torch.allclose(mean, wanted, rtol=0, atol=1e-12)
    assert not torch.allclose(mean, old.first_conv.bn.running_mean)
    assert same(before, model.state_dict())


# ---- out of a folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images and a finished search."""
    root = tmp_path_factory.mktemp("derive")
    noise_folder(root / "data", a_class=6)
    recipe = search.read_search_recipe("tiny").with_epochs(1, 1)
    recipe = recipe.replace(target_macs_m=0.5, batch_size=8, image_size=16, recalibrate_batches=2)
    result = search.search(
        "tiny", root / "data", recipe, out=Settings(root / "run", device="cpu", console=False)
    )
    assert result.finished
    return root


def test_resume_describe_and_derive_from_a_folder(folders: Path, tmp_path: Path) -> None:
    found = after.describe(folders / "run")
    assert found["finished"]
    assert found["targets"] == {"macs_m": 0.5}
    again = after.resume(folders / "run", Settings(folders / "run", device="cpu", console=False))
    assert again.choices == tuple(found["result"]["picks"])
    result = after.derive(folders / "run", tmp_path / "net", target_macs_m=0.4, device="cpu")
    assert isinstance(result, search.SearchResult)
    assert result.costs["macs"] <= 0.4
    assert create_model(result.model).arch.name == "net"
    with pytest.raises(DataError, match="is there already"):
        after.derive(folders / "run", tmp_path / "net", device="cpu")


def test_two_processes_derive_the_model_of_one(folders: Path) -> None:
    """One of them writes; a folder that is taken ends both, with one message that says why."""
    after.derive(folders / "run", folders / "one" / "net", target_macs_m=0.4, device="cpu")
    words = ["search", "derive", str(folders / "run"), "--target-macs", "0.4", "--threads", "1"]
    words += ["--device", "cpu", "-o", str(folders / "two" / "net")]
    done = run_command(*words, processes=2, script=watched(folders))
    assert done.returncode == 0, done.stderr
    if Path("/proc/self/task").exists():  # a thread that is left may abort the process at its end
        assert "gloo" not in (folders / "threads-0").read_text()
    assert done.stdout.count("child.safetensors") == 1
    assert done.stderr.count("macs: ") == 1
    one, two = folders / "one" / "net", folders / "two" / "net"
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert (one / "arch.txt").read_bytes() == (two / "arch.txt").read_bytes()
    a, b = (json.loads((folder / "result.json").read_text()) for folder in (one, two))
    assert a["costs"] == b["costs"]
    weights = [tensors(folder / "child.safetensors") for folder in (one, two)]
    learnt = [{k: v for k, v in found.items() if "running_" not in k} for found in weights]
    assert differences_of(*learnt) == 0
    before = (two / "result.json").stat().st_mtime_ns
    done = run_command(*words, processes=2)
    assert done.returncode == 1
    assert done.stderr.count("is there already") == 1
    assert (two / "result.json").stat().st_mtime_ns == before


def test_the_package_has_the_search_as_a_name() -> None:
    assert proxylessnas.search is search
