"""LiteRT, formerly TensorFlow Lite: what runs ``.tflite`` files on phones, here on this processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import LatencyError, first_line
from .base import ModelSpec, Runtime, Session
from .files import check_runtime
from .settings import Settings


def interpreter(path: Path, threads: int | None = None) -> Any:
    """Return a loaded ``.tflite`` file, whose floating-point operators run in XNNPACK.

    Raises:
        LatencyError: it cannot be loaded.
        MissingExtraError: LiteRT is not installed.
    """
    try:
        return RUNTIME.library().Interpreter(model_path=str(path), num_threads=threads)
    except (RuntimeError, ValueError) as e:
        raise LatencyError(f"{path}: LiteRT cannot load it ({first_line(e)})") from e


def resize(loaded: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Make an interpreter ready for an input [N, H, W, C], if it is not.

    Returns:
        The indices of its input and its output.

    Raises:
        RuntimeError, ValueError: the file does not take this shape.
    """
    given, found = loaded.get_input_details()[0], loaded.get_output_details()[0]
    index = given["index"]
    if tuple(given["shape"]) != shape:
        loaded.resize_tensor_input(index, list(shape), strict=True)
    # A file of an open batch wants this before its first run, even if the shape is the one it has.
    loaded.allocate_tensors()
    return index, found["index"]


class LiteRTSession(Session):
    """A loaded file with its input in place."""

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        import numpy as np

        path = Path(spec.text)
        channels, height, width = spec.input_size
        shape = (settings.batch_size, height, width, channels)
        self._interpreter: Any = interpreter(path, settings.threads)
        try:
            index, self._found = resize(self._interpreter, shape)
            self._input = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            self._interpreter.set_tensor(index, self._input)
            self.run()
        except (RuntimeError, ValueError) as e:
            raise LatencyError(f"{path}: LiteRT cannot run {list(shape)} ({first_line(e)})") from e

    def run(self) -> None:
        """Run one forward pass of the whole batch."""
        self._interpreter.invoke()

    def output(self) -> Any:
        """Return the output of the last run as a numpy array."""
        return self._interpreter.get_tensor(self._found)

    def input(self) -> Any:
        """Return the input, [N, C, H, W], as a numpy array."""
        return self._input.transpose(0, 3, 1, 2)


class LiteRT(Runtime):
    """LiteRT; it runs files only."""

    name = "litert"
    module = "ai_edge_litert.interpreter"
    needs = ("ai_edge_litert",)
    extra = "litert"
    suffixes = (".tflite",)

    def load(self, spec: ModelSpec, settings: Settings, folder: Path) -> LiteRTSession:
        """Load a file.

        Raises:
            LatencyError: no ``.tflite`` file, or device or dtype is not one it runs.
            MissingExtraError: LiteRT is not installed.
        """
        self.check(settings)
        if spec.kind != "file":
            raise LatencyError(
                "runtime 'litert' measures .tflite files only: 'proxylessnas export MODEL m.tflite' makes one"
            )
        check_runtime(spec.text, self.name)
        return LiteRTSession(spec, settings)


RUNTIME = LiteRT()
