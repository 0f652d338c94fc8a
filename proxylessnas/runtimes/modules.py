"""Turn what a measuring process was asked to load into a module and an input."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.arch import Arch
from ..arch.op_key import CLASSIFIER, LAST, STEM, OpKey
from ..errors import LatencyError, shown
from ..models.layers import ConvLayer, LinearLayer, ResidualBlock
from .base import ModelSpec
from .settings import Settings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class CannotTravel(LatencyError):
    """A module that was pickled in one process cannot be read in another."""


class PoolAndClassify(nn.Module):
    """Global average pooling and the linear classifier, which a table counts as one operation."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.classifier = LinearLayer(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_features, H, W] to [N, out_features]."""
        return self.classifier(x.mean((2, 3)))


def build_model(spec: ModelSpec, settings: Settings) -> tuple[nn.Module, Tensor]:
    """Build a model, or one operation of it, and an input for it.

    Weights of an "arch" and an "op" are random but the same every time; BatchNorm statistics are as
    initialised. A "module" keeps its weights.

    Args:
        spec: what; not of kind "file".
        settings: device, dtype, memory format and batch size.

    Returns:
        The module, in evaluation mode and without gradients, and an input [batch, channels, height, width],
        both of the right device, dtype and memory format.

    Raises:
        LatencyError: it cannot be built; for an architecture's text also ArchError.
    """
    with torch.inference_mode(False), torch.no_grad(), seeded(spec.text):
        if spec.kind == "arch":
            module = _arch_model(spec)
        elif spec.kind == "op":
            module = op_module(spec.text)
        elif spec.kind == "module":
            module = read_module(spec.text)
        else:
            raise LatencyError(f"runtime {settings.runtime!r} cannot run a model of kind {spec.kind!r}")
        return place(module, settings), example_input(spec.input_size, settings)


def place(module: nn.Module, settings: Settings) -> nn.Module:
    """Move a module to the device, dtype and memory format asked for; evaluation mode, no gradients."""
    module.eval().requires_grad_(False)
    module = module.to(device=torch.device(settings.device), dtype=_DTYPES[settings.dtype])
    return module.to(memory_format=_FORMATS[settings.memory_format])


def example_input(input_size: tuple[int, int, int], settings: Settings) -> Tensor:
    """Return normally distributed numbers of shape [batch, channels, height, width]."""
    generator = torch.Generator("cpu").manual_seed(0)
    # Spelled out, for the caller may have set other defaults.
    x = torch.randn(
        (settings.batch_size, *input_size), generator=generator, device="cpu", dtype=torch.float32
    )
    x = x.to(device=settings.device, dtype=_DTYPES[settings.dtype])
    return x.contiguous(memory_format=_FORMATS[settings.memory_format])


@contextmanager
def seeded(text: str) -> Iterator[None]:
    """Draw the same random numbers for the same text, and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(zlib.crc32(text.encode()))
        yield


def _arch_model(spec: ModelSpec) -> nn.Module:
    from ..models.factory import create_model

    arch = Arch.parse(spec.text)
    return create_model(arch, num_classes=spec.num_classes, in_chans=spec.input_size[0])


def op_module(text: str) -> nn.Module:
    """Return one operation of a model as a module, by the text of its key.

    Raises:
        LatencyError: there is no such operation, or it is not registered in this process.
    """
    key = OpKey.parse(text)
    if key.op == STEM:
        return ConvLayer(key.in_channels, key.out_channels, 3, key.stride, activation=key.act)
    if key.op == LAST:
        return ConvLayer(key.in_channels, key.out_channels, 1, activation=key.act)
    if key.op == CLASSIFIER:
        return PoolAndClassify(key.in_channels, key.out_channels)
    return ResidualBlock(key.block, activation=key.act)


def read_module(path: str) -> nn.Module:
    """Read a module that the starting process wrote for this one.

    Raises:
        CannotTravel: its classes cannot be imported here.
        LatencyError: the file holds something else.
    """
    try:
        with open(path, "rb") as file:
            # Our own file, written a moment ago into a folder that only this user can read.
            module: Any = pickle.load(file)  # noqa: S301
    except OSError as e:
        raise LatencyError(f"{path}: {e.strerror or e}") from e
    except Exception as e:
        raise CannotTravel(f"the module cannot be read in another process: {type(e).__name__}: {e}") from e
    if not isinstance(module, nn.Module):
        raise LatencyError(f"{path} holds {shown(module)}, not a module")
    return module
