"""Train a whitened 3x3-convolution model on small images, as a teacher for `proxylessnas finetune --teacher`.

    python benchmarks/whitened_teacher.py cifar10_jpg/train --test cifar10_jpg/test --epochs 14 --rate 0.18
        --out runs/whitened

The model, its start and its optimiser follow Jordan (2024, "94 % on CIFAR-10 in 3.29 seconds on a single
GPU", with Muon as in its later version): a fixed first layer that whitens patches of 2x2 pixels, three groups
of convolutions that begin as identities, norms without gains, and orthogonalised momentum for weights of a
fixed norm. Unlike there, a batch of 1,000 is computed in parts, each with statistics of its own, and labels
are not smoothed. In 37 minutes on two cores it came to 89.86 % of the CIFAR-10 test images (recompressed);
the 90.32 % of an MBConv model took 2 h 46 min on two cores of another machine. Loader and augmentation are
those of `proxylessnas.train`. See `plain_teacher.py` for what it writes.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from plain_teacher import accuracy, arguments, write_teacher
from torch import Tensor, nn
from torch.nn import functional as F

from proxylessnas.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from proxylessnas.models.batchnorm import recalibrate
from proxylessnas.train import open_data, read_recipe
from proxylessnas.train.loader import EvalLoader, TrainLoader
from proxylessnas.train.optim import orthogonalized
from proxylessnas.utils.malloc import keep_freed_pages

# Of the paper's later version, for the sum of the losses of a batch, and for logits that are divided by the
# number of features: 256 in the paper.
MATRIX_RATE, BIAS_RATE, HEAD_RATE, DECAY_PER_IMAGE = 0.24, 0.053, 0.67, 2e-6
MATRIX_MOMENTUM, VECTOR_MOMENTUM = 0.6, 0.85
BIAS_EPOCHS = 3  # after these the bias of the whitening stays as it is


class _Norm(nn.BatchNorm2d):
    """BatchNorm without a gain: the filters before it have a fixed length."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.requires_grad_(False)


class _Group(nn.Module):
    """A convolution and pooling, then as many more convolutions as its depth asks for."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * depth]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(_Norm(outputs) for _ in range(depth))
        for conv in self.convs:
            nn.init.dirac_(conv.weight[: conv.weight.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x = F.gelu(norm(x if i else F.max_pool2d(x, 2)))
        return x


class WhitenedModel(nn.Module):
    """Maps images [B, 3, 32, 32] to logits [B, classes]."""

    def __init__(self, widths: list[int], depth: int, classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.groups = nn.Sequential(*(_Group(a, b, depth) for a, b in itertools.pairwise([24, *widths])))
        self.head = nn.Linear(widths[-1], classes, bias=False)

    @torch.no_grad()
    def begin(self, images: Tensor) -> None:
        """Let the first layer whiten patches of some images, [N, 3, H, W]: each direction and its opposite.

        The bias starts at zero and the filters stay as they are.
        """
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).double()
        values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (values + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2).float()
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = F.max_pool2d(self.groups(F.gelu(self.whiten(x))), 3).flatten(1)
        return self.head(x) / x.shape[1]


class _FilterMuon(torch.optim.Optimizer):
    """Turns weights by orthogonalised momentum and keeps their norm: the root of the number of filters."""

    def __init__(self, filters: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(filters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every filter."""
        for group in self.param_groups:
            for param in group["params"]:
                buffer = self.state[param].setdefault("momentum_buffer", torch.zeros_like(param))
                buffer.mul_(group["momentum"]).add_(param.grad)
                direction = param.grad.add(buffer, alpha=group["momentum"]).reshape(len(param), -1)
                param.mul_(len(param) ** 0.5 / param.norm())
                param.sub_(orthogonalized(direction).view_as(param), alpha=group["lr"])


