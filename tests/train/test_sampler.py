from __future__ import annotations

import pytest
import torch

from proxylessnas.errors import DataError
from proxylessnas.train.sampler import IMAGE, ORDER, Steps, generator, mix64, order


def test_mix64_is_fixed_for_good() -> None:
    # Another function would make a run that is continued go on with other images.
    assert mix64() == 0x9E3779B97F4A7C15
    assert mix64(0) == 0x6E789E6AA1B965F4
    assert mix64(7, IMAGE, 3, 12345) == 0xBB5E0A24B1A03692


def test_mix64_tells_neighbours_and_their_order_apart() -> None:
    seen = {mix64(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seen) == 20**3
    assert len({value & 0xFFFFFFFF for value in seen}) == 20**3  # torch's generator takes the lower half
    assert mix64(-1) == mix64((1 << 64) - 1)


def test_mix64_changes_half_of_the_bits() -> None:
    flipped = [bin(mix64(1, i) ^ mix64(1, i + 1)).count("1") for i in range(1000)]
    assert sum(flipped) / len(flipped) == pytest.approx(32, abs=0.6)


def test_streams_of_one_seed_differ() -> None:
    first, second = (torch.rand(4, generator=generator(0, stream, 0)) for stream in (ORDER, IMAGE))
    assert not torch.equal(first, second)


def test_order_is_a_permutation_of_its_own_for_each_epoch_and_seed() -> None:
    orders = [order(100, seed, epoch) for seed in (0, 1) for epoch in range(3)]
    assert all(o.sort().values.tolist() == list(range(100)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 6
    assert torch.equal(orders[1], order(100, 0, 1))


def test_order_shows_no_trace_of_the_one_before() -> None:
    places = torch.stack([order(1000, 0, epoch).argsort().float() for epoch in range(20)])
    assert torch.corrcoef(places).fill_diagonal_(0).abs().max() < 0.15  # 5 standard deviations


def test_steps_leave_out_what_does_not_fill_a_batch() -> None:
    steps = Steps(103, 10, seed=0)
    batches = list(steps.indices(0))
    assert len(steps) == len(batches) == 10
    assert torch.equal(torch.cat(batches), order(103, 0, 0)[:100])


def test_parts_of_all_processes_make_up_the_batch() -> None:
    whole = list(Steps(50, 12, seed=3).indices(2))
    parts = zip(*(Steps(50, 12, seed=3, rank=rank, world=3).indices(2) for rank in range(3)), strict=True)
    assert [torch.cat(p).tolist() for p in parts] == [w.tolist() for w in whole]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (3, 1), (1, 2), (2, 2), (2, 3)])
def test_in_each_part_of_a_step_all_processes_see_what_one_would(world: int, accumulate: int) -> None:
    whole = list(Steps(50, 12, seed=3).indices(2))
    shares = [
        list(Steps(50, 12, seed=3, rank=rank, world=world, accumulate=accumulate).indices(2, first_step=1))
        for rank in range(world)
    ]
    for step, expected in enumerate(whole[1:]):
        parts = [share[step].chunk(accumulate) for share in shares]  # as a step takes its batch apart
        for k, part in enumerate(expected.chunk(accumulate)):
            assert torch.equal(torch.cat([pieces[k] for pieces in parts]), part)


def test_iterates_over_the_epoch_that_was_set() -> None:
    steps = Steps(20, 4, seed=0)
    steps.epoch, steps.first_step = 5, 3
    expected = [[(5, i) for i in indices.tolist()] for indices in steps.indices(5)][3:]
    assert list(steps) == expected
    assert len(expected) == 2


def test_too_few_images() -> None:
    with pytest.raises(DataError, match=r"there are 9 training images, fewer than one batch of 10.* most 9"):
        Steps(9, 10, seed=0)


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(DataError, match="a batch of 10 images cannot be shared evenly by 4 processes"):
        Steps(100, 10, seed=0, world=4)


@pytest.mark.parametrize(
    ("n", "batch_size", "such_as"), [(100, 10, "8 or 16"), (14, 10, "8"), (100, 3, "8"), (9, 7, "8")]
)
def test_a_batch_that_cannot_be_shared_in_parts(n: int, batch_size: int, such_as: str) -> None:
    message = (
        rf"a batch of {batch_size} images cannot be shared evenly by 4 processes, each in 2 parts "
        rf"\(accumulate\): batch_size has to be a multiple of 8, such as {such_as}$"
    )
    with pytest.raises(DataError, match=message):
        Steps(n, batch_size, seed=0, world=4, accumulate=2)
