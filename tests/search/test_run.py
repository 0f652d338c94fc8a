"""A search from beginning to end: what it leaves, tells and goes on from."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from runlog_tools import has_tensorboard, images, scalars
from search_tools import SHORT, TINY_SPACE, searcher_of, silent
from torch.utils._python_dispatch import TorchDispatchMode
from train_tools import differences_of, noise_folder, tensors

from proxylessnas import DataError, ProxylessError, create_model
from proxylessnas.search import search
from proxylessnas.train import Settings
from proxylessnas.train.evaluate import accuracy_on
from proxylessnas.utils.distributed import Processes
from proxylessnas.utils.signals import StopRequest

ONE = Processes(0, 1, torch.device("cpu"))
BF16 = SHORT.replace(amp="bf16")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("pictures") / "data")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished search in bf16."""
    out = tmp_path_factory.mktemp("runs") / "bf16"
    settings = Settings(out, device="cpu", workers=0, console=False, tensorboard=has_tensorboard())
    assert search(TINY_SPACE, data, BF16, out=settings).finished
    return out


def lines(run: Path, name: str = "search.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_the_model_is_evaluated_as_its_user_will_run_it(run: Path, data: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["judged_in"] == "float32"
    searcher = searcher_of(data, run, BF16)
    child = create_model(run / "child.safetensors")
    found = accuracy_on(child, searcher.eval_loader, ONE)
    assert found.top1 == result["top1_held_out"]
    searcher.resume()
    same, metrics = searcher.evaluator.inherited(result["picks"], "bf16")
    assert differences_of(same.state_dict(), tensors(run / "child.safetensors")) == 0
    assert metrics.loss == found.loss
    # In the search's own precision it is not quite the same model.
    assert searcher.evaluator.inherited(result["picks"], amp=True)[1].loss != found.loss


@pytest.mark.skipif(not has_tensorboard(), reason="TensorBoard is not installed")
def test_tensorboard_gets_what_the_log_gets(run: Path) -> None:
    found = scalars(run / "tensorboard")
    logged = [line for line in lines(run) if line["event"] == "arch"]
    assert [line["step"] for line in logged] == [4, 5, 6, 7, 8, 9]
    names = ("loss", "objective", "gradient_norm", "strength", "expected", "of_target", "entropy")
    for name in (*names, "skip_share", "skip_share_now"):
        steps, values = zip(*found[f"search/{name}"], strict=True)
        assert steps == (4, 5, 6, 7, 8, 9)
        assert values == pytest.approx([line[name] for line in logged], rel=1e-6)
    assert logged[-1]["of_target"] == pytest.approx(logged[-1]["expected"] / 0.03)
    ends = [line for line in lines(run) if line["event"] == "epoch"]
    assert found["search/derived_top1"] == [(line["step"], pytest.approx(line["top1"])) for line in ends]
    assert found["search/derived_macs"][-1][1] <= 0.03
    assert {"train/loss", "train/rate", "epoch/train_loss", "epoch/val_top1"} <= found.keys()


@pytest.mark.skipif(not has_tensorboard(), reason="TensorBoard is not installed")
def test_tensorboard_shows_alpha_and_the_model(run: Path) -> None:
    pytest.importorskip("matplotlib")
    found = images(run / "tensorboard")
    assert set(found) == {"search/probabilities", "search/net"}
    for tag in found:
        assert {step for step, _ in found[tag]} <= {6, 9}
        assert found[tag][-1][0] == 9
        assert found[tag][-1][1].startswith(b"\x89PNG")


class StopAfter(StopRequest):
    """Has got a signal after some looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def signal(self) -> int | None:  # type: ignore[override]
        self.looks -= 1
        return 15 if self.looks < 0 else None


def everything(state: dict[str, Any]) -> list[Any]:
    """Return what a search goes on from, but times."""
    flat: list[Any] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                if key not in ("seconds", "total_seconds", "waited"):
                    walk(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        else:
            flat.append(value.tolist() if isinstance(value, torch.Tensor) else value)

    walk(state)
    return flat


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"arch_mode": "two", "amp": "fp16"}, {"algorithm": "reinforce"}, {"algorithm": "random"},
        {"algorithm": "evolution", "population": 2},
        {"algorithm": "reinforce", "fair_warmup": True, "reinforce_baseline": 0.9},
        {"final_candidates": 3, "final_evolution": 4},
    ],
    ids=["gradient", "two in fp16", "reinforce", "random", "evolution", "fair, reinforce", "with an end"],
)  # fmt: skip
def test_stopped_anywhere_a_search_goes_on_to_the_same_bits(
    changes: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    recipe = SHORT.replace(**changes)
    torch.manual_seed(0)
    whole = searcher_of(data, tmp_path / "whole", recipe)
    whole.resume()
    assert whole.fit(StopAfter(1000), silent())
    stops = (2, 5, 3, 2, 2, 1000)  # looks of each part, one a step, an epoch and an evaluated model
    for looks in stops:
        part = searcher_of(data, tmp_path / "parts", recipe)
        notes = part.resume()
        if part.fit(StopAfter(looks), silent()):
            break
    assert any("continued from step" in note for note in notes)
    assert part.finished
    assert everything(part.state_dict()) == everything(whole.state_dict())
    assert part.evaluator.derived() == whole.evaluator.derived()
    assert searcher_of(data, tmp_path / "parts", recipe).resume() == [
        "this run is finished: only its end is repeated"
    ]


def test_another_recipe_space_or_target_is_another_run(run: Path, data: Path) -> None:
    with pytest.raises(ProxylessError, match=r"holds another run; its recipe differs \(arch_rate: 0.1"):
        searcher_of(data, run, BF16.replace(arch_rate=0.1)).resume()


@pytest.mark.parametrize("algorithm", ["gradient", "reinforce"])
def test_no_step_of_the_weights_waits_for_the_device(algorithm: str, data: Path, tmp_path: Path) -> None:
    """Neither reading a number nor comparing one; an arch step brings its gradient to alpha, and no more."""

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_local_scalar_dense" in str(func) and args[0].dtype != torch.float64:  # alpha is of 64 bits
                stack = "".join(traceback.format_stack(limit=9))
                if "adam.py" not in stack:  # alpha's optimiser, on the CPU in any case
                    seen.append(stack)
            return func(*args, **(kwargs or {}))

    seen: list[Any] = []
    searcher = searcher_of(data, tmp_path / "x", SHORT.replace(algorithm=algorithm))
    searcher.model.train()
    batches = list(searcher.loader.epoch(0))
    searcher.weight_step(batches[0], 0, 1.0)
    with Reads():
        for number, batch in enumerate(batches):
            searcher.losses.add(searcher.weight_step(batch, number, 1.0))
        searcher.arch_update(0)
    assert seen == []
    assert searcher.losses.look(StopRequest()).steps == len(batches)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = noise_folder(tmp_path / "data")
    parts = searcher_of(folder, tmp_path / "x", SHORT).data
    bad = parts.val.name(3), parts.train.name(5)
    for name in bad:
        Path(name).write_bytes(b"no image")
    settings = Settings(tmp_path / "run", device="cpu", workers=0, console=False, max_unreadable=0.05)
    recipe = SHORT.replace(warmup_epochs=1, epochs=1)
    assert search(TINY_SPACE, folder, recipe, out=settings).finished
    notes = [line["text"] for line in lines(tmp_path / "run", "log.jsonl") if line["event"] == "note"]
    for name in bad:
        assert sum(name in note for note in notes) == 1
    assert any(note.startswith("1 held-out image(s) cannot be read") for note in notes)
    with pytest.raises(DataError, match="cannot be read, more than the 1 %") as caught:
        searcher_of(folder, tmp_path / "y", SHORT)
    assert bad[1] in str(caught.value)


def test_weights_that_break_down_are_told_of_before_alpha(data: Path, tmp_path: Path) -> None:
    searcher = searcher_of(data, tmp_path / "x", SHORT.replace(warmup_epochs=0))
    searcher.losses.every = 10  # as on a GPU: an arch step comes before the next look
    torch.nn.init.constant_(searcher.model.classifier.linear.weight, float("nan"))
    with pytest.raises(ProxylessError, match=r"the loss is not finite .* since step 0 \(epoch 1\)"):
        searcher.fit(StopRequest(), silent())


def test_a_batch_of_one_tells_what_to_do(data: Path, tmp_path: Path) -> None:
    searcher = searcher_of(data, tmp_path / "x", SHORT)
    searcher.evaluator.loader = _Ones()  # type: ignore[assignment]
    choices = searcher.evaluator.derived()
    with pytest.raises(DataError, match=r"with 1 image.*use a larger batch_size or image_size"):
        searcher.evaluator.inherited(choices, "x")


class _Ones:
    """Gives batches of one image that the model shrinks to 1x1 px."""

    def epoch(self, number: int, mix: bool = True) -> Any:
        from proxylessnas.train.loader import Batch

        yield Batch(torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long))
