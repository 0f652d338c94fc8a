"""Kill a training run again and again, run the same command each time, and compare what comes out.

    python benchmarks/kill_and_resume.py --kills 20

The command is the real one (`proxylessnas train`), the kills are SIGKILL after a random time: during
start-up, a step, validation or the writing of a checkpoint. The result must be bitwise that of a run in one
piece.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

ARCH = """Arch("tiny", stem=8, first=8, last=32, stem_stride=1, num_classes=10, resolution=16,
  stages=(Stage(16, 2, "k3e3 k3e3"), Stage(24, 2, "k5e3 k3e3")))
"""


def command(folder: Path, arch: Path, epochs: int) -> list[str]:
    changes = ["mixup_alpha=0.2", "cutout=4", "dropout=0.1", "ema_decay=0.99", "drop_path=0.1"]
    words = [
        "train",
        str(arch),
        "digits",
        "--out",
        str(folder),
        "--epochs",
        str(epochs),
        "--batch-size",
        "64",
    ]
    words += [
        "--recipe",
        "small-images",
        "--image-size",
        "16",
        "--save-every",
        "3",
        "--threads",
        "1",
        "--quiet",
    ]
    words += ["--device", "cpu", *[word for change in changes for word in ("--set", change)]]
    return [sys.executable, "-m", "proxylessnas", *words]


def digest(folder: Path) -> str:
    """Return a digest of all final tensors."""
    from safetensors.torch import load_file

    found = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def step_reached(folder: Path) -> int:
    from proxylessnas.train import checkpoint

    state, _ = checkpoint.newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else (None, [])
    return state["position"]["global_step"] if state else 0


def wait_for_work(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until a process is through its start-up, which would else take most of the kills."""
    log = folder / "log.jsonl"
    before = log.stat().st_mtime_ns if log.exists() else 0
    while child.poll() is None and (not log.exists() or log.stat().st_mtime_ns == before):
        time.sleep(0.02)


def main() -> int:
    parser = harness.make_parser(__doc__, "kill_and_resume")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    harness.start(args)
    rng = random.Random(args.seed)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        arch = root / "tiny.txt"
        arch.write_text(ARCH)
        start = time.monotonic()
        subprocess.run(command(root / "whole", arch, args.epochs), env=env, check=True)
        whole = time.monotonic() - start
        print(f"in one piece: {whole:.1f} s, {step_reached(root / 'whole')} steps")
        rows, killed, runs = [], 0, 1
        broken = root / "broken"
        while True:
            child = subprocess.Popen(command(broken, arch, args.epochs), env=env)
            try:
                if killed < args.kills:
                    if killed % 5:  # every fifth is killed at any moment, the others once they train
                        wait_for_work(child, broken)
                    child.wait(timeout=rng.uniform(0.0, 0.4) * whole)
                else:
                    child.wait()
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                killed += 1
                rows.append({"kill": killed, "run": runs, "checkpoint_step": step_reached(broken)})
                print(f"kill {killed}: the newest checkpoint is of step {rows[-1]['checkpoint_step']}")
                continue
            if child.returncode:
                print(f"error: exit code {child.returncode}", file=sys.stderr)
                return 1
            same = digest(broken) == digest(root / "whole")
            verdict = "bitwise equal" if same else "DIFFERENT"
            print(f"run {runs}, after {killed} kills in all: the weights are {verdict}", flush=True)
            if not same:
                return 1
            if killed >= args.kills:
                break
            runs += 1  # it ended before enough kills: another run
            broken = root / f"broken{runs}"
    harness.write_rows(args, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
