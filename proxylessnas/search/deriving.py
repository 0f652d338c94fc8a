"""A plain net out of a supernet that was trained in memory; ``after.py`` does it for a search's folder.

>>> from proxylessnas.search import SuperNet, derive
>>> from proxylessnas.spaces import read_space
>>> arch, net = derive(SuperNet(read_space("tiny")), target_macs_m=1.5)
>>> net.num_classes
10
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ..arch import Arch
from ..errors import DataError
from ..model import ProxylessNAS
from ..train.batchnorm import recalibrate
from .budgets import Budget, Costs, check_reachable, latency_costs, size_costs
from .candidates import within
from .knapsack import rules_of

if TYPE_CHECKING:
    from ..latency.table import LatencyTable
    from .supernet import SuperNet


def derive(
    supernet: SuperNet,
    *,
    table: LatencyTable | str | Path | None = None,
    target_ms: float | None = None,
    target_macs_m: float | None = None,
    target_params_m: float | None = None,
    least_share: float = 0.85,
    min_depth: int = 0,
    calibration: Iterable[Tensor] | None = None,
    name: str = "derived",
) -> tuple[Arch, ProxylessNAS]:
    """Return the most probable net of a supernet that meets every target, with the weights it inherits.

    Args:
        supernet: its alphas say what is probable; it stays as it is.
        table: latencies of its space on the target device; needed for ``target_ms``.
        target_ms: most latency by the table; None for no limit.
        target_macs_m: most multiply-accumulates, in millions; None for no limit.
        target_params_m: most parameters, in millions; None for no limit.
        least_share: use at least this share of the first target set, where a net does; see
            :func:`~.candidates.within`.
        min_depth: blocks of each stage that may not be skipped at least.
        calibration: batches of training inputs [N, C, H, W] to compute the BatchNorm statistics of the net
            anew from, all of them. Without, it keeps the supernet's, which are a mixture over all nets, and
            its logits are those of the supernet on this path.
        name: of the net.

    Returns:
        The architecture, and the net: a plain module on the supernet's device that shares no memory with it.

    Raises:
        DataError: no net meets the targets, or a target cannot be reached at all; says what can be.
        LatencyError, LatencyKeyError: there is no such table, or it does not cover the space.
    """
    costs: dict[str, Costs] = size_costs(supernet)
    if target_ms is not None:
        if table is None:
            raise DataError("a target in milliseconds needs a latency table of the device: give one as table")
        costs["latency"] = latency_costs(_loaded(table), supernet.space)
    wanted = {"latency": target_ms, "macs": target_macs_m, "params": target_params_m}
    budgets = [Budget(costs[kind], limit) for kind, limit in wanted.items() if limit is not None]
    check_reachable(budgets)
    log_probs = supernet.alphas.log_probs().detach()
    picks = within(log_probs, budgets, least_share, **rules_of(supernet.space, min_depth))
    child = supernet.child(picks, name=name)
    if calibration is not None:
        recalibrate(child, calibration, sys.maxsize)
    return cast(Arch, child.arch), child


def _loaded(table: LatencyTable | str | Path) -> LatencyTable:
    from ..latency.table import LatencyTable

    return table if isinstance(table, LatencyTable) else LatencyTable.load(table)
