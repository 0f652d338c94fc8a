"""The digits that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proxylessnas.data import named as digits
from proxylessnas.errors import DataError


def test_they_are_the_test_part_of_the_uci_set() -> None:
    """1,797 images; the counts of the classes are those that the authors state."""
    images, labels = digits.load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), torch.uint8)
    assert (labels.shape, labels.dtype) == ((1797,), torch.uint8)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(digits.DIGITS) == 10


def test_the_original_sixteenths_can_be_had_back() -> None:
    images, _ = digits.load_digits()
    sixteenths = (images.long() * 16 + 127) // 255
    assert sorted(sixteenths.unique().tolist()) == list(range(17))
    assert torch.equal((sixteenths * 255 + 8) // 16, images.long())
    first = "0 0 5 13 9 1 0 0"  # the top row of the first image, a nought
    assert sixteenths[0, 0].tolist() == [int(word) for word in first.split()]


def test_callers_cannot_change_each_others() -> None:
    images, _ = digits.load_digits()
    images.zero_()
    assert int(digits.load_digits()[0].max()) == 255


def test_damage_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(digits.FILE.read_bytes())
    data[-1] ^= 1
    monkeypatch.setattr(digits, "FILE", tmp_path / "digits.safetensors")
    with pytest.raises(DataError, match=r"No such file.*install that again"):
        digits.load_digits()
    digits.FILE.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        digits.load_digits()
