from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from proxylessnas.data.transforms import Geometry, Preprocessing, normalised
from proxylessnas.train.augment import BatchAugment, Cutout, Mixing, shrunk, train_transform
from proxylessnas.train.recipe import Recipe

SIZE = 16
PREPROCESSING = Preprocessing(SIZE, SIZE, (0.1, 0.5, 0.6), (0.2, 0.3, 0.4))
CPU = torch.device("cpu")
PADDED = Recipe(crop="padded", crop_padding=3, flip=True)


def photos(n: int, height: int = SIZE, width: int = SIZE) -> Tensor:
    """Return images, uint8 [n, height, width, 3], no pixel of which is black."""
    return torch.randint(1, 256, (n, height, width, 3), dtype=torch.uint8)


def one_by_one(image: Tensor, top: int, left: int, flip: bool, y: int, x: int, cutout: int) -> Tensor:
    """Augment one image [H, W, 3] the plain way: pixel for pixel."""
    out = torch.empty(3, SIZE, SIZE)
    for row in range(SIZE):
        for column in range(SIZE):
            source_row = row + top - PADDED.crop_padding
            source_column = (SIZE - 1 - column if flip else column) + left - PADDED.crop_padding
            inside = 0 <= source_row < SIZE and 0 <= source_column < SIZE
            pixel = image[source_row, source_column].float() if inside else torch.zeros(3)
            mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
            cut = 0 <= row - (y - cutout // 2) < cutout and 0 <= column - (x - cutout // 2) < cutout
            out[:, row, column] = torch.zeros(3) if cut else (pixel / 255 - mean) / std
    return out


@pytest.mark.parametrize("cutout", [0, 1, 5, 8, 40])
def test_a_batch_is_augmented_like_its_images_one_by_one(cutout: int) -> None:
    augment = BatchAugment(PADDED.replace(cutout=cutout), PREPROCESSING, CPU)
    images, draws = photos(4), augment.draws(4, 0)
    batch = augment(images, draws)
    for i in range(4):
        (top, left), flip, (y, x) = (t[i].tolist() for t in draws)
        assert torch.equal(batch[i], one_by_one(images[i], top, left, flip, y, x, cutout))
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_draws_are_uniform_and_independent() -> None:
    n = 20_000
    draws = BatchAugment(PADDED.replace(cutout=4), PREPROCESSING, CPU).draws(n, 0)
    assert draws.flips.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / n**0.5)
    for values, count in ((draws.offsets, 2 * 3 + 1), (draws.centres, SIZE)):
        for axis in range(2):
            shares = torch.bincount(values[:, axis], minlength=count) / n
            assert len(shares) == count
            assert (shares - 1 / count).abs().max() < 4.5 * (1 / count / n) ** 0.5
    together = torch.column_stack([draws.offsets, draws.flips, draws.centres]).float().T
    assert torch.corrcoef(together).fill_diagonal_(0).abs().max() < 4.5 / n**0.5


def test_draws_are_of_the_image_and_the_epoch() -> None:
    augment = BatchAugment(PADDED, PREPROCESSING, CPU)
    first = augment.draws(50, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, augment.draws(50, 0), strict=True))
    assert not torch.equal(first.offsets, augment.draws(50, 1).offsets)
    other = BatchAugment(PADDED.replace(seed=1), PREPROCESSING, CPU)
    assert not torch.equal(first.offsets, other.draws(50, 0).offsets)
    some = first.of(torch.tensor([7, 3]), CPU)
    assert torch.equal(some.offsets, first.offsets[[7, 3]])


def test_without_augmentation_a_batch_is_what_evaluation_sees() -> None:
    augment = BatchAugment(Recipe(crop="none", flip=False), PREPROCESSING, CPU)
    images = photos(5)
    expected = PREPROCESSING.build()(images.permute(0, 3, 1, 2))
    assert torch.equal(augment(images, augment.draws(5, 0)), expected)


def test_mirrors_without_a_crop() -> None:
    augment = BatchAugment(Recipe(crop="none", flip=True), PREPROCESSING, CPU)
    images, draws = photos(8), augment.draws(8, 0)
    batch = augment(images, draws)
    assert set(draws.flips.tolist()) == {True, False}
    for image, flip, out in zip(images.permute(0, 3, 1, 2), draws.flips, batch, strict=True):
        assert torch.equal(out, normalised(image.flip(-1) if flip else image, PREPROCESSING))


