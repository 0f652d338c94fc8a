"""What the tests of training share: a tiny model, a few images, short recipes, runs in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from proxylessnas import Arch, Stage
from proxylessnas.train import Data, Recipe, open_data
from proxylessnas.utils.distributed import let_exchanges_end

TINY = Arch(
    "tiny",
    stem=8,
    first=8,
    last=32,
    stem_stride=1,
    num_classes=10,
    resolution=8,
    stages=(Stage(16, 2, "k3e3 k3e3"), Stage(24, 2, "k3e3")),
)
# Everything that draws random numbers is on, so that a resumed run has all of it to restore.
BUSY = Recipe(
    epochs=3, batch_size=20, image_size=8, resize=8, crop="padded", crop_padding=1, flip=True, cutout=2,
    mixup_alpha=0.2, learning_rate=0.1, ema_decay=0.9, dropout=0.2, drop_path=0.1, warmup_epochs=0.5,
)  # fmt: skip


def few_digits(limit: int = 10) -> Data:
    """Return 8x8 digits, ``limit`` a class to train on."""
    return open_data("digits", limit=limit)


def noise_folder(folder: Path, classes: int = 10, a_class: int = 11) -> Path:
    """Make a folder of images without any two equal pixels side by side.

    Digits have large areas of one value. Where rounding moves that across the kink of a ReLU6, hundreds of
    activations change at once, and runs that differ by 1e-7 soon differ by 1e-3.
    """
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(a_class):
            image = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(image.numpy()).save(folder / f"class{label}" / f"{number:02d}.png")
    return folder


def differences_of(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the greatest difference between two state dicts."""
    assert a.keys() == b.keys()
    return max((float((a[k].double() - b[k].double()).abs().max()) for k in a), default=0.0)


def tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def run_command(
    *words: str,
    processes: int = 1,
    env: dict[str, str] | None = None,
    script: Path | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run ``proxylessnas WORDS``, under torchrun if there are several processes."""
    return subprocess.run(
        command(*words, processes=processes, script=script),
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=500,
        **options,
    )


def command(*words: str, processes: int = 1, script: Path | None = None) -> list[str]:
    """Return the command that runs ``proxylessnas WORDS``, or a script in its place."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*start, *(["-m", "proxylessnas"] if script is None else [str(script)]), *words]


def watched(folder: Path) -> Path:
    """Return a script that runs the command, and writes to ``threads-RANK`` which threads are left.

    Once when the group of the processes has ended, and once at the end of the command, a line each.
    """
    script = folder / "watched.py"
    script.write_text(
        """\
import os, sys
from pathlib import Path
import torch.distributed as dist
from proxylessnas.cli import main

end = dist.destroy_process_group

def write():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    with Path(__file__).with_name("threads-" + os.environ["RANK"]).open("a") as file:
        print(*names, file=file)

def end_and_write():
    end()
    write()

dist.destroy_process_group = end_and_write
code = main(sys.argv[1:])
write()
sys.exit(code)
""",
        encoding="utf-8",
    )
    return script


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **(more or {})}


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> None:
    """Run ``work(rank, folder)`` in two processes that can reach each other (gloo)."""
    torch.multiprocessing.spawn(_joined, (work, str(folder)), 2)


def _joined(rank: int, work: Callable[[int, str], None], folder: str) -> None:
    if sys.platform.startswith("linux"):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        work(rank, folder)
    finally:
        let_exchanges_end()
        dist.destroy_process_group()


def arch_file(folder: Path) -> Path:
    path = folder / "tiny.txt"
    path.write_text(str(TINY), encoding="utf-8")
    return path


def checkpoint_of(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoints" / name, weights_only=True)
    return state
