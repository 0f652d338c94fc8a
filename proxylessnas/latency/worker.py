"""A process of its own for every runtime, so that thread pools and allocators do not meet."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .. import errors
from ..errors import LatencyError
from ..runtimes.base import ModelSpec
from ..runtimes.settings import Conditions, Settings
from ..runtimes.timer import MAX_SECONDS, MIN_RUNS, MIN_SECONDS, Window
from ..utils.subprocesses import python_command

_LOG = logging.getLogger("proxylessnas")
_LAST_WORDS = 12  # lines of standard error to show when the child dies
_PATIENCE_S = 5.0
#: Seconds after which a request counts as hung, by its kind: far more than any takes that makes progress, for
#: loading may compile for minutes. ``window`` has what it was asked to spend ten times over on top.
LIMITS_S = {"start": 900.0, "load": 3600.0, "window": 900.0, "parts": 3600.0, "drop": 300.0}
_DOING = {
    "start": "starting up",
    "load": "loading {name!r}",
    "window": "timing {name!r}",
    "parts": "timing the parts of {name!r}",
    "drop": "freeing {name!r}",
}


class Worker:
    """A measuring process that ends with this one. Use it as a context manager, or call :meth:`close`.

    It starts with freed memory kept (:func:`proxylessnas.keep_freed_pages`) and the threads asked for.

    Args:
        settings: runtime, device, threads, batch and the like; of Conditions, the settings in them.
        imports: names of modules that the child imports first, such as one that registers operations.

    Attributes:
        settings: as given.
        conditions: what the child measures with.
        has_parts: whether :meth:`parts` can be used.
        folder: a temporary folder of both processes; it is removed at the end.

    Raises:
        LatencyError: the process cannot be started, or the settings cannot be met on this machine.
        MissingExtraError: the runtime's library is not installed; the message gives the pip line.
    """

    def __init__(self, settings: Settings, imports: Sequence[str] = ()) -> None:
        self.settings = settings = settings.settings if isinstance(settings, Conditions) else settings
        self.folder = Path(tempfile.mkdtemp(prefix="proxylessnas-latency-"))
        self._errors = self.folder / "stderr.txt"
        try:
            self._process = _start(settings, self.folder, self._errors, bool(imports))
        except BaseException as e:
            shutil.rmtree(self.folder, ignore_errors=True)
            if isinstance(e, OSError):
                raise LatencyError(f"the measuring process cannot be started: {e.strerror or e}") from e
            raise
        # Also for a Worker that is dropped or left open when the program ends.
        self._finalizer = weakref.finalize(self, _stop, self._process, self.folder, os.getpid())
        answer = self._ask(
            "start", settings=settings.to_dict(), imports=list(imports), folder=str(self.folder), fatal=True
        )
        self.conditions = Conditions(**answer["conditions"])
        self.has_parts: bool = answer["has_parts"]

    def load(self, name: str, spec: ModelSpec) -> float:
        """Load a model under a name of your choice, in place of what had it; return the seconds it took.

        Raises:
            LatencyError: the runtime cannot run it; for a bad architecture ArchError.
        """
        return float(self._ask("load", name=name, spec=spec.to_dict()))

    def drop(self, name: str) -> None:
        """Free a model; nothing happens if there is none of that name."""
        self._ask("drop", name=name)

    def window(
        self,
        name: str,
        *,
        min_runs: int = MIN_RUNS,
        min_seconds: float = MIN_SECONDS,
        max_seconds: float = MAX_SECONDS,
    ) -> Window:
        """Time a few whole forward passes of a loaded model; see :func:`~proxylessnas.runtimes.timer.window`.

        Raises:
            LatencyError: nothing is loaded under this name, or running it failed.
        """
        found = self._ask(
            "window", name=name, min_runs=min_runs, min_seconds=min_seconds, max_seconds=max_seconds
        )
        return Window(tuple(found["ms"]), tuple(found["own_ms"]))

    def parts(self, name: str, *, runs: int) -> list[tuple[str, tuple[float, ...]]]:
        """Time the operations of a model of kind "arch" inside whole forward passes, without a warm-up.

        Returns:
            ``(text of the operation's key, milliseconds of each run)``, in order of execution.

        Raises:
            LatencyError: nothing is loaded under this name, or it has no parts.
        """
        return [(key, tuple(ms)) for key, ms in self._ask("parts", name=name, runs=runs)]

    def close(self) -> None:
        """End the process and remove its folder. It may be called twice."""
        self._finalizer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, what: str, *, fatal: bool = False, **arguments: Any) -> Any:
        """Send a request and wait for the answer; whatever interrupts the waiting ends the process."""
        if not self._finalizer.alive:
            raise LatencyError("the measuring process was closed, or died")
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        limit_s = LIMITS_S[what] + 10 * arguments.get("max_seconds", 0.0)
        late = threading.Event()
        watch = threading.Timer(limit_s, _give_up, (self._process, late))
        watch.daemon = True
        watch.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # dead already: reading tells
                pipe_in.write(json.dumps({"do": what, **arguments}) + "\n")
                pipe_in.flush()
            line = pipe_out.readline()
            if not line.endswith("\n"):
                if late.is_set():
                    doing = _DOING[what].format_map(arguments)
                    raise self._ended(
                        f"did not answer for {limit_s:g} s while it was {doing}, and was stopped"
                    )
                raise self._ended(self._death())
            answer = json.loads(line)
        except BaseException:  # also Ctrl-C: an answer that comes later would be taken for the next one
            self.close()
            raise
        finally:
            watch.cancel()
        if "error" in answer:
            if fatal:
                self.close()
            _LOG.debug("in the measuring process: %s", answer["error"]["trace"])
            raise _as_raised(answer["error"])
        return answer["ok"]

    def _death(self) -> str:
        """Return how the child died."""
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if code >= 0:
            return f"ended with exit status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (was there too little memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    def _ended(self, how: str) -> LatencyError:
        words = _last_lines(self._errors)
        return LatencyError(
            f"the measuring process (runtime {self.settings.runtime!r}) {how}"
            + (f"; its last words were:\n{words}" if words else "")
        )


def _start(settings: Settings, folder: Path, errors_file: Path, modules: bool) -> subprocess.Popen[str]:
    threads = str(settings.threads)
    # Thread pools read these once, when their library is loaded.
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    # PYTHONSAFEPATH is for compilers' workers.
    env = {**os.environ, **dict.fromkeys(pools, threads), "PYTHONSAFEPATH": "1"}
    for cache in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        env.setdefault(cache, str(folder / cache.lower()))
    with errors_file.open("wb") as file:
        # A session of its own: Ctrl-C in a terminal reaches this process alone, which then ends the child
        # and whatever compilers it started.
        return subprocess.Popen(
            python_command(
                "from proxylessnas.latency import worker_process; worker_process.main()",
                working_folder=modules,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env=env,
            encoding="utf-8",
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[str], folder: Path, owner: int) -> None:
    """End the child and its children, reap it, and remove its folder."""
    if os.getpid() != owner:  # a fork of the process that started it: the child is not ours
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        _kill(process)
        process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _give_up(process: subprocess.Popen[str], late: threading.Event) -> None:
    """Kill the child, so that whoever waits for its answer reads the end of the pipe instead.

    No method: the timer's thread outlives its cancelling a little, and would keep a dropped Worker alive.
    """
    late.set()
    _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the child and its children, unless it has ended."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()


def _last_lines(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-_LAST_WORDS:])


def _as_raised(error: dict[str, str]) -> Exception:
    """Turn an error that came through the pipe into the package's error of the same name."""
    from ..runtimes.modules import CannotTravel  # imports torch

    known: dict[str, type[Exception]] = {**vars(errors), "CannotTravel": CannotTravel}
    return known.get(error["type"], LatencyError)(error["text"])
