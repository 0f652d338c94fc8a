"""Several processes train as one, with the real command under torchrun (gloo, on this CPU)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from train_tools import (
    BUSY,
    arch_file,
    checkpoint_of,
    command,
    differences_of,
    environment,
    noise_folder,
    run_command,
    tensors,
    watched,
)

RECIPE = BUSY.replace(
    epochs=2, mixup_alpha=0.0, dropout=0.0, drop_path=0.0, sync_bn=True, learning_rate=0.02, clip_norm=1.0
)

# Each round has a port of its own, which the first process finds and writes to a file.
PART = """\
import os, socket, sys, time
from pathlib import Path
from proxylessnas.utils.distributed import processes

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
for number in range(rounds):
    port = folder / f"port-{number}"
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port.with_suffix(".new").write_text(str(free.getsockname()[1]))
        os.replace(port.with_suffix(".new"), port)
    while not port.exists():
        time.sleep(0.001)
    os.environ["MASTER_PORT"] = port.read_text()
    with processes("cpu") as group:
        assert group.sum_of(1.0) == [2.0]
"""


def _words(folder: Path, name: str, *more: str) -> list[str]:
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.to_toml(), encoding="utf-8")
    words = ["train", str(arch_file(folder)), str(folder / "data"), "--recipe", str(recipe)]
    return [*words, "--out", str(folder / name), "--threads", "1", *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    noise_folder(folder / "data")
    for name, processes in (("one", 1), ("two", 2)):
        script = watched(folder) if processes > 1 else None
        done = run_command(*_words(folder, name), processes=processes, script=script)
        assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_give_the_weights_of_one_with_the_whole_batch(runs: Path) -> None:
    one, two = tensors(runs / "one" / "model.safetensors"), tensors(runs / "two" / "model.safetensors")
    assert differences_of(one, two) < 1e-5
    states = [checkpoint_of(runs / name) for name in ("one", "two")]
    assert states[1]["run"]["processes"] == 2
    assert len(states[1]["rng"]) == 2
    assert differences_of(states[0]["model"], states[1]["model"]) < 1e-5


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux shows them")
def test_no_thread_of_the_group_outlives_it(runs: Path) -> None:
    """One that holds a tensor when Python ends aborts the process, which torchrun takes for a failure.

    Nothing of the run may refer to the group when it is destroyed: where it ends, its threads are waited for.
    """
    for rank in range(2):
        text = (runs / f"threads-{rank}").read_text()
        ended, at_end = (line.split() for line in text.splitlines())
        assert "gloo" not in text
        assert len(ended) == len(at_end)  # not every torch gives those threads a name


def test_processes_part_however_soon_after_they_exchanged_something(tmp_path: Path) -> None:
    """With torch 2.6, some never went on: the group waited for a thread of its own, which waited for it."""
    (tmp_path / "part.py").write_text(PART, encoding="utf-8")
    rounds, last = 40, 500
    children = []
    for rank in range(2):
        env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        words = [sys.executable, str(tmp_path / "part.py"), str(tmp_path), str(rounds)]
        children.append(subprocess.Popen(words, env=environment(env), stderr=subprocess.PIPE, text=True))
    try:
        for child in children:
            _, said = child.communicate(timeout=last)
            assert child.returncode == 0, said
    finally:
        for child in children:
            child.kill()


def test_validation_is_summed_over_the_processes(runs: Path) -> None:
    rows = [(runs / name / "epochs.csv").read_text().splitlines() for name in ("one", "two")]
    for one, two in zip(rows[0][1:], rows[1][1:], strict=True):
        a, b = ([float(v) for v in row.split(",")[:6]] for row in (one, two))
        assert a == pytest.approx(b, abs=2e-4)


def test_a_run_goes_on_with_another_number_of_processes(runs: Path) -> None:
    """Two processes are stopped by SIGTERM; one goes on, and says that the last digits may differ."""
    words = _words(runs, "changed", "--save-every", "1")
    child = subprocess.Popen(
        command(*words, processes=2), env=environment(), stderr=subprocess.PIPE, text=True
    )
    newest = runs / "changed" / "checkpoints" / "last.pt"
    deadline = time.monotonic() + 300
    while not newest.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=300)
    reached = checkpoint_of(runs / "changed")["position"]["global_step"]
    assert 1 <= reached <= 10
    done = run_command(*words)
    assert done.returncode == 0, done.stderr
    if reached < 10:
        assert "processes: 1, was 2" in done.stderr
    one, changed = (tensors(runs / name / "model.safetensors") for name in ("one", "changed"))
    assert differences_of(one, changed) < 1e-5
