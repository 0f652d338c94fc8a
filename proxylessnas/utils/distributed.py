"""The processes of a run: one alone, or those that ``torchrun`` started.

Everything else asks a :class:`Processes` and need not know whether there is one process or many: sums and
gathers are then no-ops. GPUs talk over NCCL, CPUs over gloo.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ProxylessError
from .devices import choose_device

_TIMEOUT = datetime.timedelta(minutes=30)  # decoding a large data set into memory may keep one process away
_PAUSE_S = 0.05
# What the messages of gloo and NCCL hold when a process is gone.
_BROKEN = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: this one's number, from 0.
        world: how many there are.
        device: where this one computes.
    """

    rank: int
    world: int
    device: torch.device
    _last: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes (in place)."""
        self._exchange(tensors, dist.all_reduce)

    def copy_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first process's (in place)."""
        self._exchange(tensors, lambda shared: dist.broadcast(shared, 0))

    def _exchange(self, tensors: Iterable[Tensor], exchange: Callable[[Tensor], Any]) -> None:
        if self.world > 1:
            for tensor in tensors:
                shared = self._reachable(tensor)
                exchange(shared)
                self._keep(shared)
                if shared is not tensor:
                    tensor.copy_(shared)

    def sum_of(self, *values: float) -> list[float]:
        """Return the sum of each number over all processes."""
        if self.world == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        self.sum_([total])
        return total.tolist()

    def any_of(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        return flag if self.world == 1 else self.sum_of(float(flag))[0] > 0

    def gather(self, data: Tensor) -> list[Tensor]:
        """Return every process's tensor (one dimension, any length), in order of rank, on the CPU."""
        if self.world == 1:
            return [data]
        lengths = self._all_gather(torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        padded = torch.cat([data, data.new_zeros(longest - len(data))])
        parts = self._all_gather(padded)
        return [part[: int(length)].cpu() for part, length in zip(parts, lengths, strict=True)]

    def _all_gather(self, data: Tensor) -> list[Tensor]:
        own = self._reachable(data)
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        self._keep(own, *parts)
        return parts

    def broadcast(self, data: Tensor | None) -> Tensor:
        """Return the first process's tensor of bytes on every process; the others give None."""
        if self.world == 1:
            assert data is not None
            return data
        length = int(self.sum_of(len(data) if data is not None else 0)[0])
        shared = torch.zeros(length, dtype=torch.uint8) if data is None else data
        shared = self._reachable(shared)
        dist.broadcast(shared, 0)
        self._keep(shared)
        return shared.cpu()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            self.sum_of(0.0)

    def _keep(self, *exchanged: Tensor) -> None:
        """Keep the tensors of the last exchange, see :func:`let_exchanges_end`."""
        self._last[:] = exchanged

    def _reachable(self, tensor: Tensor) -> Tensor:
        """Return the tensor on a device that the processes can exchange: NCCL knows only GPUs."""
        if dist.get_backend() == "nccl" and tensor.device.type != "cuda":
            return tensor.to(self.device)
        if dist.get_backend() == "gloo" and tensor.device.type != "cpu":
            return tensor.cpu()
        return tensor.contiguous()


#: One process, which computes on the CPU.
ALONE = Processes(0, 1, torch.device("cpu"))


@contextlib.contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the other processes of this run, if ``torchrun`` started any, and leave them at the end.

    A process group that the caller has made is used and left as it is. The device is as
    :func:`.devices.choose_device` takes it.

    Raises:
        ProxylessError: the device cannot be used, or the processes do not find each other.
    """
    chosen = choose_device(device)
    if dist.is_available() and dist.is_initialized():
        group = Processes(dist.get_rank(), dist.get_world_size(), chosen)
        try:
            yield group
        finally:
            if group.world > 1:
                let_exchanges_end()  # the caller may destroy the group next
        return
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1 or "MASTER_ADDR" not in os.environ:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Its functions take the group that exists while it is imported as a default and keep it: the group's
    # threads would outlive its end below, and one that holds a tensor when Python ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as e:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ProxylessError(
            f"the {world} processes of this run did not find each other at {where}: {e}"
        ) from e
    group = Processes(dist.get_rank(), dist.get_world_size(), chosen)
    try:
        yield group
    except RuntimeError as e:
        if isinstance(e, ProxylessError) or not any(word in str(e) for word in _BROKEN):
            raise
        raise ProxylessError("another process of this run stopped; its message says why") from e
    finally:
        try:
            let_exchanges_end()  # `group` owns the tensors of its last exchange until after the end
        finally:
            dist.destroy_process_group()


def let_exchanges_end() -> None:
    """Let the group's threads finish with what was exchanged, so that the group can be destroyed.

    A thread of gloo drops the tensors of an exchange a moment after it is over. The last owner of a tensor
    needs Python's lock to drop it, and the end of the group has the lock while it waits for its threads
    (seen with torch 2.6). So :class:`Processes` keeps the tensors of its last exchange, and the pause is for
    those that others exchanged, DistributedDataParallel for one. What is left of that in cycles goes too.
    """
    gc.collect()
    time.sleep(_PAUSE_S)
