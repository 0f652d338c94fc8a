"""What tests ask of a chart's file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def share_of(path: Path, color: tuple[int, int, int]) -> float:
    """Return which share of an image has just this colour."""
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        found = image.convert("RGB").getcolors(1 << 24)
    assert found is not None
    return sum(n for n, c in found if c == color) / sum(n for n, _ in found)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
