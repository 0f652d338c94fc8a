"""Code for GPUs where there is none.

On the device "meta" everything runs but the numbers: forward, backward, optimisers. A tensor that was made on
the CPU by mistake does not go together with the others there, and a value that is read where nobody should
wait for the device cannot be had. ``FakeTensorMode`` plays the device "cuda" itself, for forward passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from latency_table_tools import SPACE as TABLE_SPACE
from latency_table_tools import little, uniform
from search_tools import SHORT, TINY_SPACE
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from train_tools import BUSY, TINY, few_digits, noise_folder

from proxylessnas import create_model
from proxylessnas.arch.op_key import arch_keys
from proxylessnas.models.batchnorm import fold_batchnorm, recalibrate
from proxylessnas.runtimes.modules import op_module
from proxylessnas.search import SearchRecipe
from proxylessnas.search.arch_optimizers import MODES
from proxylessnas.search.objective import expected_cost
from proxylessnas.search.searcher import Searcher
from proxylessnas.search.setup import SearchSetup
from proxylessnas.search.supernet import SuperNet
from proxylessnas.train import Recipe, Settings
from proxylessnas.train.augment import BatchAugment, Draws, Mixing
from proxylessnas.train.distillation import open_teachers
from proxylessnas.train.evaluate import accuracy_on, evaluate_batches
from proxylessnas.train.metrics import Metrics
from proxylessnas.train.setup import preprocessing_of
from proxylessnas.train.trainer import Trainer
from proxylessnas.utils.distributed import Processes

META = torch.device("meta")


def test_mistakes_are_noticed() -> None:
    """What the other tests here rely on."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros(2, device=META) + torch.zeros(2)
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros((), device=META).item()
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device="cuda") + torch.zeros(2)


def trainer_of(folder: Path, recipe: Recipe, **options: object) -> Trainer:
    settings = Settings(folder, device="meta", workers=0, console=False)
    return Trainer(create_model(TINY), few_digits(), recipe, settings, Processes(0, 1, META), **options)


def steps_of(trainer: Trainer, n: int = 3) -> Iterator[Tensor]:
    batches = trainer.loader.epoch(0)
    for number, batch in zip(range(n), batches, strict=False):
        taught = trainer._taught(batch.inputs)
        yield trainer.step(batch.inputs, batch.targets, number, 0.5, taught)


