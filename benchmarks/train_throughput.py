"""Training throughput: our loop against a bare one, layouts and precisions, and glibc's memory settings.

    python benchmarks/train_throughput.py --threads 2

The bare loop is written out here: the same model, optimiser and batch, on images that lie ready in memory as
floats, without augmentation, logging, checks or averaging. Ours is the engine as a run uses it. Variants take
turns; the figures are medians over rounds of so many steps. `--malloc` measures the effect of the memory
settings instead, in processes of their own.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

from proxylessnas.utils.subprocesses import python_command

STEPS = 4
MODELS = {
    "proxyless_cifar10_demo": (32, 128),
    "proxyless_w025_r112": (112, 32),
    "proxyless_mobile": (224, 8),
}


def train_loader(name: str, size: int, batch: int) -> Any:
    """Return the loader that a run on the digits would have."""
    from proxylessnas import create_model
    from proxylessnas.train import Recipe, open_data
    from proxylessnas.train.loader import TrainLoader
    from proxylessnas.train.setup import preprocessing_of

    data = open_data("digits")
    recipe = Recipe(batch_size=batch, image_size=size, crop="padded")
    preprocessing = preprocessing_of(recipe, create_model(name, num_classes=10), data)
    return TrainLoader(data.train, recipe, preprocessing, num_classes=10)


def bare(name: str, size: int, batch: int, *, loader: bool = False) -> Callable[[], float]:
    """Return a function that trains for STEPS steps and gives the seconds they took.

    ``loader`` takes augmented images from our loader in place of ready ones.
    """
    import torch
    from torch.nn import functional as F

    import proxylessnas

    layout = torch.channels_last
    model = proxylessnas.create_model(name, num_classes=10).train().to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=4e-5, nesterov=True, fused=True)
    batches = [
        (torch.randn(batch, 3, size, size).contiguous(memory_format=layout), torch.randint(0, 10, (batch,)))
        for _ in range(2)
    ]

    loaded = train_loader(name, size, batch)

    def run() -> float:
        start = time.perf_counter()
        source = itertools.islice(loaded.epoch(0), STEPS) if loader else itertools.cycle(batches)
        for inputs, targets in itertools.islice(source, STEPS):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
        return time.perf_counter() - start

    return run


def ours(name: str, size: int, batch: int, folder: Path, **changes: Any) -> Callable[[], float]:
    """Return the same of our engine: real images, augmentation, log, everything."""
    import dataclasses

    import torch

    from proxylessnas import create_model
    from proxylessnas.train import Recipe, Settings, Trainer, open_data
    from proxylessnas.train.logger import RunLog
    from proxylessnas.utils.distributed import Processes
    from proxylessnas.utils.signals import StopRequest

    data = open_data("digits")
    data = dataclasses.replace(data, train=data.train.take(range(STEPS * batch)), val=None)
    recipe = Recipe(
        epochs=10_000, batch_size=batch, image_size=size, crop="padded", learning_rate=0.01, **changes
    )
    trainer = Trainer(
        create_model(name, num_classes=10),
        data,
        recipe,
        Settings(folder / f"run{len(list(folder.iterdir()))}", console=False),
        Processes(0, 1, torch.device("cpu")),
    )
    log = RunLog(
        trainer.settings.out, epochs=recipe.epochs, steps_per_epoch=STEPS, batch_size=batch, console=False
    )
    trainer._enter_phase(0)

    def run() -> float:
        start = time.perf_counter()
        trainer._epoch(StopRequest(), log)
        took = time.perf_counter() - start
        trainer.position.next_epoch()
        return took

    return run


def images_per_second(loader: Any, seconds: float = 2.0) -> float:
    """Return what a loader delivers; its worker processes start, and a batch comes, before the clock runs."""
    n = epoch = 0
    start = None
    while start is None or time.perf_counter() - start < seconds:
        for batch in loader.epoch(epoch):
            if start is None:
                start = time.perf_counter()
                continue
            n += len(batch.inputs)
            if time.perf_counter() - start >= seconds:
                break
        epoch += 1
    return n / max(time.perf_counter() - start, 1e-9)


def alone(name: str, size: int, batch: int, threads: int) -> dict[str, Any]:
    """Return what the loader of these images gives when nobody trains."""
    speed = round(images_per_second(train_loader(name, size, batch)), 1)
    return {
        "net": name, "input": size, "batch": batch, "threads": threads, "loop": "loader alone",
        "images_per_second": speed, "slowest": speed, "fastest": speed, "ratio_to_bare": "",
    }  # fmt: skip


def compare(args: Any) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, (size, batch) in MODELS.items():
            folder = Path(temporary, name)
            folder.mkdir()
            variants = {
                "bare loop, channels-last": bare(name, size, batch),
                "bare loop, channels-last, our loader": bare(name, size, batch, loader=True),
                "ours, channels-last": ours(name, size, batch, folder),
                "ours, channels-last, averaged weights": ours(name, size, batch, folder, ema_decay=0.99),
                "ours, contiguous": ours(name, size, batch, folder, channels_last=False),
                "ours, channels-last, bf16": ours(name, size, batch, folder, amp="bf16"),
                "ours, contiguous, bf16": ours(name, size, batch, folder, channels_last=False, amp="bf16"),
            }
            times: dict[str, list[float]] = {key: [] for key in variants}
            for round_number in range(args.rounds + 1):
                for key, run in variants.items():
                    seconds = run()
                    if round_number:  # the first one warms up
                        times[key].append(seconds)
            base = statistics.median(times["bare loop, channels-last"])
            rows.append(alone(name, size, batch, args.threads))
            for key, seconds in times.items():
                middle = statistics.median(seconds)
                rows.append(
                    {
                        "net": name, "input": size, "batch": batch, "threads": args.threads, "loop": key,
                        "images_per_second": round(STEPS * batch / middle, 1),
                        "slowest": round(STEPS * batch / max(seconds), 1),
                        "fastest": round(STEPS * batch / min(seconds), 1),
                        "ratio_to_bare": round(base / middle, 3),
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


ONE_PROCESS = """
import sys, statistics
sys.path.insert(0, {here!r})
import torch, train_throughput as t
import proxylessnas
torch.set_num_threads({threads})
if {tuned}:
    assert proxylessnas.keep_freed_pages()
