"""Models to export: small ones of every kind, with weights that folding cannot ignore."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from proxylessnas import create_model
from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.arch.ops import register_op
from proxylessnas.arch.tree import TreeArch
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.models.base import ImageClassifier

PLAIN = Arch(
    "plain", stem=8, first=8, last=32, resolution=32, num_classes=5,
    stages=(Stage(16, 2, "k3e3 - k5e2 k3e1.5!"), Stage(24, 2, "k7e2 k3e2")),
)  # fmt: skip
UIB = Arch(
    "uib", stem=8, first=8, last=32, resolution=32, num_classes=5,
    stages=(Stage(16, 2, "u3-5e2 n4 c5e2s"), Stage(24, 2, "c7e2 u5-3e2s n2s!")),
)  # fmt: skip
TREE = TreeArch("tree", "i357dam7i3a5", start=8, alpha=8, num_stages=1, num_classes=5, resolution=16)


class Gate(nn.Module):
    """An operation of one's own: channels weighted by their means."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, groups=4, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.gate = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class Decides(nn.Module):
    """What no exporter takes: its way depends on its input."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Counts(nn.Module):
    """What a tracer sees only half of: its way depends on the batch."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) < 2 else -x


register_op("deploy_gate", Gate)
register_op("deploy_decides", Decides)
register_op("deploy_counts", Counts)
OWN_OP = Arch("own_op", 8, 0, 32, (Stage(16, 2, "k3e2 deploy_gate"),), num_classes=5, resolution=32)
DECIDES = Arch("decides", 8, 0, 32, (Stage(16, 2, "k3e2 deploy_decides"),), num_classes=5, resolution=32)
COUNTS = Arch("counts", 8, 0, 32, (Stage(16, 2, "k3e2 deploy_counts"),), num_classes=5, resolution=32)


def give_statistics(model: nn.Module) -> None:
    """Give every BatchNorm statistics that folding cannot ignore."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


def small(arch: Arch | TreeArch = PLAIN, **options: object) -> ImageClassifier:
    """Return a model with statistics, preprocessing and class names."""
    torch.manual_seed(0)
    model = create_model(arch, **options)  # type: ignore[arg-type]
    give_statistics(model)
    side = arch.resolution or 32
    if model.in_chans == 3:
        model.preprocessing = Preprocessing(side, side + 4, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    model.categories = tuple(f"kind {i}" for i in range(model.num_classes))
    return model


def exact_run(path: Path, x: Tensor) -> Tensor:
    """Run a file in ONNX Runtime with kernels that cut no sum off, on whatever processor this is."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