def values_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that an optimiser keeps, but for its counts of steps."""
    kept = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return [value for value in kept if isinstance(value, Tensor)]


@pytest.mark.parametrize(
    ("optimizer", "change"),
    [
        ("sgd", {}),
        ("adamw", {"mixup_alpha": 0.0, "cutmix_alpha": 0.5, "clip_norm": 1.0, "accumulate": 2}),
        ("muon", {"label_smoothing": 0.1, "mixup_alpha": 0.0, "random_erasing": 0.2}),
    ],
)
def test_training_steps(tmp_path: Path, optimizer: str, change: dict[str, float]) -> None:
    trainer = trainer_of(tmp_path, BUSY.replace(optimizer=optimizer, **change))
    trainer._enter_phase(0)
    trainer.model.train()
    losses = list(steps_of(trainer))
    assert [loss.device for loss in losses] == [META] * 3
    state = [*trainer.model.state_dict().values(), *values_of(trainer.optimizer)]
    assert trainer.average is not None
    state += trainer.average.state_dict().values()
    assert {tensor.device for tensor in state} == {META}
    assert values_of(trainer.optimizer)
    for loss in losses:
        trainer.losses.add(loss)
    with trainer.average.applied(trainer.model):
        metrics = accuracy_on(trainer.model, trainer.val_loader, trainer.processes)
    assert {tensor.device for tensor in metrics.tensors()} == {META}
    inputs = (batch.inputs for batch in trainer.loader.epoch(1, mix=False))
    assert recalibrate(trainer.model, inputs, 2) == 2
    trainer.release()


def test_losses_are_read_every_few_steps(tmp_path: Path) -> None:
    assert trainer_of(tmp_path, BUSY).losses.every > 1


def test_a_step_with_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = BUSY.replace(teacher_share=0.5, teacher_mirrored=True)
    data, source = few_digits(), create_model(TINY)
    monkeypatch.setattr("proxylessnas.train.distillation._check_classes", lambda *_: None)  # it reads logits
    trainer = trainer_of(tmp_path, recipe, teacher=lambda own: open_teachers(source, data, own, META))
    trainer._enter_phase(0)
    assert trainer.teacher is not None
    (teacher,) = trainer.teacher.teachers
    preprocessing = trainer.loader.preprocessing
    other = dataclasses.replace(preprocessing, mean=(0.1, 0.2, 0.3), input_size=12, resize=12)
    object.__setattr__(teacher, "preprocessing", other)
    assert {loss.device for loss in steps_of(trainer)} == {META}


def test_evaluation_reads_once_at_its_end() -> None:
    model, given = create_model(TINY), []

    def batches() -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        for _ in range(3):
            given.append(1)
            yield torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), []

    with pytest.raises(RuntimeError, match="meta"):
        evaluate_batches(model, batches(), device="meta")
    assert len(given) == 3


def searcher_of(folder: Path, recipe: SearchRecipe) -> Searcher:
    data = noise_folder(folder / "data")
    job = SearchSetup(TINY_SPACE, str(data), recipe, None, False, None)
    settings = Settings(folder / "run", device="meta", workers=0, console=False)
    return job.searcher(settings, Processes(0, 1, META))


def weight_steps(searcher: Searcher) -> None:
    searcher.model.train()
    for number, batch in zip(range(3), searcher.loader.epoch(0), strict=False):
        searcher.model.set_path(searcher.model.alphas.sample(searcher.path_generator))
        assert searcher.weight_step(batch, number, 0.5).device == META
    assert values_of(searcher.optimizer)
    assert {value.device for value in values_of(searcher.optimizer)} == {META}


@pytest.mark.parametrize("mode", MODES)
def test_steps_of_a_search_by_gradient(tmp_path: Path, mode: str) -> None:
    searcher = searcher_of(tmp_path, SHORT.replace(arch_mode=mode))
    weight_steps(searcher)
    step, alphas = searcher.arch_step, searcher.model.alphas
    assert step is not None
    inputs, targets = searcher.arch_loader.batch(0)
    pairs = alphas.sample_pairs(searcher.arch_generator)
    wanted = [[k] for k in pairs.indices[:, 1].tolist()]
    path = pairs.indices[:, 0].tolist()
    if mode != "two":
        path, wanted = alphas.sample(searcher.arch_generator), [list(range(len(alphas.mask[0])))] * len(path)
    searcher.model.set_path(path)
    found = step.gate_gradient(inputs, targets, wanted)
    assert found.device == META
    assert found.shape == (alphas.mask.numel() + 1,)
    searcher.release()


def test_steps_of_a_search_by_reinforce(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, SHORT.replace(algorithm="reinforce"))
    weight_steps(searcher)
    paths = [searcher.model.alphas.sample(searcher.arch_generator) for _ in range(3)]
    assert searcher.reinforce is not None
    found = searcher.reinforce.right(paths, *searcher.arch_loader.batch(0))
    assert (found.device, found.shape) == (META, (4,))
    child = searcher.model.child(paths[0])
    assert recalibrate(child, searcher.evaluator.calibration(), 2) == 2
    metrics = accuracy_on(child, searcher.judge_loader, searcher.processes)
    assert {tensor.device for tensor in metrics.tensors()} == {META}
    searcher.release()


def test_expected_costs() -> None:
    table = little()
    probs = uniform(TABLE_SPACE).float().to(META).requires_grad_()
    mean = table.expected(probs)
    mean.backward()
    assert (mean.device, mean.dtype, mean.shape) == (META, torch.float32, ())
    assert probs.grad is not None
    assert probs.grad.device == META
    costs, fixed_ms = table.costs()
    assert expected_cost(probs, costs, fixed_ms).device == META


def on_cuda(model: nn.Module) -> Callable[..., Tensor]:
    """Return a model with tensors of a played GPU in the place of its own."""
    tensors = {}
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        layout = torch.channels_last if own.dim() == 4 else torch.contiguous_format
        tensors[name] = torch.empty(own.shape, dtype=own.dtype, device="cuda", memory_format=layout)
    return lambda x: torch.func.functional_call(model, tensors, (x,))


def images(channels: int = 3, size: int = 32) -> Tensor:
    x = torch.zeros(2, channels, size, size, device="cuda")
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["proxyless_mobile", "proxyless_cifar10_demo", "proxyless_cifar"])
@pytest.mark.parametrize("change", [lambda model: model, fold_batchnorm], ids=["as it is", "folded"])
def test_models_play_cuda(name: str, change: Callable[[nn.Module], nn.Module]) -> None:
    model = change(create_model(name).eval())
    with FakeTensorMode(), torch.inference_mode():
        logits = on_cuda(model)(images())
        metrics = Metrics(logits.shape[1], device=logits.device)
        metrics.add(logits, torch.zeros(2, dtype=torch.long, device="cuda"))
        assert {t.device.type for t in [logits, *metrics.tensors()]} == {"cuda"}


def test_training_plays_cuda() -> None:
    model = create_model(TINY, drop_path_rate=0.2).train()
    with FakeTensorMode():
        assert on_cuda(model)(images(size=8)).device.type == "cuda"


def test_a_supernet_plays_cuda() -> None:
    model = SuperNet(TINY_SPACE).train()
    for column in range(4):
        model.set_path([column] * len(model.choices))
        with FakeTensorMode(), model.statistics_kept():
            x = images(TINY_SPACE.in_channels, 8)
            gates = torch.zeros(len(model.choices), 5, device="cuda")
            with model.gated(gates, [range(4)] * len(model.choices), store=True):
                assert on_cuda(model)(x).device.type == "cuda"


def test_operations_that_are_timed_play_cuda() -> None:
    for key in arch_keys(TINY):
        module = op_module(str(key)).eval()
        with FakeTensorMode(), torch.inference_mode():
            assert on_cuda(module)(images(key.in_channels, key.size)).device.type == "cuda"


def test_augmentation_plays_cuda() -> None:
    """What it draws is drawn on the CPU, and sent."""
    preprocessing = preprocessing_of(BUSY, create_model(TINY), few_digits())
    with FakeTensorMode():
        augment = BatchAugment(BUSY, preprocessing, torch.device("cuda"))
        draws = Draws(
            torch.zeros(4, 2, dtype=torch.long, device="cuda"),
            torch.zeros(4, dtype=torch.bool, device="cuda"),
            torch.zeros(4, 2, dtype=torch.long, device="cuda"),
        )
        x = augment._cropped(torch.zeros(4, 8, 8, 3, dtype=torch.uint8, device="cuda"), draws)
        assert (x.device.type, x.shape) == ("cuda", (4, 8, 8, 3))
        assert augment._squares(draws.centres).device.type == "cuda"
        targets = torch.zeros(4, dtype=torch.long, device="cuda")
        inputs, shares = Mixing(BUSY, 10)(x.permute(0, 3, 1, 2).float(), targets, 0, 0)
        assert {inputs.device.type, shares.device.type} == {"cuda"}
