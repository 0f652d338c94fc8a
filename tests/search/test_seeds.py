"""A search that is repeated with several seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from search_tools import SHORT, TINY_SPACE
from train_tools import noise_folder

from proxylessnas import DataError, cli
from proxylessnas.search import search, search_seeds
from proxylessnas.train import Settings

QUICK = SHORT.replace(algorithm="reinforce", warmup_epochs=0, epochs=1, reinforce_updates=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("images") / "data")


def settings(out: Path) -> Settings:
    return Settings(out, device="cpu", workers=0, console=False)


def test_mean_and_spread_and_the_same_call_goes_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    # As if it had been killed after the first one.
    first = search(TINY_SPACE, data, QUICK.replace(seed=3), out=settings(out / "seed-3"))
    before = (out / "seed-3" / "result.json").read_bytes()
    found = search_seeds(TINY_SPACE, data, QUICK, [3, 4], out=settings(out))
    assert found.finished
    assert (out / "seed-3" / "result.json").read_bytes() == before
    one, two = (result.top1 for result in found.results)
    assert one == first.top1
    assert one is not None
    assert two is not None
    figures = found.figures()
    assert figures["top1_held_out"]["mean"] == pytest.approx((one + two) / 2)
    assert figures["top1_held_out"]["std"] == pytest.approx(abs(one - two) / 2**0.5)
    assert figures["macs"]["max"] <= 0.03
    assert "measured_ms" not in figures
    saved = json.loads((out / "seeds.json").read_text())
    assert (saved["finished"], saved["seeds"], saved["figures"]) == (True, [3, 4], figures)
    assert [row["folder"] for row in saved["searches"]] == ["seed-3", "seed-4"]
    alone = search(TINY_SPACE, data, QUICK.replace(seed=4), out=settings(tmp_path / "alone"))
    assert (alone.top1, alone.choices) == (two, found.results[1].choices)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], [0.5]])
def test_wrong_seeds(seeds: list[int], data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="different whole numbers"):
        search_seeds(TINY_SPACE, data, QUICK, seeds, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "search run --space tiny --data digits --limit 8 --image-size 16 --warmup-epochs 0 --epochs 1".split()
    )
    words += ["--set", "recalibrate_batches=1", "--batch-size", "16", "--system-malloc", "--quiet"]
    words += ["--threads", "1", "--target-macs", "0.5", "--out", str(tmp_path / "a"), "--seeds", "0,7"]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert "top-1" in printed.out
    assert "+-" in printed.out
    assert "seed-7/child.safetensors" in printed.err
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["macs"]["max"] <= 0.5
    assert cli.main([*words[:-1], "0,0"]) == 2
    assert "--seeds: wanted different whole numbers such as 0,1,2, not" in capsys.readouterr().err
    assert cli.main([*words, "--dry-run"]) == 2
    assert "--dry-run is of one search: leave out --seeds" in capsys.readouterr().err
    for seed in (["--seed", "1"], ["--set", "seed=1"], ["--set", "weights.seed=1"]):
        assert cli.main([*words, *seed]) == 2
        assert "--seeds says all seeds: leave out --seed" in capsys.readouterr().err
