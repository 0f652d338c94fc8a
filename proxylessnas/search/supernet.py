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

from ..arch.arch import Arch
from ..arch.blocks import first_block
from ..arch.ops import parse_token
from ..arch.space import SearchSpace
from ..arch.space_base import SearchBlock, Space
from ..arch.tree import TreeArch
from ..arch.tree_space import TreeSpace
from ..data.transforms import Preprocessing
from ..errors import ArchError
from ..models.base import ImageClassifier
from ..models.layers import ConvLayer, LinearLayer, ResidualBlock, make_op
from ..models.proxylessnas import ProxylessNAS
from ..models.pyramid import PyramidTreeNet, TreeNode, make_edge
from .arch_params import ArchParameters
from .mixed_op import MixedOp


class SuperNet(nn.Module):
    """All models of a space in one, with shared stem, last layers and, between models, candidates.

    ``SuperNet(space)`` is a :class:`ChainSuperNet` or a :class:`TreeSuperNet`, as the space is.

    Args:
        space: the models to choose from.
        device: where to create the weights.

    Attributes:
        alphas: the architecture parameters, on the CPU; not among ``parameters()``.
        mixed_ops: the searched positions, in order.
        preprocessing: of its images, if known.
    """

    classifier: LinearLayer

    def __new__(cls, space: Space | None = None, device: Any = None) -> SuperNet:
        """Return one of the kind of the space; without one, as copies are made, of this class itself."""
        kinds: dict[str, type[SuperNet]] = {SearchSpace.kind: ChainSuperNet, TreeSpace.kind: TreeSuperNet}
        return super().__new__(cls if space is None or cls is not SuperNet else kinds[space.kind])

    def __init__(self, space: Space, device: Any = None) -> None:
        super().__init__()
        self.space = space
        self.num_classes, self.in_chans = space.num_classes, space.in_channels
        self.preprocessing: Preprocessing | None = None
        self.mixed_ops: list[MixedOp] = []
        self._build(space, device)
        # In a list, so that nn.Module does not see it: optimisers of weights must not find alpha.
        self._alphas = [ArchParameters(space.mask)]
        self._norms = [m for m in self.modules() if isinstance(m, _BatchNorm)]

    def _build(self, space: Any, device: Any) -> None:
        """Create all modules, those of the searched positions in :attr:`mixed_ops` too."""
        raise NotImplementedError

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

    # ---- what comes out

    def child(self, choices: Sequence[int] | None = None, name: str = "searched") -> Any:
        """Return one of the models as a plain one, with copies of its weights and BatchNorm statistics.

        In evaluation mode its logits are those of this model on the same path.

        Args:
            choices: candidates, one a searched position; None takes the present path.
            name: of its architecture.
        """
        choices = self.path if choices is None else list(choices)
        model = self._plain(self.space.arch(choices, name))
        names = {module: name for name, module in self.named_modules() if isinstance(module, MixedOp)}
        put = []
        for mixed_op, choice in zip(self.mixed_ops, choices, strict=True):
            op = mixed_op.op(choice)
            if op is not None:
                # A registered operation may hold buffers that no state dict has: take a copy of all of it.
                put.append(self._put(model, names[mixed_op], _copy(op)))
        searched = tuple(f"{name}." for name in names.values())
        shared = {key: value for key, value in self.state_dict().items() if not key.startswith(searched)}
        copies = {key: value.detach().clone() for key, value in shared.items()}
        found = model.load_state_dict(copies, strict=False, assign=True)
        missing = [key for key in found.missing_keys if not key.startswith(tuple(put))]
        assert not found.unexpected_keys, found.unexpected_keys
        assert not missing, missing
        model.preprocessing = self.preprocessing
        model.to(self.classifier.linear.weight.device).train(self.training)
        return model

    def _plain(self, arch: Any) -> ImageClassifier:
        """Return a plain model of an architecture of the space, on the meta device."""
        raise NotImplementedError

    def _put(self, model: ImageClassifier, name: str, op: nn.Module) -> str:
        """Put an operation into a plain model, where this model's module ``name`` is searched.

        Returns the beginning of the names of its parameters there.
        """
        raise NotImplementedError


class ChainSuperNet(SuperNet):
    """The supernet of a chain of blocks; names of its modules are those of the original checkpoints."""

    space: SearchSpace

    def _build(self, space: SearchSpace, device: Any) -> None:
        options: dict[str, Any] = {
            "activation": space.act, "eps": space.bn_eps, "momentum": space.bn_momentum, "device": device
        }  # fmt: skip
        self.first_conv = ConvLayer(space.in_channels, space.stem, 3, space.stem_stride, **options)
        fixed: list[nn.Module] = []
        if space.first:
            fixed.append(ResidualBlock(first_block(space.stem, space.first), **options))
        for search_block in space.search_blocks:
            candidates = [_candidate(search_block, column, options) for column in space.candidate_ops]
            self.mixed_ops.append(MixedOp(candidates, search_block.shortcut))
        self.blocks = nn.ModuleList([*fixed, *self.mixed_ops])
        self._fixed = len(fixed)
        width = space.stages[-1].width
        self.feature_mix_layer = ConvLayer(width, space.last, 1, **options)
        self.classifier = LinearLayer(space.last, space.num_classes, device)

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

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to the logits [N, classes] of the present path."""
        x = self.first_conv(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.feature_mix_layer(x).mean((2, 3)))

    def _plain(self, arch: Arch) -> ProxylessNAS:
        return ProxylessNAS(arch, device="meta")

    def _put(self, model: ImageClassifier, name: str, op: nn.Module) -> str:
        model.get_submodule(name).mobile_inverted_conv = op
        return f"{name}.mobile_inverted_conv."


class TreeSuperNet(SuperNet):
    """The supernet of a pyramid of tree cells: a :class:`PyramidTreeNet` with every edge searched."""

    space: TreeSpace

    def _build(self, space: TreeSpace, device: Any) -> None:
        pyramid = PyramidTreeNet(space.arch(space.first_choices), device=device)
        nodes = [node for node in pyramid.modules() if isinstance(node, TreeNode)]
        edges = [(node.edges, i) for node in nodes for i in range(len(node.edges))]
        # Modules come in the order of a cell's word: a branch's own edges, then those of its children.
        for (own, i), search_block in zip(edges, space.search_blocks, strict=True):
            width = search_block.in_channels
            candidates = [make_edge(letter, width, device) for letter in space.candidate_ops]
            self.mixed_ops.append(MixedOp(candidates, shortcut=False))
            own[i] = self.mixed_ops[-1]
        self.blocks = pyramid.blocks
        assert isinstance(pyramid.classifier, LinearLayer)  # as there are classes
        self.classifier = pyramid.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to the logits [N, classes] of the present path."""
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))

    def _plain(self, arch: TreeArch) -> PyramidTreeNet:
        return PyramidTreeNet(arch, device="meta")

    def _put(self, model: ImageClassifier, name: str, op: nn.Module) -> str:
        edges, _, i = name.rpartition(".")
        setattr(model.get_submodule(edges), i, op)
        return f"{name}."


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


def _copy(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module)
    for p in twin.parameters():
        p.grad = None
        p.requires_grad_(True)
    return twin


def seeded(space: Space, seed: int, device: Any = None) -> SuperNet:
    """Return a model whose weights and alphas follow from a seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SuperNet(space)
    model.alphas.init(torch.Generator().manual_seed(seed))
    return model if device is None else model.to(device)
