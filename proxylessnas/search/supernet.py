"""The over-parameterised model: every candidate of every block, one path at a time.

    >>> from proxylessnas.arch.spaces import read_space
    >>> supernet = SuperNet(read_space("tiny"))
    >>> supernet.set_path([0] * len(supernet.mixed_ops))

At any time the model is a plain one: :meth:`SuperNet.set_path` says which. An arch step opens the gates for
the time of one forward and backward pass (:meth:`SuperNet.gated`). There is no state in classes, and the
modules stay where they are: switching paths is setting one number a block.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arch.blocks import first_block
from ..arch.ops import parse_token
from ..arch.space import SearchBlock, SearchSpace
from ..data.transforms import Preprocessing
from ..errors import ArchError
from ..models.layers import ConvLayer, LinearLayer, ResidualBlock, make_op
from ..models.proxylessnas import ProxylessNAS
from .arch_params import ArchParameters
from .mixed_op import MixedOp


class SuperNet(nn.Module):
    """All models of a space in one, with shared stem, last layers and, between models, candidates.

    Args:
        space: the models to choose from.
        device: where to create the weights.

    Attributes:
        alphas: the architecture parameters, on the CPU; not among ``parameters()``.
        mixed_ops: the searched blocks, in order.
        preprocessing: of its images, if known.
    """

    def __init__(self, space: SearchSpace, device: Any = None) -> None:
        super().__init__()
        self.space = space
        self.num_classes, self.in_chans = space.num_classes, space.in_channels
        self.preprocessing: Preprocessing | None = None
        options: dict[str, Any] = {
            "activation": space.act, "eps": space.bn_eps, "momentum": space.bn_momentum, "device": device
        }  # fmt: skip
        self.first_conv = ConvLayer(space.in_channels, space.stem, 3, space.stem_stride, **options)
        fixed: list[nn.Module] = []
        if space.first:
            fixed.append(ResidualBlock(first_block(space.stem, space.first), **options))
        self.mixed_ops: list[MixedOp] = []
        for search_block in space.search_blocks:
            candidates = [_candidate(search_block, column, options) for column in space.candidate_ops]
            self.mixed_ops.append(MixedOp(candidates, search_block.shortcut))
        self.blocks = nn.ModuleList([*fixed, *self.mixed_ops])
        self._fixed = len(fixed)
        width = space.stages[-1].width
        self.feature_mix_layer = ConvLayer(width, space.last, 1, **options)
        self.classifier = LinearLayer(space.last, space.num_classes, device)
        # In a list, so that nn.Module does not see it: optimisers of weights must not find alpha.
        self._alphas = [ArchParameters(space.mask)]
        self._norms = [m for m in self.modules() if isinstance(m, _BatchNorm)]

    @property
    def alphas(self) -> ArchParameters:
        """The architecture parameters."""
        return self._alphas[0]

    # ---- paths

    @property
    def path(self) -> list[int]:
        """The active candidate of each block."""
        return [mixed_op.active for mixed_op in self.mixed_ops]

    def set_path(self, choices: Sequence[int]) -> None:
        """Make the model the one with column ``choices[i]`` as searched block ``i``.

        Raises:
            ArchError: there is no such model in the space.
        """
        if len(choices) != len(self.mixed_ops):
            raise ArchError(f"the space has {len(self.mixed_ops)} blocks, but {len(choices)} are picked")
        for i, (mixed_op, choice) in enumerate(zip(self.mixed_ops, choices, strict=True)):
            if not 0 <= choice < len(mixed_op.allowed) or not mixed_op.allowed[choice]:
                raise ArchError(f"searched block {i + 1} has no candidate {choice}")
            mixed_op.active = choice

    def random_path(self, rng: random.Random) -> list[int]:
        """Set a path drawn evenly, and return it."""
        choices = list(self.space.random_choices(rng))
        self.set_path(choices)
        return choices

    @contextlib.contextmanager
    def gated(self, gates: Tensor, wanted: Sequence[Sequence[int]], *, store: bool = False) -> Iterator[None]:
        """Give the gates a gradient while the block runs.

        Args:
            gates: [blocks, columns], a leaf that requires a gradient.
            wanted: columns whose gate gradient is wanted, besides the active one, for each block.
            store: see :class:`~.mixed_op.MixedOp`.
        """
        rows = gates.unbind(0)
        try:
            for mixed_op, row, others in zip(self.mixed_ops, rows, wanted, strict=True):
                mixed_op.gates, mixed_op.store = row, store
                mixed_op.others = tuple(k for k in others if k != mixed_op.active and mixed_op.allowed[k])
            yield
        finally:
            for mixed_op in self.mixed_ops:
                mixed_op.gates, mixed_op.others, mixed_op.store = None, (), False

    @contextlib.contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Use the batch's own statistics, as in training, but leave the running ones alone."""
        was = [(norm, norm.__dict__["track_running_stats"]) for norm in self._norms]
        try:
            for norm in self._norms:
                norm.__dict__["track_running_stats"] = False  # quicker than nn.Module's own way
            yield
        finally:
            for norm, value in was:
                norm.__dict__["track_running_stats"] = value

    def active_parts(self) -> Iterator[nn.Module]:
        """Yield the modules of the present path, first to last: what a plain model of it would hold."""
        yield self.first_conv
        yield from self.blocks[: self._fixed]
        for mixed_op in self.mixed_ops:
            op = mixed_op.op(mixed_op.active)
            if op is not None:
                yield op
        yield self.feature_mix_layer
        yield self.classifier

    # ---- the model

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to the logits [N, classes] of the present path."""
        x = self.first_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.feature_mix_layer(x).mean((2, 3)))

    # ---- what comes out

    def child(self, choices: Sequence[int] | None = None, name: str = "searched") -> ProxylessNAS:
        """Return one of the models as a plain one, with copies of its weights and BatchNorm statistics.

        In evaluation mode its logits are those of this model on the same path.

        Args:
            choices: columns, one a searched block; None takes the present path.
            name: of its architecture.
        """
        choices = self.path if choices is None else list(choices)
        arch = self.space.arch(choices, name)
        device = self.classifier.linear.weight.device
        model = ProxylessNAS(arch, device="meta")
        source: dict[str, Tensor] = {}
        for part in ("first_conv", "feature_mix_layer", "classifier"):
            source.update(_named(part, getattr(self, part)))
        for i in range(self._fixed):
            source.update(_named(f"blocks.{i}", self.blocks[i]))
        for i, (mixed_op, choice) in enumerate(zip(self.mixed_ops, choices, strict=True), self._fixed):
            op = mixed_op.op(choice)
            if op is not None:
                # A registered operation may hold buffers that no state dict has: take a copy of all of it.
                model.blocks[i].mobile_inverted_conv = _copy(op)
        copies = {key: value.detach().clone() for key, value in source.items()}
        found = model.load_state_dict(copies, strict=False, assign=True)
        wrong = [
            *found.unexpected_keys,
            *(k for k in found.missing_keys if ".mobile_inverted_conv." not in k),
        ]
        assert not wrong, wrong
        model.preprocessing = self.preprocessing
        model.to(device).train(self.training)
        return model


def _candidate(search_block: SearchBlock, token: str, options: dict[str, Any]) -> nn.Module | bool | None:
    """Return what :class:`MixedOp` takes for a column: a module, None for Zero, False where there is none."""
    if token not in search_block.candidate_ops:
        return False
    op = make_op(
        parse_token(token)[0],
        search_block.in_channels,
        search_block.out_channels,
        search_block.stride,
        **options,
    )
    return op if op is None or options["device"] is None else op.to(options["device"])


def _named(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def _copy(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    for p in twin.parameters():
        p.grad = None
        p.requires_grad_(True)
    return twin


def seeded(space: SearchSpace, seed: int, device: Any = None) -> SuperNet:
    """Return a model whose weights and alphas follow from a seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SuperNet(space)
    model.alphas.init(torch.Generator().manual_seed(seed))
    return model if device is None else model.to(device)
