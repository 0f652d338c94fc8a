"""What holds on one kind of processor holds on the others."""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn
from train_tools import environment

from proxylessnas import Arch, Stage, create_model, register_op
from proxylessnas.arch.ops import parse_token
from proxylessnas.models.layers import make_op


def narrow(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return an operation that steps over pixels with a kernel of one."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.ReLU())


register_op("test_narrow", narrow)


def narrow_op(channels: int, stride: int) -> nn.Module:
    """Return the operation as a model holds it."""
    op = make_op(parse_token("test_narrow")[0], channels, 8, stride)
    assert op is not None
    return op


@pytest.mark.parametrize(("size", "stride"), [((16, 16), 2), ((15, 16), 2), ((15, 14), 3), ((7, 7), 2)])
@pytest.mark.parametrize("channels", [2, 4, 8])
def test_a_narrow_strided_operation_computes_what_it_did(
    size: tuple[int, int], stride: int, channels: int
) -> None:
    op = narrow_op(channels, stride).double()
    plain = narrow(channels, 8, stride).double()
    plain.load_state_dict(op.state_dict())
    x = torch.randn(3, channels, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    gradients = []
    for module in (op, plain, copy.deepcopy(op)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(leaf)
        y.square().sum().backward()
        gradients.append((y.detach(), leaf.grad, module[0].weight.grad))
        with torch.no_grad():
            torch.testing.assert_close(module(x), y.detach())
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other)


TRAIN = """
import torch
import tests.models.test_processors
from proxylessnas import Arch, Stage, create_model

torch.set_num_threads(1)
arch = Arch("x", stem=4, first=0, last=16, stem_stride=1, stages=(Stage(8, 2, "test_narrow"),), num_classes=3)
model = create_model(arch).to(memory_format=torch.channels_last).train()
for _ in range(20):
    x = torch.randn(20, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    model(x).sum().backward()
"""
CHECKED = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the check of the memory is glibc's")
def test_a_narrow_strided_operation_keeps_to_its_memory_with_avx2() -> None:
    """Without care oneDNN writes past the end of the gradient there; the allocator checks, and aborts."""
    here = os.path.dirname(__file__)
    env = {**environment(), "ONEDNN_MAX_CPU_ISA": "AVX2", **CHECKED}
    env["PYTHONPATH"] += os.pathsep + os.path.join(os.path.dirname(here), "tools")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], env=env, cwd=here, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_wide_and_unstrided_operations_are_left_alone() -> None:
    for channels, stride in ((8, 2), (4, 1)):
        op = narrow_op(channels, stride)
        assert not any(module._forward_pre_hooks for module in op.modules())
    model = create_model(Arch("x", stem=8, first=8, last=8, stages=(Stage(8, 2, "k3e3"),), num_classes=2))
    assert not any(module._forward_pre_hooks for module in model.modules())
