"""The over-parameterised net: every candidate of every block, one path at a time.

    >>> from proxylessnas.arch.spaces import read_space
    >>> supernet = SuperNet(read_space("tiny"))
    >>> supernet.set_path([0] * len(supernet.choices))

At any time the net is a plain one: :meth:`SuperNet.set_path` says which. An arch step opens the gates for the
time of one forward and backward pass (:meth:`SuperNet.gated`). There is no state in classes, and the modules
stay where they are: switching paths is setting one number a block.
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
from ..arch.space import Position, SearchSpace
from ..data.transforms import Preprocessing
from ..errors import ArchError
from ..models.layers import ConvLayer, LinearLayer, ResidualBlock, make_op
from ..models.proxylessnas import ProxylessNAS
from .arch_params import Alphas
from .mixed_op import Choice


class SuperNet(nn.Module):
    """All nets of a space in one, with shared stem, last layers and, between nets, candidates.

    Args:
        space: the nets to choose from.
        device: where to create the weights.

    Attributes:
        alphas: the architecture parameters, on the CPU; not among ``parameters()``.
        choices: the searched blocks, in order.
        preprocessing: of its pictures, if known.
    """

    def __init__(self, space: SearchSpace, device: Any = None) -> None:
        super().__init__()
        self.space = space
        self.num_classes, self.in_chans = space.num_classes, space.in_channels
        self.preprocessing: Preprocessing | None = None
        options: dict[str, Any] = {"eps": space.bn_eps, "momentum": space.bn_momentum, "device": device}
        self.first_conv = ConvLayer(space.in_channels, space.stem, 3, space.stem_stride, **options)
        fixed: list[nn.Module] = []
        if space.first:
            fixed.append(ResidualBlock(first_block(space.stem, space.first), **options))
        self.choices: list[Choice] = []
        for position in space.positions:
            candidates = [_candidate(position, column, options) for column in space.columns]
            self.choices.append(Choice(candidates, position.shortcut))
        self.blocks = nn.ModuleList([*fixed, *self.choices])
        self._fixed = len(fixed)
        width = space.stages[-1].width
        self.feature_mix_layer = ConvLayer(width, space.last, 1, **options)
        self.classifier = LinearLayer(space.last, space.num_classes, device)
        # In a list, so that nn.Module does not see it: optimisers of weights must not find alpha.
        self._alphas = [Alphas(space.mask)]
        self._norms = [m for m in self.modules() if isinstance(m, _BatchNorm)]

    @property
    def alphas(self) -> Alphas:
        """The architecture parameters."""
        return self._alphas[0]

    # ---- paths

    @property
    def path(self) -> list[int]:
        """The active candidate of each block."""
        return [choice.active for choice in self.choices]

    def set_path(self, picks: Sequence[int]) -> None:
        """Make the net the one with column ``picks[i]`` as searched block ``i``.

        Raises:
            ArchError: there is no such net in the space.
        """
        if len(picks) != len(self.choices):
            raise ArchError(f"the space has {len(self.choices)} blocks, but {len(picks)} are picked")
        for i, (choice, pick) in enumerate(zip(self.choices, picks, strict=True)):
            if not 0 <= pick < len(choice.allowed) or not choice.allowed[pick]:
                raise ArchError(f"searched block {i + 1} has no candidate {pick}")
            choice.active = pick

    def random_path(self, rng: random.Random) -> list[int]:
        """Set a path drawn evenly, and return it."""
        picks = list(self.space.random_picks(rng))
        self.set_path(picks)
        return picks

    @contextlib.contextmanager
    def gated(self, gates: Tensor, wanted: Sequence[Sequence[int]], *, store: bool = False) -> Iterator[None]:
        """Give the gates a gradient while the block runs.

        Args:
            gates: [blocks, columns], a leaf that requires a gradient.
            wanted: columns whose gate gradient is wanted, besides the active one, for each block.
            store: see :class:`~.choice.Choice`.
        """
        rows = gates.unbind(0)
        try:
            for choice, row, others in zip(self.choices, rows, wanted, strict=True):
                choice.gates, choice.store = row, store
                choice.others = tuple(k for k in others if k != choice.active and choice.allowed[k])
            yield
        finally:
            for choice in self.choices:
                choice.gates, choice.others, choice.store = None, (), False

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
        """Yield the modules of the present path, first to last: what a plain net of it would hold."""
        yield self.first_conv
        yield from self.blocks[: self._fixed]
        for choice in self.choices:
            op = choice.op(choice.active)
            if op is not None:
                yield op
        yield self.feature_mix_layer
        yield self.classifier

    # ---- the net

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures [N, channels, H, W] to the logits [N, classes] of the present path."""
        x = self.first_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.feature_mix_layer(x).mean((2, 3)))

    # ---- what comes out

    def child(self, picks: Sequence[int] | None = None, name: str = "searched") -> ProxylessNAS:
        """Return one of the nets as a plain one, with copies of its weights and BatchNorm statistics.

        In evaluation mode its logits are those of this net on the same path.

        Args:
            picks: columns, one a searched block; None takes the present path.
            name: of its architecture.
        """
        picks = self.path if picks is None else list(picks)
        arch = self.space.arch(picks, name)
        device = self.classifier.linear.weight.device
        net = ProxylessNAS(arch, device="meta")
        source: dict[str, Tensor] = {}
        for part in ("first_conv", "feature_mix_layer", "classifier"):
            source.update(_named(part, getattr(self, part)))
        for i in range(self._fixed):
            source.update(_named(f"blocks.{i}", self.blocks[i]))
        for i, (choice, pick) in enumerate(zip(self.choices, picks, strict=True), self._fixed):
            op = choice.op(pick)
            if op is not None:
                # A registered operation may hold buffers that no state dict has: take a copy of all of it.
                net.blocks[i].mobile_inverted_conv = _copy(op)
        copies = {key: value.detach().clone() for key, value in source.items()}
        found = net.load_state_dict(copies, strict=False, assign=True)
        wrong = [
            *found.unexpected_keys,
            *(k for k in found.missing_keys if ".mobile_inverted_conv." not in k),
        ]
        assert not wrong, wrong
        net.preprocessing = self.preprocessing
        net.to(device).train(self.training)
        return net


def _candidate(position: Position, token: str, options: dict[str, Any]) -> nn.Module | bool | None:
    """Return what :class:`Choice` takes for a column: a module, None for Zero, False where there is none."""
    if token not in position.choices:
        return False
    op = make_op(
        parse_token(token)[0], position.in_channels, position.out_channels, position.stride, **options
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
    """Return a net whose weights and alphas follow from a seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SuperNet(space)
    net.alphas.init(torch.Generator().manual_seed(seed))
    return net if device is None else net.to(device)
