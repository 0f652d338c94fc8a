"""Folds BatchNorm into convolutions, computes its statistics anew, and shares them between processes.

Folded, a model is the same function with a third fewer passes over memory.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DataError
from .base import evaluation_mode
from .layers import ConvLayer, folded

if TYPE_CHECKING:
    from ..utils.distributed import Processes


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference, where each BatchNorm that can be folded is an identity.

    Found are those of :class:`~.layers.ConvLayer`, and those right behind a convolution in an
    ``nn.Sequential``. A convolution stays an ``nn.Conv2d``, with a bias; what is computed changes by
    rounding only. Left alone are modules that are used twice, hooked or parametrised. The copy is in
    evaluation mode, without gradients.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    uses = Counter(id(module) for _, module in twin.named_modules(remove_duplicate=False))
    for parent, conv, name in list(_pairs(twin)):
        bn = parent.get_submodule(name)
        if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None:
            continue
        if any(uses[id(module)] > 1 or not _plain(module) for module in (conv, bn)):
            continue
        weight, bias = folded(conv, bn)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
        setattr(parent, name, nn.Identity())
    return twin


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Conv2d, str]]:
    """Yield (parent, convolution, name of what the parent has right behind it)."""
    for parent in model.modules():
        if isinstance(parent, ConvLayer) and type(parent).forward is ConvLayer.forward:
            yield parent, parent.conv, "bn"
        elif isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            children = list(parent.named_children())
            for (_, conv), (name, _) in itertools.pairwise(children):
                if isinstance(conv, nn.Conv2d):
                    yield parent, conv, name


def _plain(module: nn.Module) -> bool:
    """Tell a module of torch's own class (a parametrised one has a class of its own) without hooks."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return type(module) in (nn.Conv2d, nn.BatchNorm2d) and not hooks


@contextlib.contextmanager
def single_values_as_data_error(inputs: Tensor, advice: str) -> Iterator[None]:
    """Turn what BatchNorm in training mode raises where a channel has a single value into a DataError.

    Args:
        inputs: what the model is given in the block, [N, C, H, W].
        advice: what to do about it, such as "use a larger batch_size".
    """
    try:
        yield
    except ValueError as e:
        if "more than 1 value per channel" not in str(e):
            raise
        raise DataError(
            f"BatchNorm cannot work with {len(inputs)} image(s) of {inputs.shape[-1]} px at once, as a "
            f"single value a channel is left: {advice}"
        ) from e


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Iterable[Tensor], limit: int, *, processes: Processes | None = None
) -> int:
    """Compute the statistics of every BatchNorm anew, as plain means over some batches.

    A moving average lags behind the weights, and averaged weights never had statistics of their own. Nothing
    but BatchNorm is in training mode meanwhile, so that nothing is dropped. A model whose BatchNorm is frozen
    (:meth:`ImageClassifier.freeze_bn`) is left alone, and so is one for which there are no batches. Modes,
    momenta and counters are as before afterwards; after an exception, the statistics too.

    Args:
        model: on the device of the batches.
        batches: inputs [N, C, H, W].
        limit: most batches to take.
        processes: take the mean over these, each with batches of its own; all have to call this.

    Returns:
        How many batches were used.

    Raises:
        DataError: a batch leaves BatchNorm a single value a channel.
    """
    norms = _tracking(model)
    if getattr(model, "_frozen_bn", False) or not norms:
        return 0
    before = [(norm, norm.momentum, {k: v.clone() for k, v in norm.named_buffers()}) for norm in norms]
    used, done = 0, False
    try:
        with evaluation_mode(model):
            for x in islice(batches, limit):
                if not used:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.training = True
                for norm in norms:
                    # Every batch counts the same. None would say so too, but reads a counter on the device.
                    norm.momentum = 1.0 / (used + 1)
                with single_values_as_data_error(x, "use a larger batch_size or image_size"):
                    model(x)
                used += 1
        if used and processes is not None and processes.world > 1:
            statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
            processes.sum_(statistics)
            torch._foreach_div_(statistics, float(processes.world))
        done = used > 0
    finally:
        for norm, momentum, buffers in before:
            norm.momentum = momentum
            for name, value in buffers.items():
                if not done or name == "num_batches_tracked":
                    getattr(norm, name).copy_(value)
    return used


