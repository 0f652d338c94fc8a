"""Eager latency of ``proxyless_cpu`` against a hand-inlined module of the same layers and MobileNetV2.

    python benchmarks/eager_latency.py [--threads 1] [--rounds 60] [--csv
    benchmarks/results/eager_latency.csv]

All variants are timed in turn in every round; ratios are of medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from harness import add_options, start, write_rows
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas import ProxylessNAS, proxyless_cpu


def plain_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """Return torch's own convolution with the same weights."""
    other = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        bias=False,
    )
    other.load_state_dict(conv.state_dict())
    return other


def plain_bn(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return torch's own BatchNorm with the same weights, in evaluation mode."""
    other = nn.BatchNorm2d(bn.num_features, bn.eps, bn.momentum)
    other.load_state_dict(bn.state_dict())
    return other.eval()


class Inlined(nn.Module):
    """The layers of a net in one flat loop: no blocks, no classes of ours between torch and the call."""

    def __init__(self, net: ProxylessNAS) -> None:
        super().__init__()
        self.steps = []
        for layer in [net.first_conv, *net.blocks, net.feature_mix_layer]:
            op = getattr(layer, "mobile_inverted_conv", layer)
            if op is None:
                continue
            parts = [m for m in op.modules() if hasattr(m, "conv")]
            for i, part in enumerate(parts):
                shortcut = getattr(layer, "shortcut", False)
                first, final = shortcut and i == 0, shortcut and i == len(parts) - 1
                self.steps.append((plain_conv(part.conv), plain_bn(part.bn), part.act, first, final))
        self.layers = nn.ModuleList(m for step in self.steps for m in step[:2])
        self.linear = net.classifier.linear

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        kept = x
        for conv, bn, act, keep, add in self.steps:
            if keep:
                kept = x
            x = bn(conv(x))
            if act:
                x = F.relu6(x, inplace=True)
            if add:
                x = kept + x
        return self.linear(x.mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, "eager_latency")
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    start(args)
    import torchvision

    net = proxyless_cpu().eval()
    nets = {
        "ours": net,
        "inlined": Inlined(net).eval(),
        "mobilenet_v2": torchvision.models.mobilenet_v2().eval(),
    }
    rows = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(1, 3, 224, 224).to(memory_format=layout)
        models = {name: m.to(memory_format=layout) for name, m in nets.items()}
        times: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            difference = (models["ours"](x) - models["inlined"](x)).abs().max().item()
            assert difference == 0.0, f"the two modules differ by {difference}"
            for _ in range(10):
                for m in models.values():
                    m(x)
            for _ in range(args.rounds):
                for name in random.sample(list(models), len(models)):
                    begin = time.perf_counter()
                    models[name](x)
                    times[name].append((time.perf_counter() - begin) * 1e3)
        for name, values in times.items():
            q = statistics.quantiles(values, n=10)
            median = statistics.median(values)
            rows.append(
                {
                    "net": name,
                    "layout": str(layout).removeprefix("torch."),
                    "threads": args.threads,
                    "median_ms": round(median, 3),
                    "p10_ms": round(q[0], 3),
                    "p90_ms": round(q[-1], 3),
                    "ratio_to_inlined": round(median / statistics.median(times["inlined"]), 4),
                }
            )
    write_rows(args, rows)


if __name__ == "__main__":
    main()
