"""What the options of `latency` and `bench` take: types for argparse, which name the option and its range."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence

from ..errors import LatencyError

MOST_THREADS, MOST_IMAGES, MOST_PIXELS, MOST_CLASSES = 1024, 65_536, 65_536, 10_000_000
MOST_MODELS = 100_000
_OPTIONS = {
    "validation_nets": "--validation-nets",
    "batch_size": "--batch",
    "cuda_graph": "--cuda-graph",
    "memory_format": "--memory-format",
}
# In "batch_size must be ..." it is the caller's; in "the table: batch_size is ..." a file's.
_OURS = re.compile(r"\b(validation_nets|(?:batch_size|cuda_graph|memory_format)(?= must | needs ))")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a type for whole numbers from ``low`` to ``high``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"wanted a whole number from {low} to {high}, not {text!r}")
        return value

    return read


def wholes(low: int, high: int) -> Callable[[str], tuple[int, ...]]:
    """Return a type for lists of such numbers, as in "1,2"."""
    one = whole(low, high)

    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(one(word) for word in words(text))
        except argparse.ArgumentTypeError as e:
            wanted = f"wanted numbers such as 1,2, each from {low} to {high}, not {text!r}"
            raise argparse.ArgumentTypeError(wanted) from e

    return read


def above(low: float, high: float) -> Callable[[str], float]:
    """Return a type for numbers over ``low`` and at most ``high``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = low
        if not low < value <= high:  # nor NaN
            raise argparse.ArgumentTypeError(
                f"wanted a number over {low:g} and at most {high:g}, not {text!r}"
            )
        return value

    return read


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """Return a type for one of some words; unlike ``choices``, it keeps the short metavar in the usage."""

    def read(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return read


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list such as "torch,onnxruntime"."""
    return tuple(text.replace(",", " ").split())


def several(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a type for lists of such words."""
    one = one_of(known)
    return lambda text: tuple(one(word) for word in words(text))


def in_options(error: LatencyError) -> LatencyError:
    """Return an error of the library whose text names the command line's options, not Python's."""
    text = _OURS.sub(lambda match: _OPTIONS[match[1]], str(error))
    return error if text == str(error) else LatencyError(text)
