"""INT8 in LiteRT's files, by its own quantiser, in the converter's Python, with ranges that we choose."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ExportError
from ..bundle import ModelBundle
from ..formats.litert import append_metadata, convert
from ..formats.split_depthwise import split_depthwise
from ..settings import ExportOptions
from .fake_quant import in_float_part
from .schemes import Scheme


def schemes(target_isa: str) -> list[str]:
    """Return the names of the schemes to try, the same for any target; each takes the converter's minute."""
    names = ["mse+correct", "mse+correct+floatfirst", "mse+compensate+correct+floatfirst"]
    return [f"{name}+floatwide" for name in names]


def paired_weights(path: Path) -> None:
    """Return None: which of XNNPACK's kernels run on which processor has not been looked at."""


def write(
    bundle: ModelBundle, path: Path, batches: Sequence[Tensor], scheme: Scheme, options: ExportOptions
) -> None:
    """Write an int8 file; see :class:`~.backends.Backend`."""
    if scheme.weight_bits != 8:
        raise ExportError(f"LiteRT's quantiser has no scheme {scheme.name!r}: it takes weights of 8 bits")
    import numpy as np

    first = [
        name
        for name, module in split_depthwise(bundle.model).named_modules()
        if isinstance(module, nn.Conv2d) and in_float_part(name, scheme)
    ]
    with tempfile.TemporaryDirectory(prefix="proxylessnas-int8-") as folder:
        inputs = Path(folder) / "inputs.npy"
        np.save(inputs, torch.cat(list(batches)).permute(0, 2, 3, 1).contiguous().numpy())
        convert(bundle, path, options, [scheme.rule, inputs, len(first), int(scheme.float_wide)])
    append_metadata(path, {**bundle.metadata(), "int8": scheme.name}, bundle.categories)
