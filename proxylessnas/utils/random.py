"""Seed the global random generators for a piece of work, and give the caller's states back."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def keep_random_state() -> Iterator[None]:
    """Give torch's (CPU), Python's and numpy's global generators their states back afterwards."""
    numpy = sys.modules.get("numpy")  # where nobody has imported it, nobody can draw from it
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])


def seed_everything(seed: int) -> None:
    """Seed torch's (CPU), Python's and numpy's global generators with a 64-bit number."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed & 0xFFFFFFFF)