def optimizers(model: WhitenedModel, batch_size: int, rate: float) -> list[torch.optim.Optimizer]:
    filters = [conv.weight for conv in model.groups.modules() if isinstance(conv, nn.Conv2d)]
    norms = [norm.bias for norm in model.modules() if isinstance(norm, _Norm)]
    decay = DECAY_PER_IMAGE * batch_size
    head_rate = HEAD_RATE * (model.head.in_features / 256) ** 2
    vectors: list[dict[str, Any]] = [
        {"params": [model.whiten.bias, *norms], "lr": BIAS_RATE, "weight_decay": decay / BIAS_RATE},
        {"params": [model.head.weight], "lr": head_rate, "weight_decay": decay / head_rate},
    ]
    return [
        _FilterMuon(filters, rate, MATRIX_MOMENTUM),
        torch.optim.SGD(vectors, momentum=VECTOR_MOMENTUM, nesterov=True),
    ]


def main() -> None:
    parser = arguments(__doc__, epochs=12)
    parser.add_argument("--widths", type=int, nargs=3, default=[64, 256, 256])
    parser.add_argument("--depth", type=int, default=2, help="convolutions in a group")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--part", type=int, default=250, help="images computed at once")
    parser.add_argument("--rate", type=float, default=MATRIX_RATE, help="of the filters")
    parser.add_argument("--smoothing", type=float, default=0.0, help="of the labels")
    parser.add_argument("--cutout", type=int, default=8, help="px")
    args = parser.parse_args()

    keep_freed_pages()
    torch.set_num_threads(args.threads)
    recipe = read_recipe("cifar10-demo").replace(
        epochs=args.epochs, batch_size=args.batch_size, cutout=args.cutout, crop_padding=2,
        start_size=None, grow_epochs=0,
    )  # fmt: skip
    data = open_data(args.data, val_fraction=recipe.val_fraction, seed=recipe.seed)
    preprocessing = Preprocessing(32, 32, IMAGENET_MEAN, IMAGENET_STD)
    torch.manual_seed(recipe.seed)
    loader = TrainLoader(data.train, recipe, preprocessing, num_classes=len(data.categories))
    val = EvalLoader(data.val, preprocessing, batch_size=250)
    model: Any = WhitenedModel(args.widths, args.depth, len(data.categories))
    # Held-out images, as they come without augmentation; their labels are not looked at.
    model.begin(torch.cat([inputs for inputs, _ in itertools.islice(val, 4)]))
    model = model.to(memory_format=torch.channels_last)
    steppers = optimizers(model, args.batch_size, args.rate)
    first_rates = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    steps, number, began = recipe.epochs * loader.steps_per_epoch, 0, time.perf_counter()
    for epoch in range(recipe.epochs):
        model.train()
        model.whiten.bias.requires_grad_(epoch < BIAS_EPOCHS)
        total = 0.0
        for batch in loader.epoch(epoch):
            for stepper, rates in zip(steppers, first_rates, strict=True):
                for group, rate in zip(stepper.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - number / steps)
            model.zero_grad(set_to_none=True)
            for inputs, targets in zip(
                batch.inputs.split(args.part), batch.targets.split(args.part), strict=True
            ):
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                part = F.cross_entropy(
                    model(inputs), targets, label_smoothing=args.smoothing, reduction="sum"
                )
                part.backward()
                total += float(part.detach())
            for stepper in steppers:
                stepper.step()
            number += 1
        model.eval()
        loss, minutes = total / loader.steps_per_epoch / args.batch_size, (time.perf_counter() - began) / 60
        print(
            f"epoch {epoch + 1}/{recipe.epochs}  train loss {loss:.3f}  "
            f"val top-1 {accuracy(model, val):.2f} %  {minutes:.1f} min", flush=True,
        )  # fmt: skip
    clear = recipe.replace(cutout=0, batch_size=args.part)
    again = TrainLoader(data.train, clear, preprocessing, num_classes=len(data.categories))
    batches = (b.inputs.contiguous(memory_format=torch.channels_last) for b in again.epoch(recipe.epochs))
    recalibrate(model, batches, 80)
    model.eval()
    kind = f"whitened 3x3 convolutions, {args.depth} times {' '.join(map(str, args.widths))} channels"
    write_teacher(model, model, kind, args, recipe.seed, began, val)


if __name__ == "__main__":
    main()