def _wide(x: Tensor) -> Tensor:
    """Return values of 16 bits (autocast) in 32, in which all statistics are."""
    return x.float() if x.element_size() < 4 else x


class _GlobalNorm(torch.autograd.Function):
    """BatchNorm in training mode over the batches of all processes; what torch has on CUDA, with gloo."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = _wide(x)
        mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        count = mean.new_tensor([x.numel() / x.shape[1]])
        own = torch.cat([mean, var, count]).double()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group)
        # The sums run in order of rank everywhere, hence all processes get the same bits.
        channels = x.shape[1]
        every = torch.stack(parts)
        means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
        total = counts.sum()
        exact = (counts * means).sum(0) / total
        spread = (counts * (variances + (means - exact).square())).sum(0) / total
        mean, var = exact.to(mean.dtype), spread.to(mean.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.group, ctx.total = eps, group, float(total)
        ctx.mark_non_differentiable(mean, var, total)
        return F.batch_norm(wide, mean, var, weight, bias, False, 0.0, eps).to(x.dtype), mean, var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        saved, weight, mean, var = ctx.saved_tensors
        x = _wide(saved)
        inverse = (var + ctx.eps).rsqrt()
        # With fixed statistics, as in evaluation mode; what follows from their own gradients is added below.
        grad, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grads[0].to(x.dtype), x, weight, mean, var, mean, inverse, False, ctx.eps, [True, True, True]
        )
        if ctx.needs_input_grad[0]:
            sums = torch.cat([grad_weight, grad_bias])
            dist.all_reduce(sums, group=ctx.group)
            of_scale, of_shift = sums.div_(ctx.total).chunk(2)
            scale = inverse if weight is None else inverse * weight
            slope = scale * inverse * of_scale
            offset = scale * of_shift - slope * mean
            shape = (1, -1) + (1,) * (x.dim() - 2)
            grad = (grad - (x * slope.view(shape) + offset.view(shape))).to(saved.dtype)
        affine = weight is not None
        return grad, grad_weight if affine else None, grad_bias if affine else None, None, None


class _SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes in training mode, for CPUs; else the plain one."""

    process_group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        alone = not dist.is_initialized() or dist.get_world_size(self.process_group) == 1
        if alone or not self.training:
            return super().forward(input)
        y, mean, var, total = _GlobalNorm.apply(input, self.weight, self.bias, self.eps, self.process_group)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                count = float(total)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                unbiased = var * (count / max(count - 1.0, 1.0))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return y


_SYNCED = (nn.SyncBatchNorm, _SyncBatchNorm)


def convert_sync_bn(model: nn.Module, process_group: Any = None) -> nn.Module:
    """Let every BatchNorm take its training statistics from all processes, in place.

    Parameters, statistics and their names stay the same, so that an optimiser, an average of the weights or a
    checkpoint fits before and after. On CUDA it becomes torch's own ``SyncBatchNorm``, elsewhere ours.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _SYNCED):
            tensor = next(module.parameters(), module.running_mean)
            on_cuda = tensor is not None and tensor.device.type == "cuda"
            module._plain_class = type(module)  # type: ignore[assignment]
            module.__class__ = nn.SyncBatchNorm if on_cuda else _SyncBatchNorm
            module.process_group = process_group
    return model


def revert_sync_bn(model: nn.Module) -> nn.Module:
    """Undo :func:`convert_sync_bn` and return the model."""
    for module in model.modules():
        if isinstance(module, _SYNCED):
            module.__class__ = module.__dict__.pop("_plain_class", nn.BatchNorm2d)
            del module.process_group
    return model
