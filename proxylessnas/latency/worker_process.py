"""What runs in the measuring process that :class:`.worker.Worker` starts.

It answers each line of JSON on what was its standard input with one on what was its standard output. Both are
moved elsewhere first: what a library prints goes to standard error. It ends when the pipe closes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import shutil
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from ..errors import LatencyError, ProxylessError
from ..runtimes.base import ModelSpec
from ..runtimes.settings import Settings, one_thread
from ..utils.malloc import keep_freed_pages

if TYPE_CHECKING:
    from ..runtimes.base import Runtime, Session


class Server:
    """What the measuring process holds: a runtime and the models that are loaded."""

    def __init__(self, settings: Settings, imports: list[str]) -> None:
        import torch

        from ..runtimes.registry import get_runtime

        torch.set_num_threads(settings.threads)
        torch.set_num_interop_threads(1)
        for name in imports:
            try:
                importlib.import_module(name)
            except Exception as e:
                raise LatencyError(f"module {name!r} cannot be imported: {type(e).__name__}: {e}") from e
        self.settings = settings
        self.runtime: Runtime = get_runtime(settings.runtime)
        self.sessions: dict[str, Session] = {}
        gc.freeze()  # the libraries' many objects: collections need not look at them again and again

    def start(self) -> dict[str, Any]:
        """Tell the conditions."""
        from ..runtimes.environment import conditions

        found = conditions(self.settings, self.runtime)
        return {"conditions": found.to_dict(), "has_parts": self.runtime.has_parts}

    def load(self, name: str, spec: dict[str, Any]) -> float:
        """Load a model under a name, in place of what had the name; return how many seconds it took."""
        begin = time.perf_counter()
        self.drop(name)
        self.sessions[name] = self.runtime.load(ModelSpec.from_dict(spec), self.settings)
        return time.perf_counter() - begin

    def drop(self, name: str) -> None:
        """Free a model, if there is one of that name."""
        session = self.sessions.pop(name, None)
        if session is not None:
            session.close()
            gc.collect()

    def window(self, name: str, **limits: Any) -> dict[str, Any]:
        """Time a few whole forward passes."""
        from ..runtimes.timer import window

        found = window(self._session(name), one_thread=one_thread(self.settings), **limits)
        return {"ms": found.ms, "own_ms": found.own_ms}

    def parts(self, name: str, runs: int) -> list[tuple[str, list[float]]]:
        """Time the operations inside whole forward passes."""
        session = self._session(name)
        if not self.runtime.has_parts:
            raise LatencyError(f"runtime {self.runtime.name!r} cannot time the parts of a model")
        gc.disable()
        try:
            return session.parts_ms(runs)  # type: ignore[attr-defined]
        finally:
            gc.enable()

    def _session(self, name: str) -> Session:
        if name not in self.sessions:
            raise LatencyError(f"no model {name!r} is loaded")
        return self.sessions[name]


def main() -> None:
    """Answer requests until the pipe closes."""
    requests, answers = _private_pipes()
    # The starting process sees to Ctrl-C: it kills this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_pages()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    folder: list[Path] = []
    threading.Thread(target=_read_lines, args=(requests, lines, folder), daemon=True).start()
    server: Server | None = None
    while True:
        request = json.loads(lines.get())
        what = request.pop("do")
        try:
            if server is None:
                folder.append(Path(request["folder"]))
                server = Server(Settings(**request["settings"]), request["imports"])
                answer = server.start()
            else:
                answer = getattr(server, what)(**request)
            reply = json.dumps({"ok": answer}, default=float)  # a runtime's times may be of numpy's types
        except Exception as e:  # noqa: BLE001 - whatever it is, the starting process must hear of it
            reply = json.dumps({"error": _described(e)})
            del e  # its frames hold the tensors of what failed
        try:
            answers.write(reply + "\n")
            answers.flush()
        except OSError:  # nobody reads any more
            _end(folder)


def _private_pipes() -> tuple[IO[str], IO[str]]:
    """Take standard input and output for this protocol alone; leave nothing and standard error in place."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _read_lines(requests: IO[str], lines: queue.SimpleQueue[str], folder: list[Path]) -> None:
    """Pass lines on; at the end of them, end this process, even in the middle of a measurement.

    A thread that waits for a line costs the measurement nothing.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in requests:
            lines.put(line)
    _end(folder)


def _end(folder: list[Path]) -> NoReturn:
    """End this process and all that it started; the one that started it is gone."""
    for path in folder:
        shutil.rmtree(path, ignore_errors=True)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # compilers, for example
    os._exit(1)


def _described(error: Exception) -> dict[str, str]:
    """Return an error in a form that goes through the pipe."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, ProxylessError):
        return {"type": type(error).__name__, "text": str(error), "trace": trace}
    first = str(error).strip().split("\n", 1)[0]
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return {"type": "LatencyError", "text": text, "trace": trace}
