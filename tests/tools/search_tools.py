"""What the tests of the search's core share: a small space with operations of its own, and the mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas import register_op
from proxylessnas.arch.space import SearchSpace, SpaceStage
from proxylessnas.search import SearchRecipe
from proxylessnas.search.logger import SearchLog
from proxylessnas.search.mixed_op import MixedOp
from proxylessnas.search.path_optimizer import PathParameters
from proxylessnas.search.searcher import Searcher
from proxylessnas.search.setup import SearchSetup
from proxylessnas.search.supernet import SuperNet, seeded
from proxylessnas.train import Recipe, Settings
from proxylessnas.train.logger import RunLog
from proxylessnas.utils.distributed import Processes


class Curve(nn.Module):
    """An operation unlike an MBConv: no BatchNorm, smooth, and a buffer that no checkpoint has."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(inputs, outputs, 1, stride)
        self.register_buffer("scale", torch.full((outputs, 1, 1), 0.7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(x)) * self.scale


class Pool(nn.Module):
    """An operation without a weight, whose output's strides are not its input's."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.outputs = stride, outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, 3, self.stride, 1).mean(1, keepdim=True)
        return y.expand(-1, self.outputs, -1, -1)


register_op("search_curve", Curve)
register_op("search_pool", Pool)

#: Blocks 0 and 2 halve the map and have no shortcut; 1 and 3 have one, and may be skipped (column 4).
SPACE = SearchSpace(
    "test", stem=8, first=8, last=16, stages=(SpaceStage(8, 2, 2), SpaceStage(12, 2, 2)),
    candidates=("k3e2", "k5e3", "search_curve", "search_pool"), resolution=16, num_classes=5, in_channels=2,
)  # fmt: skip
BLOCKS, COLUMNS, ZERO_COLUMN = 4, 5, 4
ALL = [range(COLUMNS)] * BLOCKS
#: No Zero; one; both; every candidate somewhere.
PATHS = ([0, 1, 2, 3], [1, 4, 0, 1], [2, 4, 3, 4], [3, 0, 1, 2], [0, 2, 0, 4])


def small_model(seed: int = 0, space: SearchSpace = SPACE, dtype: torch.dtype = torch.float64) -> SuperNet:
    """Return a model in training mode, with an alpha that is far from even."""
    model = seeded(space, seed).to(dtype).train()
    model.alphas.init(torch.Generator().manual_seed(seed), std=1.0)
    return model


def batch(
    seed: int = 0, dtype: torch.dtype = torch.float64, n: int = 6, size: int = 16
) -> tuple[Tensor, Tensor]:
    """Return images and classes."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randn(n, SPACE.in_channels, size, size, generator=g, dtype=torch.float64)
    return images.to(dtype), torch.randint(0, SPACE.num_classes, (n,), generator=g)


def sgd_paths(model: SuperNet, momentum: float = 0.9, fused: bool = False) -> PathParameters:
    """Return the paths of a model with the optimiser of a search."""
    optimizer = torch.optim.SGD(
        model.parameters(), 0.05, momentum, weight_decay=1e-2, nesterov=momentum > 0, fused=fused
    )
    return PathParameters(model, optimizer)


def mixture(model: SuperNet, gates: Tensor, x: Tensor) -> Tensor:
    """Return the logits with every block written out as ``sum_k g_k o_k(x)``, plus ``x`` with a shortcut."""
    x = model.first_conv(x)
    for block in model.blocks:
        if not isinstance(block, MixedOp):
            x = block(x)
            continue
        row = gates[model.mixed_ops.index(block)]
        y = torch.zeros(())
        for k, allowed in enumerate(block.allowed):
            op = block.op(k) if allowed else None
            if op is not None:
                y = y + row[k] * op(x)
        x = x + y if block.shortcut else y
    return model.classifier(model.feature_mix_layer(x).mean((2, 3)))


def one_hot(path: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the gates of a path, [blocks, columns]."""
    return F.one_hot(torch.tensor(list(path)), COLUMNS).to(dtype)


def mixture_gradient(model: SuperNet, path: Sequence[int], x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and what autograd makes of the mixture's gates."""
    gates = one_hot(path, x.dtype).requires_grad_()
    with model.statistics_kept():
        loss = F.cross_entropy(mixture(model, gates, x), t)
        (gradient,) = torch.autograd.grad(loss, gates)
    return loss.detach(), gradient


def gate_gradient(
    model: SuperNet,
    path: Sequence[int],
    x: Tensor,
    t: Tensor,
    wanted: Sequence[Sequence[int]] = ALL,
    store: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the loss and what the gates give."""
    gates = torch.zeros(BLOCKS, COLUMNS, dtype=x.dtype, requires_grad=True)
    model.set_path(path)
    with model.statistics_kept():
        with model.gated(gates, wanted, store=store):
            loss = F.cross_entropy(model(x), t)
        (gradient,) = torch.autograd.grad(loss, gates)
    return loss.detach(), gradient


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of everything that a state dict has."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether two states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def counted(model: SuperNet) -> Callable[[], list[list[int]]]:
    """Count how often each candidate runs; the function returned gives the counts and starts over."""
    counts = [[0] * COLUMNS for _ in range(BLOCKS)]

    def hook(i: int, k: int) -> Callable[..., None]:
        def count(*_: object) -> None:
            counts[i][k] += 1

        return count

    for i, mixed_op in enumerate(model.mixed_ops):
        for k, allowed in enumerate(mixed_op.allowed):
            op = mixed_op.op(k) if allowed else None
            if op is not None:
                op.register_forward_hook(hook(i, k))

    def read() -> list[list[int]]:
        found = [row.copy() for row in counts]
        for row in counts:
            row[:] = [0] * COLUMNS
        return found

    return read


#: The same blocks for images of 8 px.
TINY_SPACE = SPACE.replace(stem_stride=1, resolution=8)
#: One epoch of warm-up and two of search, each of 3 steps on the images of ``noise_folder``.
SHORT = SearchRecipe(
    weights=Recipe(
        epochs=3, batch_size=20, image_size=8, resize=8, crop="padded", crop_padding=1, flip=True,
        learning_rate=0.02, no_decay="none",
    ),
    warmup_epochs=1, epochs=2, search_rate=0.02, frozen_epochs=0, arch_every=1, arch_rate=0.05,
    arch_fraction=0.4, recalibrate_batches=2, reinforce_updates=3, reinforce_samples=3, evaluations=4,
    target_macs_m=0.03,
)  # fmt: skip


def searcher_of(data: Path, out: Path, recipe: SearchRecipe, processes: Processes | None = None) -> Searcher:
    """Return a search that may begin."""
    settings = Settings(out, device="cpu", workers=0, console=False)
    setup = SearchSetup(TINY_SPACE, str(data), recipe)
    return Searcher(setup, settings, processes or Processes(0, 1, torch.device("cpu")))


def silent() -> SearchLog:
    return SearchLog(RunLog.silent(), None)
