"""Kill a run again and again, run the same command each time, and compare what comes out.

    python benchmarks/kill_and_resume.py --kills 20
    python benchmarks/kill_and_resume.py --what gradient-two reinforce

The commands are the real ones (`proxylessnas train`, `proxylessnas search run`), the kills are SIGKILL after
a random time: during start-up, a step, validation or the writing of a checkpoint. The result must be bitwise
that of a run in one piece: of a training its weights; of a search also alpha, the state of both optimisers,
the controller, the baseline, all generators, the architecture and the logs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import harness

from proxylessnas.utils.subprocesses import COMMAND_LINE, python_command

ARCH = """Arch("tiny", stem=8, first=8, last=32, stem_stride=1, num_classes=10, resolution=16,
  stages=(Stage(16, 2, "k3e3 k3e3"), Stage(24, 2, "k5e3 k3e3")))
"""
TRAIN = "train"
SEARCHES = {
    "gradient-two": ("gradient", "arch_mode=two"),
    "gradient-full_v2": ("gradient", "arch_mode=full_v2"),
    "reinforce": ("reinforce", "reinforce_updates=10"),
}
#: What a clock or the way of a run decides, in checkpoints, logs and results.
VARIES = {"seconds", "waited", "total_seconds", "run", "time", "waiting", "images_per_second", "memory_mib"}
VARIES |= {"seconds_left", "date"}
#: Generators that no step draws from: they start from the system's entropy in each process.
VARIES |= {"python", "numpy"}


def command(what: str, folder: Path, epochs: int) -> list[str]:
    """Return the command of a run; next to its folder lies the architecture that is trained."""
    here = ["--out", str(folder), "--epochs", str(epochs), "--image-size", "16", "--threads", "1", "--quiet"]
    here += ["--device", "cpu"]
    if what == TRAIN:
        changes = ["mixup_alpha=0.2", "cutout=4", "dropout=0.1", "ema_decay=0.99", "drop_path=0.1"]
        words = ["train", str(folder.parent.parent / "tiny.txt"), "digits", "--recipe", "small-images"]
        words += ["--batch-size", "64", "--save-every", "3"]
    else:
        algorithm, change = SEARCHES[what]
        changes = [change, "cutout=4"]
        words = ["search", "run", "--space", "tiny", "--data", "digits", "--recipe", "tiny", "--limit", "40"]
        words += ["--algorithm", algorithm, "--target-macs", "0.45", "--warmup-epochs", "2"]
        words += ["--save-every", "2"]
    words += [word for change in changes for word in ("--set", change)]
    return python_command(COMMAND_LINE, *words, *here)


def remains(what: str, folder: Path) -> dict[str, Any]:
    """Return what a finished run left that no kill may change, by name."""
    from safetensors.torch import load_file

    from proxylessnas.train import checkpoint

    if what == TRAIN:
        return {"model.safetensors": load_file(folder / "model.safetensors")}
    state, problems = checkpoint.newest(folder / "checkpoints")
    found: dict[str, Any] = {"damaged checkpoints": problems, **without_clocks(state)}
    found["child.safetensors"] = load_file(folder / "child.safetensors")
    for name in ("arch.txt", "net.config", "search.toml", "space.toml"):
        found[name] = (folder / name).read_bytes()
    found["result.json"] = without_clocks(json.loads((folder / "result.json").read_text()))
    for name in ("search.jsonl", "log.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        found[name] = [without_clocks(row) for row in rows if row["event"] != "note"]
    return found


def without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clocks(v) for key, v in value.items() if key not in VARIES}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal to the bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


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


def failed(messages: TextIO) -> None:
    """Show what the run that failed said last."""
    messages.seek(0)
    print(f"FAILED:\n{''.join(messages.readlines()[-20:])}", file=sys.stderr)


def trial(what: str, args: argparse.Namespace, root: Path) -> tuple[list[dict[str, Any]], int] | None:
    """Return the kills of one kind of run and in how many runs they were; None where a result differs."""
    rng = random.Random(f"{args.seed} {what}")
    messages = (root / "messages.txt").open("w+")
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": messages}
    start = time.monotonic()
    whole = root / "whole" / "run"
    if subprocess.run(command(what, whole, args.epochs), check=False, **quiet).returncode:
        return failed(messages)
    seconds, wanted = time.monotonic() - start, remains(what, whole)
    print(f"{what} in one piece: {seconds:.1f} s, {step_reached(whole)} steps", flush=True)
    rows: list[dict[str, Any]] = []
    runs = 1
    while True:
        broken = root / f"broken{runs}" / "run"  # of the same name: it becomes that of the model
        child = subprocess.Popen(command(what, broken, args.epochs), **quiet)
        try:
            if len(rows) < args.kills:
                if len(rows) % 5:  # every fifth is killed at any moment, the others once they train
                    wait_for_work(child, broken)
                child.wait(timeout=rng.uniform(0.0, 0.4) * seconds)
            else:
                child.wait()
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            rows.append({"kill": len(rows) + 1, "run": runs, "checkpoint_step": step_reached(broken)})
            print(f"kill {len(rows)}: the newest checkpoint is of step {rows[-1]['checkpoint_step']}")
            continue
        if child.returncode:
            return failed(messages)
        found = remains(what, broken)
        different = [name for name in {**wanted, **found} if not same(wanted.get(name), found.get(name))]
        verdict = f"DIFFERENT: {', '.join(different)}" if different else "all bitwise equal"
        print(f"run {runs}, after {len(rows)} kills in all: {len(wanted)} results, {verdict}", flush=True)
        if different:
            return None
        if len(rows) >= args.kills:
            return rows, runs
        runs += 1  # it ended before enough kills: another run


def main() -> int:
    parser = harness.make_parser(__doc__, "kill_and_resume")
    parser.add_argument("--what", nargs="+", default=[TRAIN, *SEARCHES], choices=[TRAIN, *SEARCHES])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    harness.start(args)
    searches, wrong = [], []
    for what in args.what:
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            (root / "tiny.txt").write_text(ARCH)
            found = trial(what, args, root)
            if found is None:
                wrong.append(what)
            elif what == TRAIN:
                harness.write_rows(args, found[0])
            else:
                steps = step_reached(root / "whole" / "run")
                at = sorted({row["checkpoint_step"] for row in found[0]})
                searches.append(
                    {
                        "search": what, "kills": len(found[0]), "runs": found[1], "steps": steps,
                        "killed_after": " ".join(map(str, at)), "result": "bitwise equal",
                    }
                )  # fmt: skip
    if searches:
        args.csv = args.csv.with_name(f"{args.csv.stem}_search.csv")
        harness.write_rows(args, searches)
    if wrong:
        print(f"FAILED: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
