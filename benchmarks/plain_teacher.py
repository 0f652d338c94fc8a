"""Train a plain 3x3-convolution model on small images, as a teacher for `proxylessnas train --teacher`.

    python benchmarks/plain_teacher.py cifar10_jpg/train --test cifar10_jpg/test --out runs/teacher

On a CPU with bf16 instructions, dense 3x3 convolutions are several times as fast a multiply-add as MBConvs,
so such a model is soon trained (in bf16; a CPU without them, where bf16 takes three times as long, computes
in float32). It errs in other images than MBConv models do: alone it names 88.7 % of the
CIFAR-10 test images (recompressed), but with it the mean logits of two MBConv models name 91.3 instead of
90.9 %. The model is a small VGG-like one with a ladder of widths as in Jordan (2024, "94 % on CIFAR-10 in
3.29 seconds on a single GPU"); loader, augmentation, optimiser, average and weight step are those of
`proxylessnas.train`.

Writes `teacher.pt2` (an exported program: float32 [B, 3, 32, 32], normalised as the trained model wants it,
to logits [B, classes]) and `teacher.json` (how it was made, and its accuracy on the held-out and test
images).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from proxylessnas.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from proxylessnas.deploy.backends import no_bfloat16
from proxylessnas.train import open_data, read_recipe
from proxylessnas.train.augment import shrunk
from proxylessnas.train.ema import WeightAverage
from proxylessnas.train.loader import EvalLoader, TrainLoader
from proxylessnas.train.optim import make_optimizer, parameter_groups, rate_factor
from proxylessnas.train.step import WeightStep
from proxylessnas.utils.malloc import keep_freed_pages


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Stage(nn.Module):
    """A convolution, pooling, then two convolutions with a shortcut around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.widen = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )  # fmt: skip
        self.body = nn.Sequential(_conv(outputs, outputs), _conv(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        return x + self.body(x)


class PlainModel(nn.Module):
    """Maps images [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, widths: list[int], classes: int) -> None:
        super().__init__()
        self.first = _conv(3, widths[0])
        self.stages = nn.Sequential(*(_Stage(a, b) for a, b in itertools.pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.classifier(self.stages(self.first(x)).amax((2, 3)))


class _In(nn.Module):
    """Computes a model in another dtype, from float32 to float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.to(self.dtype)).float()


def _folded(model: nn.Module) -> nn.Module:
    """Return a model, in evaluation mode, with each BatchNorm that follows a convolution folded into it."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, nn.Sequential) and len(part) > 1 and isinstance(part[1], nn.BatchNorm2d):
            part[0], part[1] = fuse_conv_bn_eval(part[0], part[1]), nn.Identity()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, loader: EvalLoader) -> float:
    """Return the share of images that get their class, percent."""
    right = n = 0
    for inputs, targets in loader:
        found = model(inputs.contiguous(memory_format=torch.channels_last)).argmax(1)
        right, n = right + int((found == targets).sum()), n + len(found)
    return 100 * right / n


def arguments(description: str | None, epochs: int) -> argparse.ArgumentParser:
    """Return a parser of what is asked of every kind of teacher."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def write_teacher(
    trained: nn.Module, answering: nn.Module, kind: str, args: argparse.Namespace, seed: int, began: float,
    val: EvalLoader,
) -> None:  # fmt: skip
    """Write a model, and the record of how it was made.

    Args:
        trained: the model; its parameters are counted.
        answering: the form of it that answers, in evaluation mode and channels-last.
        kind: what kind of model it is.
        args: where the test images are, where to write, and for how many epochs it was trained.
        seed: of the training.
        began: when the training began, as ``time.perf_counter()`` tells it; it has just ended.
        val: held-out images.
    """
    minutes = round((time.perf_counter() - began) / 60, 1)
    images = open_data(args.test, val_fraction=0).train
    test = EvalLoader(images, Preprocessing(32, 32, IMAGENET_MEAN, IMAGENET_STD), batch_size=256)
    result = {
        "net": kind,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "epochs": args.epochs, "seed": seed,
        "params": sum(p.numel() for p in trained.parameters()), "minutes": minutes,
        "val_top1": accuracy(answering, val),
        "test_top1": accuracy(answering, test),
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        program = torch.export.export(answering, (example,), dynamic_shapes=shapes)
        torch.export.save(program, args.out / "teacher.pt2")
    (args.out / "teacher.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


def main() -> None:
    parser = arguments(__doc__, epochs=14)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 192, 256])
    parser.add_argument("--rate", type=float, default=0.2, help="learning rate; smaller for narrow models")
    args = parser.parse_args()

    keep_freed_pages()
    torch.set_num_threads(args.threads)
    grow = args.epochs * 2 // 3
    amp, dtype = "bf16", torch.bfloat16
    if no_bfloat16(torch.device("cpu")):
        amp, dtype = "off", torch.float32
    recipe = read_recipe("cifar10-demo").replace(
        epochs=args.epochs, learning_rate=args.rate, amp=amp, cutout=8, crop_padding=4, grow_epochs=grow,
        start_size=18 if grow else None, warmup_epochs=min(1.0, args.epochs / 2),
        label_smoothing=0.0,  # a teacher of smooth labels has less to say (Müller et al. 2019)
    )  # fmt: skip
    data = open_data(args.data, val_fraction=recipe.val_fraction, seed=recipe.seed)
    preprocessing = Preprocessing(32, 32, IMAGENET_MEAN, IMAGENET_STD)
    classes = len(data.categories)
    torch.manual_seed(recipe.seed)
    model: Any = PlainModel(args.widths, classes).to(memory_format=torch.channels_last)
    loader = TrainLoader(data.train, recipe, preprocessing, num_classes=classes)
    val = EvalLoader(data.val, preprocessing, batch_size=256)
    average = WeightAverage(model, recipe.ema_decay)
    step = WeightStep(
        model, make_optimizer(parameter_groups(model, recipe), recipe), recipe, torch.device("cpu"), average
    )
    began = time.perf_counter()
    number = 0
    for epoch in range(recipe.epochs):
        model.train()
        total, side = 0.0, recipe.side_at(epoch, 32)
        for batch in loader.epoch(epoch):
            factor = rate_factor(number, recipe, loader.steps_per_epoch)
            total += float(step(shrunk(batch.inputs, side), batch.targets, number, factor))
            number += 1
        model.eval()
        with average.applied(model), step.autocast():
            top1 = accuracy(model, val)
        print(
            f"epoch {epoch + 1}/{recipe.epochs}  {side} px  train loss {total / loader.steps_per_epoch:.3f}  "
            f"val top-1 {top1:.2f} %  {(time.perf_counter() - began) / 60:.1f} min", flush=True,
        )  # fmt: skip
    average.copy_to(model)
    model.eval()
    program = _In(_folded(model), dtype).to(memory_format=torch.channels_last).eval()
    widths = " ".join(map(str, args.widths))
    kind = f"plain 3x3 convolutions, {widths} channels, {'float32' if amp == 'off' else amp}"
    write_teacher(model, program, kind, args, recipe.seed, began, val)


if __name__ == "__main__":
    main()
