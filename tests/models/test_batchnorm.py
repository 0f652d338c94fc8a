"""Recalibrated statistics, and BatchNorm over two processes against one on the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from train_tools import in_two_processes

from proxylessnas import Arch, create_model
from proxylessnas.arch.blocks import Stage
from proxylessnas.models.batchnorm import convert_sync_bn, recalibrate, revert_sync_bn
from proxylessnas.utils.distributed import Processes

ARCH = Arch("small", stem=8, first=8, last=16, stages=(Stage(8, 2, "k3e3 k3e3"),))
SIZES = (4, 6)  # images of each process: not the same


def batches(count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 3, 32, 32) * (i + 1) + i for i in range(count)]


# ---- recalibration


def test_recalibrated_statistics_are_the_means_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.01)).eval()
    model(torch.randn(2, 3, 4, 4))
    data = batches()
    assert recalibrate(model, data, 10) == 3
    bn = model[0]
    mean = torch.stack([x.mean((0, 2, 3)) for x in data]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in data]).mean(0)
    torch.testing.assert_close(bn.running_mean, mean)
    torch.testing.assert_close(bn.running_var, var)
    assert bn.momentum == 0.01


def test_recalibration_takes_no_more_batches_than_asked() -> None:
    taken = 0

    def count() -> Iterator[Tensor]:
        nonlocal taken
        for x in batches(5):
            taken += 1
            yield x

    model = nn.Sequential(nn.BatchNorm2d(3))
    assert recalibrate(model, count(), 2) == 2
    assert taken == 2
    torch.testing.assert_close(
        model[0].running_mean, torch.stack([x.mean((0, 2, 3)) for x in batches(2)]).mean(0)
    )


def test_recalibration_leaves_everything_else_as_it_was() -> None:
    model = create_model(ARCH, num_classes=4, drop_rate=0.9, drop_path_rate=0.9)
    model.train()
    model(batches(1)[0])
    model.blocks[1].eval()  # type: ignore[union-attr,operator,index]
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    recalibrate(model, batches(), 3)
    once = copy.deepcopy(model.state_dict())
    recalibrate(model, batches(), 3)
    assert [m.training for m in model.modules()] == modes
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    for name, t in model.state_dict().items():
        assert torch.equal(t, once[name]), f"{name}: something random was at work"
        assert torch.equal(t, before[name]) is ("running" not in name), name


def test_recalibration_makes_averaged_weights_usable() -> None:
    model = create_model(ARCH, num_classes=4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(3.0)  # type: ignore[union-attr]
    x = batches(1)[0]
    recalibrate(model, [x], 1)
    evaluated = model.eval()(x)
    torch.testing.assert_close(evaluated, model.train()(x), rtol=0.02, atol=0.02)


def test_frozen_or_missing_norms_and_no_batches() -> None:
    model = create_model(ARCH, num_classes=4)
    before = copy.deepcopy(model.state_dict())
    assert recalibrate(model, [], 5) == 0
    assert recalibrate(model, batches(), 0) == 0
    model.freeze_bn()
    assert recalibrate(model, batches(), 5) == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert recalibrate(nn.Linear(2, 2), batches(), 5) == 0
    assert recalibrate(nn.BatchNorm2d(3, track_running_stats=False), batches(), 5) == 0


def test_statistics_are_put_back_after_an_exception() -> None:
    model = create_model(ARCH, num_classes=4)
    model.train()
    model(batches(1)[0])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate(model, [batches(1)[0], torch.randn(2, 5, 32, 32)], 5)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


# ---- all processes


def test_convert_and_revert_change_nothing_but_the_class() -> None:
    model = create_model(ARCH, num_classes=4)
    model.train()
    plain, shown = copy.deepcopy(model), str(model)
    parameters = [id(p) for p in model.parameters()]
    assert convert_sync_bn(convert_sync_bn(model)) is model
    converted = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(type(m) is nn.BatchNorm2d for m in converted)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [id(p) for p in model.parameters()] == parameters
    x = batches(1)[0]
    assert torch.equal(model(x), plain(x))  # one process
    model.freeze_bn()
    model.train()
    assert not any(m.training for m in converted)
    model.freeze_bn(False)
    copy.deepcopy(model)
    assert revert_sync_bn(model) is model
    assert all(type(m) is nn.BatchNorm2d for m in converted)
    assert str(model) == shown
    assert vars(model.first_conv.bn).keys() == vars(plain.first_conv.bn).keys()  # type: ignore[union-attr,arg-type]


def small(affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=affine, momentum=0.2), nn.ReLU(),
        nn.Conv2d(8, 4, 3, bias=False), nn.BatchNorm2d(4, momentum=None),
    )  # fmt: skip


def _loss(y: Tensor, start: int) -> Tensor:
    index = torch.arange(y.numel(), dtype=y.dtype).view(y.shape) + start
    return (y * (1 + torch.sin(index) / 2)).sum() + y.pow(3).sum()  # its gradients do not cancel


def _two_processes(rank: int, folder: str) -> None:
    """Write what process ``rank`` of 2 computes on its part of the batch."""
    start = sum(SIZES[:rank])
    found = {}
    for dtype in (torch.float32, torch.float64):
        for affine in (True, False):
            for layout in (torch.contiguous_format, torch.channels_last):
                model = convert_sync_bn(small(affine).to(dtype=dtype, memory_format=layout))
                x = whole(dtype)[start : start + SIZES[rank]].to(memory_format=layout)
                x = x.detach().requires_grad_()
                for _ in range(2):
                    y = model(x)
                x.grad = None
                _loss(y, start * y[0].numel()).backward()
                for p in model.parameters():
                    dist.all_reduce(p.grad)
                found[f"{dtype} {affine} {layout}"] = {
                    "y": y.detach(), "x": x.grad,
                    "weights": [p.grad for p in model.parameters()], "state": dict(model.state_dict()),
                    "eval": model.eval()(whole(dtype)).detach(),
                }  # fmt: skip
    model = convert_sync_bn(small())
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = {"y": model(whole(torch.float32)[start : start + SIZES[rank]]).detach()}
    plain = small()
    used = recalibrate(
        plain, [whole(torch.float32)[start : start + SIZES[rank]]], 9,
        processes=Processes(rank, 2, torch.device("cpu")),
    )  # fmt: skip
    found["recalibrated"] = {"used": used, "state": dict(plain.state_dict())}
    torch.save(found, f"{folder}/{rank}.pt")


def whole(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(sum(SIZES), 3, 10, 10, dtype=dtype) * 3 + 5


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(_two_processes, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_two_processes_equal_one_on_the_whole_batch(
    parts: list[dict], dtype: torch.dtype, affine: bool, layout: torch.memory_format
) -> None:
    model = small(affine).to(dtype)
    x = whole(dtype).requires_grad_()
    for _ in range(2):
        y = model(x)
    _loss(y, 0).backward()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    found = [part[f"{dtype} {affine} {layout}"] for part in parts]
    torch.testing.assert_close(torch.cat([f["y"] for f in found]), y, **close)
    torch.testing.assert_close(torch.cat([f["x"] for f in found]), x.grad, **close)
    for f in found:
        for grad, p in zip(f["weights"], model.parameters(), strict=True):
            # sums of a thousand terms: against their scale
            torch.testing.assert_close(grad / p.grad.abs().max(), p.grad / p.grad.abs().max(), **close)  # type: ignore[union-attr]
        assert f["state"].keys() == model.state_dict().keys()
        for name, t in model.state_dict().items():
            torch.testing.assert_close(f["state"][name], t, **close)
        torch.testing.assert_close(f["eval"], copy.deepcopy(model).eval()(whole(dtype)), **close)
    for name in model.state_dict():
        assert torch.equal(found[0]["state"][name], found[1]["state"][name]), (
            "statistics differ in their bits"
        )


def test_two_processes_in_mixed_precision(parts: list[dict]) -> None:
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(whole(torch.float32))
    found = torch.cat([part["autocast"]["y"] for part in parts])
    assert found.dtype == y.dtype
    torch.testing.assert_close(found.float(), y.float(), rtol=0.05, atol=0.05)


def test_recalibration_over_two_processes_takes_their_mean(parts: list[dict]) -> None:
    cuts = whole(torch.float32).split(SIZES)
    models = [small(), small()]
    for model, x in zip(models, cuts, strict=True):
        recalibrate(model, [x], 9)
    states = [model.state_dict() for model in models]
    for part in parts:
        found = part["recalibrated"]
        assert found["used"] == 1
        for name in ("1.running_mean", "4.running_var"):
            torch.testing.assert_close(found["state"][name], (states[0][name] + states[1][name]) / 2)