@pytest.mark.parametrize(
    ("recipe", "covered"),
    [
        (PADDED, True),
        (PADDED.replace(cutout=8, mixup_alpha=0.2), True),
        (Recipe(crop="none", flip=False), True),
        (Recipe(crop="resized"), False),
        (PADDED.replace(jitter_hue=0.1), False),
        (PADDED.replace(rand_augment=2), False),
        (PADDED.replace(random_erasing=0.1), False),
    ],
)
def test_what_is_augmented_as_a_batch(recipe: Recipe, covered: bool) -> None:
    assert BatchAugment.covers(recipe) is covered


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (SIZE, SIZE), (9, 7), (3, 400)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_geometry_is_that_of_the_evaluation(size: tuple[int, int], interpolation: str) -> None:
    preprocessing = Preprocessing(SIZE, 20, interpolation=interpolation)
    image = photos(1, *size)[0].permute(2, 0, 1)
    pixels = Geometry(preprocessing)(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(normalised(pixels, preprocessing), preprocessing.build()(image))


def test_a_image_without_augmentation_is_what_evaluation_sees() -> None:
    preprocessing = Preprocessing(SIZE, 20)
    image = photos(1, 40, 60)[0].permute(2, 0, 1)
    transform = train_transform(Recipe(crop="none", flip=False), preprocessing)
    assert torch.equal(transform(image), preprocessing.build()(image))


def test_padded_crops_of_single_images_are_all_windows_equally_often() -> None:
    transform = train_transform(PADDED.replace(crop_padding=1), PREPROCESSING)
    image = photos(1)[0].permute(2, 0, 1)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = {}
    for top in range(3):
        for left in range(3):
            window = padded[:, top : top + SIZE, left : left + SIZE]
            for flip in (False, True):
                pixels = normalised(window.flip(-1) if flip else window, PREPROCESSING)
                windows[pixels.numpy().tobytes()] = (top, left, flip)
    n = 1800
    counts = dict.fromkeys(windows.values(), 0)
    for _ in range(n):
        counts[windows[transform(image).contiguous().numpy().tobytes()]] += 1
    assert all(abs(count - n / 18) < 4.5 * (n / 18) ** 0.5 for count in counts.values())


def test_padded_crop_of_a_photo_brings_it_to_the_size_first() -> None:
    preprocessing = Preprocessing(SIZE, 20)
    transform = train_transform(PADDED.replace(crop_padding=1, flip=False), preprocessing)
    image = photos(1, 40, 60)[0].permute(2, 0, 1)
    padded = torch.nn.functional.pad(Geometry(preprocessing, SIZE)(image), (1, 1, 1, 1))
    windows = padded.unfold(1, SIZE, 1).unfold(2, SIZE, 1).permute(1, 2, 0, 3, 4).reshape(9, 3, SIZE, SIZE)
    assert (transform(image) == normalised(windows, preprocessing)).flatten(1).all(1).any()


def test_resized_crops_keep_the_least_share_and_vary() -> None:
    # In an image of coordinates a crop's corners tell its size.
    rows = torch.arange(100).view(100, 1).expand(100, 100)
    image = torch.stack([rows, rows.T, rows]).to(torch.uint8)
    transform = train_transform(
        Recipe(crop="resized", crop_scale_min=0.5, flip=False),
        Preprocessing(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3),
    )
    areas = []
    for _ in range(200):
        out = transform(image) * 255
        spans = out[0, -1, 0] - out[0, 0, 0], out[1, 0, -1] - out[1, 0, 0]
        areas.append(float(spans[0] * spans[1]) * (SIZE / (SIZE - 1)) ** 2 / 100**2)
    assert out.shape == (3, SIZE, SIZE)
    assert 0.45 < min(areas) < 0.6
    assert 0.9 < max(areas) < 1.05


def test_mirrors_half_of_the_single_images() -> None:
    transform = train_transform(Recipe(crop="none", flip=True), PREPROCESSING)
    image = photos(1)[0].permute(2, 0, 1)
    plain = normalised(image, PREPROCESSING)
    same = sum(torch.equal(transform(image), plain) for _ in range(1000))
    assert 430 < same < 570


@pytest.mark.parametrize(
    "changes",
    [
        {"jitter_brightness": 0.4},
        {"jitter_contrast": 0.4},
        {"jitter_saturation": 0.4},
        {"jitter_hue": 0.3},
        {"rand_augment": 2, "rand_augment_magnitude": 15},
        {"random_erasing": 1.0},
        {"cutout": 6},
    ],
)
def test_each_augmentation_of_single_images_changes_them(changes: dict[str, float]) -> None:
    transform = train_transform(Recipe(crop="none", flip=False).replace(**changes), PREPROCESSING)
    image = photos(1)[0].permute(2, 0, 1)
    before = image.clone()
    seen = {transform(image).contiguous().numpy().tobytes() for _ in range(8)}
    assert len(seen) > 2
    assert torch.equal(image, before)
    out = pickle.loads(pickle.dumps(transform))(image)  # as on its way to a worker process
    assert (out.shape, out.dtype) == ((3, SIZE, SIZE), torch.float32)


@pytest.mark.parametrize("side", [1, 4, 7, 40])
def test_cutout_of_single_images_has_its_centre_anywhere(side: int) -> None:
    cutout, n = Cutout(side), 2000
    lost = torch.zeros(SIZE, SIZE)
    for _ in range(n):
        gone = cutout(torch.ones(3, SIZE, SIZE)) == 0
        assert torch.equal(gone[0], gone[1])
        rows, columns = gone[0].any(1).nonzero().flatten(), gone[0].any(0).nonzero().flatten()
        assert 1 <= len(rows) <= side
        assert 1 <= len(columns) <= side
        assert gone[0].sum() == len(rows) * len(columns)
        lost += gone[0]
    # how many of the centres take a pixel with them
    places = torch.arange(SIZE)
    reach = torch.stack([(places - side // 2 <= p) & (p < places - side // 2 + side) for p in range(SIZE)])
    expected = n * torch.outer(reach.sum(1), reach.sum(1)) / SIZE**2
    assert ((lost - expected).abs() <= 5 * expected.sqrt() + 1).all()


def mixed(recipe: Recipe, step: int, rank: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs and targets before and after mixing."""
    random = torch.Generator().manual_seed(5)
    inputs = torch.rand(6, 3, SIZE, SIZE, generator=random).to(memory_format=torch.channels_last)
    targets = torch.tensor([0, 1, 2, 3, 4, 4])
    mixing = Mixing(recipe, 5, rank)
    assert mixing
    return inputs, targets, *mixing(inputs.clone(), targets, 0, step)


def test_mixup_mixes_images_as_it_mixes_targets() -> None:
    for step in range(5):
        inputs, targets, x, y = mixed(Recipe(mixup_alpha=0.8), step)
        share = float(y[0, 0])  # of the first image's own class
        assert torch.allclose(x, share * inputs + (1 - share) * inputs.roll(1, 0), atol=1e-6)
        own = torch.nn.functional.one_hot(targets, 5)
        assert torch.allclose(y, share * own + (1 - share) * own.roll(1, 0), atol=1e-6)
        assert torch.allclose(y.sum(1), torch.ones(6))
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_cutmix_pastes_a_box_as_large_as_the_share_of_the_target() -> None:
    kept = []
    for step in range(40):
        inputs, _, x, y = mixed(Recipe(cutmix_alpha=1.0), step)
        own, other = (x == inputs).all(1), (x == inputs.roll(1, 0)).all(1)
        assert (own ^ other).all()
        rows, columns = other[0].any(1), other[0].any(0)
        assert torch.equal(other, torch.outer(rows, columns).expand_as(other))
        assert float(own[0].float().mean()) == pytest.approx(float(y[0, 0]), abs=1e-6)
        assert torch.allclose(y.sum(1), torch.ones(6))
        kept.append(float(y[0, 0]))
    assert min(kept) < 0.4
    assert max(kept) > 0.9


def test_with_both_each_batch_takes_one() -> None:
    recipe = Recipe(mixup_alpha=1.0, cutmix_alpha=1.0)
    pasted = 0
    for step in range(100):
        inputs, _, x, _ = mixed(recipe, step)
        pasted += bool(((x == inputs) | (x == inputs.roll(1, 0))).all())
    assert 30 < pasted < 70


def test_mixing_follows_from_step_and_process() -> None:
    recipe = Recipe(mixup_alpha=1.0)
    state = torch.get_rng_state()
    first = mixed(recipe, 3)[2]
    assert torch.equal(first, mixed(recipe, 3)[2])
    assert not torch.equal(first, mixed(recipe, 4)[2])
    assert not torch.equal(first, mixed(recipe, 3, rank=1)[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_shares_of_mixup_come_from_its_beta_distribution() -> None:
    alpha, n = 0.4, 2000
    mixing = Mixing(Recipe(mixup_alpha=alpha), 2)
    shares = torch.stack(
        [mixing(torch.zeros(2, 3, 1, 1), torch.tensor([0, 1]), 0, t)[1][0, 0] for t in range(n)]
    )
    variance = 1 / (4 * (2 * alpha + 1))  # of Beta(alpha, alpha)
    assert shares.mean() == pytest.approx(0.5, abs=4.5 * (variance / n) ** 0.5)
    assert shares.var() == pytest.approx(variance, rel=0.1)


def test_no_mixing() -> None:
    assert not Mixing(Recipe(), 5)


def test_every_image_is_mirrored_once_in_two_epochs() -> None:
    augment = BatchAugment(PADDED, PREPROCESSING, CPU)
    flips = [augment.draws(500, epoch).flips for epoch in range(6)]
    for first, second in zip(flips[::2], flips[1::2], strict=True):
        assert torch.equal(first, ~second)
    assert not torch.equal(flips[0], flips[2])  # each pair of epochs draws anew
    assert not BatchAugment(PADDED.replace(flip=False), PREPROCESSING, CPU).draws(500, 1).flips.any()


def test_shrunk() -> None:
    images = torch.rand(2, 3, 32, 48).to(memory_format=torch.channels_last)
    small = shrunk(images, 20)
    assert small.shape == (2, 3, 20, 30)
    assert small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small.mean((2, 3)), images.mean((2, 3)), rtol=0, atol=0.02)
    assert shrunk(images, 32) is images
    assert shrunk(images, 40) is images