run = t.bare({model!r}, {size}, {batch})
run()
print(statistics.median(run() for _ in range({rounds})))
"""


def malloc(args: Any) -> list[dict[str, Any]]:
    """Train in fresh processes with and without the memory settings, in turns."""
    rows = []
    here = str(Path(__file__).resolve().parent)
    for name, (size, batch) in MODELS.items():
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(args.rounds):
            for tuned in (False, True):
                code = ONE_PROCESS.format(
                    here=here, threads=args.threads, tuned=tuned, model=name, size=size, batch=batch, rounds=2
                )
                done = subprocess.run(python_command(code), capture_output=True, text=True, check=True)
                times[tuned].append(float(done.stdout))
        for tuned, seconds in times.items():
            middle = statistics.median(seconds)
            rows.append(
                {
                    "net": name, "input": size, "batch": batch, "threads": args.threads,
                    "loop": "bare, memory kept" if tuned else "bare, glibc's defaults",
                    "images_per_second": round(STEPS * batch / middle, 1),
                    "slowest": round(STEPS * batch / max(seconds), 1),
                    "fastest": round(STEPS * batch / min(seconds), 1),
                    "ratio_to_bare": round(statistics.median(times[True]) / middle, 3),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = harness.make_parser(__doc__, "train_throughput")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--malloc", action="store_true", help="measure the memory settings instead")
    args = parser.parse_args()
    if args.malloc:
        harness.write_rows(args, malloc(args))
        return 0
    harness.start(args)
    harness.write_rows(args, compare(args))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
