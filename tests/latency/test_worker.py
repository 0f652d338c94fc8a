"""The measuring process: what it does, how it ends, and what it leaves behind."""

from __future__ import annotations

import gc
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxylessnas.arch.arch import Arch
from proxylessnas.arch.blocks import Stage
from proxylessnas.arch.op_key import arch_keys
from proxylessnas.errors import ArchError, LatencyError, MissingExtraError
from proxylessnas.latency import worker as process
from proxylessnas.latency.worker import Worker
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.environment import allocator
from proxylessnas.runtimes.settings import Settings

ARCH = Arch("small", stem=8, first=8, last=32, num_classes=10, resolution=32,
            stages=(Stage(16, 2, "k3e2 - k5e3"), Stage(24, 2, "k3e4! k7e2")))  # fmt: skip
SPEC = ModelSpec("arch", str(ARCH), (3, 32, 32))
QUICK = {"min_runs": 5, "min_seconds": 0.0, "max_seconds": 2.0}
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")

# Operations that misbehave in the measuring process. The child is told to import this file.
BAD_OPS = """
import ctypes, os, signal, sys, time, warnings
import torch
from torch import nn
from proxylessnas.arch.ops import register_op

class Op(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act = act
    def forward(self, x):
        self.act()
        return x

def noise():
    print("printed by Python")
    os.write(1, b"written to descriptor 1\\n")
    os.system("echo printed by a shell")
    ctypes.CDLL(None).puts(b"printed by C")
    warnings.warn("a warning")

def tell():
    raise RuntimeError(f"threads {torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")

def hang():
    print("about to hang", file=sys.stderr, flush=True)
    time.sleep(600)

def die():
    print("these are my last words", file=sys.stderr, flush=True)
    os._exit(7)

ACTS = {
    "noisy_op": noise,
    "telling_op": tell,
    "dying_op": die,
    "killed_op": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hungry_op": lambda: torch.empty(2**60),
    "reading_op": lambda: sys.stdin.readline(),
    "hanging_op": hang,
}
for token, act in ACTS.items():
    register_op(token, lambda i, o, s, act=act: Op(act))
"""


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Send temporary files of this process and its children to a folder of their own."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Start one process for all tests that only ask things of it."""
    folder = tmp_path_factory.mktemp("ops")
    (folder / "misbehaving_ops.py").write_text(BAD_OPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        with Worker(Settings(batch_size=2), imports=["misbehaving_ops"]) as worker:
            yield worker


def custom(token: str) -> ModelSpec:
    return ModelSpec("op", f"{token} in=4x8x8 out=4 stride=1", (4, 8, 8))


def is_gone(pid: int, within_s: float = 300.0) -> bool:
    """Tell whether a process ends (or is a zombie that only waits for its parent) within some time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            state = None
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# What it does


def test_conditions_are_what_was_asked_for_and_what_is(worker: Worker) -> None:
    conditions = worker.conditions
    assert conditions.settings == worker.settings == Settings(batch_size=2)
    assert worker.has_parts
    assert {"Python", "torch"} <= conditions.versions.keys()
    assert "core" in conditions.device_name
    assert conditions.system != "unknown"


@pytest.mark.skipif(allocator() not in ("pages kept", "default"), reason="not glibc's allocator")
def test_the_child_keeps_its_pages(worker: Worker) -> None:
    assert worker.conditions.allocator == "pages kept"


def test_the_state_of_the_allocator_is_found_out() -> None:
    """It is what the process has, not what anybody asked for."""
    code = "from proxylessnas.runtimes.environment import allocator; print(allocator())"
    keep = "import proxylessnas; proxylessnas.keep_freed_pages(); "
    root = Path(__file__).resolve().parents[2]
    states = [
        subprocess.run(
            [sys.executable, "-c", start + code], capture_output=True, text=True, check=True, cwd=root
        ).stdout.strip()
        for start in ("", keep)
    ]
    if allocator() == "unknown":
        assert states == ["unknown", "unknown"]
    else:
        assert states[1] == "pages kept" or states[0] == states[1] != "default"


def test_a_model_is_timed_as_a_whole_and_in_parts(worker: Worker) -> None:
    assert worker.load("net", SPEC) > 0
    found = worker.window("net", min_runs=10, min_seconds=0.1, max_seconds=5)
    assert len(found.ms) == len(found.own_ms) >= 10
    assert 0.01 < min(found.ms) < 1000
    assert all(0 < own <= wall for own, wall in zip(found.own_ms, found.ms, strict=True))
    parts = worker.parts("net", runs=30)
    assert [key for key, _ in parts] == [str(key) for key in arch_keys(ARCH)]  # the skipped block is none
    assert {len(ms) for _, ms in parts} == {30}
    whole = min(worker.window("net", min_runs=30, min_seconds=0.0).ms)
    total = sum(min(ms) for _, ms in parts)
    assert 0.4 < total / whole < 1.5  # the fastest runs, for other programs come between


@pytest.mark.parametrize("key", ["k5e3 in=16x9x9 out=16 stride=1 shortcut", *map(str, arch_keys(ARCH))])
def test_every_operation_of_a_model_can_be_timed_alone(worker: Worker, key: str) -> None:
    channels, height, width = map(int, key.split("in=")[1].split()[0].split("x"))
    worker.load("op", ModelSpec("op", key, (channels, height, width)))
    assert min(worker.window("op", **QUICK).own_ms) > 0
    with pytest.raises(LatencyError, match="only a model made from an architecture"):
        worker.parts("op", runs=1)


def test_a_name_can_be_used_again_and_dropped(worker: Worker) -> None:
    worker.load("again", SPEC)
    worker.load("again", custom("noisy_op"))
    with pytest.raises(LatencyError, match="only a model"):
        worker.parts("again", runs=1)
    worker.drop("again")
    worker.drop("never heard of")
    with pytest.raises(LatencyError, match="no model 'again' is loaded"):
        worker.window("again")


def test_what_is_printed_in_the_child_does_no_harm(worker: Worker) -> None:
    worker.load("noisy", custom("noisy_op"))
    assert len(worker.window("noisy", **QUICK).ms) >= 5
    worker.load("reading", custom("reading_op"))  # finds the end of its input instead of our requests
    assert len(worker.window("reading", **QUICK).ms) >= 5


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (ModelSpec("arch", "Arch(name=)", (3, 32, 32)), ArchError, "line 1, column 11"),
        (ModelSpec("arch", str(ARCH), (3, 2**15, 2**15)), LatencyError, "RuntimeError"),
        (ModelSpec("op", "k3e6", (3, 32, 32)), LatencyError, "no key of a latency table"),
        (ModelSpec("op", "unheard_of in=4x8x8 out=4 stride=1", (4, 8, 8)), LatencyError, "unknown operation"),
        (ModelSpec("op", "k3e6 in=4x8x8 out=4 stride=1", (5, 8, 8)), LatencyError, "channels"),
        (ModelSpec("module", "/no/such/file", (3, 32, 32)), LatencyError, "No such file"),
        (ModelSpec("file", "/no/such/file", (3, 32, 32)), LatencyError, "/no/such/file: no such file"),
        (custom("hungry_op"), LatencyError, "RuntimeError"),
    ],
)
def test_errors_come_back_and_the_process_goes_on(
    worker: Worker, spec: ModelSpec, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        worker.load("bad", spec)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    with pytest.raises(LatencyError, match="no model 'bad'"):
        worker.window("bad")


# How it ends


@pytest.fixture
def ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a worker must import to know the operations above."""
    (tmp_path / "misbehaving_ops.py").write_text(BAD_OPS)
    monkeypatch.syspath_prepend(tmp_path)
    return ["misbehaving_ops"]


def test_a_child_that_hangs_is_stopped_and_said_so(
    ops: list[str], temp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading runs the model once, and hangs there."""
    with Worker(Settings(), imports=ops) as worker:
        pid = worker._process.pid
        monkeypatch.setitem(process.LIMITS_S, "load", 1.5)
        begin = time.monotonic()
        with pytest.raises(
            LatencyError, match=r"did not answer for 1.5 s while it was loading 'net'"
        ) as caught:
            worker.load("net", custom("hanging_op"))
        assert time.monotonic() - begin < 300  # and not the 600 that it sleeps
        assert "about to hang" in str(caught.value)
        assert is_gone(pid)
        with pytest.raises(LatencyError, match="was closed, or died"):
            worker.load("net", SPEC)
    assert list(temp.glob("proxylessnas-*")) == []


@POSIX
def test_a_child_that_is_held_up_while_it_times_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was asked to spend counts on top of the limit."""
    with Worker(Settings()) as worker:
        worker.load("net", SPEC)
        monkeypatch.setitem(process.LIMITS_S, "window", 0.5)
        os.kill(worker._process.pid, signal.SIGSTOP)
        with pytest.raises(LatencyError, match=r"did not answer for 1.5 s while it was timing 'net'"):
            worker.window("net", min_runs=1, min_seconds=0.0, max_seconds=0.1)


def test_no_request_is_waited_for_without_a_limit() -> None:
    asked = set(re.findall(r'self\._ask\(\s*"(\w+)"', inspect.getsource(process)))
    assert asked == process.LIMITS_S.keys() == process._DOING.keys()


@POSIX
def test_a_child_that_dies_is_an_error_with_its_last_words(ops: list[str], temp: Path) -> None:
    with Worker(Settings(threads=2), imports=ops) as worker:
        pid = worker._process.pid
        # On the way: the number of threads was set before the libraries started.
        with pytest.raises(LatencyError, match=r"RuntimeError: threads 2 2$"):
            worker.load("x", custom("telling_op"))
        with pytest.raises(LatencyError, match=r"(?s)ended with exit status 7.*these are my last words"):
            worker.load("x", custom("dying_op"))
        with pytest.raises(LatencyError, match="was closed, or died"):
            worker.window("x")
    assert is_gone(pid)
    assert list(temp.iterdir()) == []


@POSIX
def test_a_child_that_is_killed_says_so(ops: list[str], temp: Path) -> None:
    killed = pytest.raises(LatencyError, match=r"killed by SIGKILL \(was there too little memory")
    with Worker(Settings(), imports=ops) as worker, killed:
        worker.load("x", custom("killed_op"))
    assert list(temp.iterdir()) == []


def test_closing_ends_the_process_and_removes_its_folder(temp: Path) -> None:
    worker = Worker(Settings())
    assert worker.folder.parent == temp
    assert worker.folder.is_dir()
    with pytest.raises(LatencyError, match="'nonsense_module' cannot be imported: ModuleNotFoundError"):
        Worker(Settings(), imports=["nonsense_module"])
    assert list(temp.iterdir()) == [worker.folder]
    worker.close()
    worker.close()
    assert worker._process.returncode is not None  # reaped: no zombie
    assert list(temp.iterdir()) == []
    with pytest.raises(LatencyError, match="was closed"):
        worker.load("net", SPEC)


def test_a_worker_that_is_forgotten_is_ended(temp: Path) -> None:
    worker = Worker(Settings())
    process = worker._process
    del worker
    gc.collect()
    assert process.returncode is not None
    assert list(temp.iterdir()) == []


def test_a_library_that_is_broken_says_so_and_names_its_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingExtraError, match=r"broken \(broken\): pip install --force-reinstall onnxruntime"
    ):
        Worker(Settings(runtime="onnxruntime"))


MEASURES = """
import sys
from proxylessnas.runtimes.modules import build_model, op_module
from proxylessnas.latency.worker import Worker
from proxylessnas.runtimes.settings import Settings
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.arch.published import PUBLISHED

def main():
    with Worker(Settings()) as worker:
        worker.load("net", ModelSpec("arch", str(PUBLISHED["proxyless_w025_r112"]), (3, 112, 112)))
        print(worker._process.pid, flush=True)
        worker.window("net", min_runs=10**6, min_seconds=600, max_seconds=600)

try:
    main()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_child_ends_with_its_parent(number: signal.Signals, temp: Path, repo: Path) -> None:
    """In the middle of a measurement, whatever becomes of the parent; nothing stays behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(MEASURES)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=repo,
        start_new_session=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert not is_gone(child, 0.2)
        os.killpg(parent.pid, number)  # as a terminal does
        assert parent.wait(300) == (0 if number == signal.SIGINT else -number)
        assert is_gone(child)
        assert parent.stdout.read() == ("interrupted\n" if number == signal.SIGINT else "")
    end = time.monotonic() + 300
    while list(temp.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(temp.iterdir()) == []
