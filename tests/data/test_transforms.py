"""Random crops, shifts and flips: their reach, their statistics, and that a generator decides them."""

import pytest
import torch

from normfree.data import EvalTransform, TrainTransform, evaluation_view, normalize, resize_bicubic
from normfree.data.transforms import distorted_crop_window, random_shift

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_transform(size: int = 8, crop: str = "none", flip: bool = False) -> TrainTransform:
    return TrainTransform(size, crop, flip, MEAN, STD)


def image(*shape: int) -> torch.Tensor:
    """Every pixel another value."""
    return 1 + torch.randperm(3 * shape[0] * shape[1]).view(3, *shape)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (224, 224), (40, 30)])
def test_crop_windows_are_the_papers(shape):
    height, width = shape
    draws = generator()
    windows = [distorted_crop_window(height, width, draws) for _ in range(2000)]
    whole = (0, 0, height, width)
    for top, left, h, w in windows:
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        if (top, left, h, w) != whole:
            # sides are rounded to whole pixels, so each bound holds for a side half a pixel away
            assert (h + 0.5) * (w + 0.5) >= 0.08 * height * width
            assert (h - 0.5) * (w - 0.5) <= height * width
            assert (w + 0.5) / (h - 0.5) >= 3 / 4
            assert (w - 0.5) / (h + 0.5) <= 4 / 3


def test_crop_windows_spread_over_area_aspect_and_place():
    draws = generator()
    top, left, h, w = torch.tensor([distorted_crop_window(300, 300, draws) for _ in range(4000)]).T.double()
    area, aspect = h * w / 300**2, w / h
    assert area.min() < 0.1
    assert area.max() > 0.9
    # areas are uniform where every window of any aspect fits: below 3/4 of the area; the standard error is 0.01
    small = area[area < 0.75]
    assert abs(small.mean() - (0.08 + 0.75) / 2) < 0.03
    assert aspect.min() < 0.77
    assert aspect.max() > 1.31
    for start, side in ((top, h), (left, w)):
        room = 300 - side
        narrow = (room > 0) & (room < 20)  # windows that touch an edge every few draws
        assert (start[narrow] == 0).any()
        assert (start[narrow] == room[narrow]).any()
        assert abs((start / room)[room > 50].mean() - 0.5) < 0.03  # standard error 0.005, and whole pixels


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 900), (3, 2)])
def test_crop_window_of_degenerate_images(shape):
    for seed in range(200):
        top, left, h, w = distorted_crop_window(*shape, generator(seed))
        assert 0 <= top < top + h <= shape[0]
        assert 0 <= left < left + w <= shape[1]


def test_a_window_that_never_fits_is_the_whole_image():
    assert distorted_crop_window(1, 500, generator()) == (0, 0, 1, 500)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2), (5, 4)])
@pytest.mark.parametrize("crop", ["distorted", "shift", "none"])
def test_any_image_becomes_the_asked_size(shape, crop):
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    for seed in range(5):
        view = train_transform(9, crop, flip=True)(pixels, generator(seed))
        assert view.shape == (3, 9, 9)
        assert view.dtype == torch.float32
        assert view.isfinite().all()


@pytest.mark.parametrize(("shape", "reach"), [((6, 5), 2), ((8, 8), 1), ((2, 2), 3), ((1, 1), 2)])
def test_shift_reaches_everywhere_and_fills_with_black(shape, reach):
    pixels, seen = image(*shape), set()
    (height, width), offsets = shape, range(-reach, reach + 1)
    expected = {}
    for dy in offsets:
        for dx in offsets:
            view = torch.zeros(3, *shape)
            for y in range(max(0, -dy), min(height, height - dy)):
                for x in range(max(0, -dx), min(width, width - dx)):
                    view[:, y, x] = pixels[:, y + dy, x + dx]
            expected[dy, dx] = view
    for seed in range(400):
        shifted = random_shift(pixels, reach, generator(seed))
        matches = [offset for offset, view in expected.items() if torch.equal(view, shifted)]
        assert matches
        seen.update(matches)
    assert seen == set(expected)


def test_half_of_the_images_are_mirrored():
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    plain = normalize(pixels, MEAN, STD)
    views = [train_transform(flip=True)(pixels, generator(seed)) for seed in range(1000)]
    assert all(torch.equal(view, plain) or torch.equal(view, plain.flip(-1)) for view in views)
    mirrored = sum(torch.equal(view, plain.flip(-1)) for view in views)
    assert abs(mirrored - 500) < 4 * 250**0.5  # four standard deviations of 1000 fair draws
    assert all(torch.equal(train_transform()(pixels, generator(seed)), plain) for seed in range(50))


def test_without_a_crop_the_whole_image_is_resized():
    pixels = torch.randint(0, 256, (3, 5, 20), dtype=torch.uint8)
    expected = normalize(resize_bicubic(pixels, 8, 8), MEAN, STD)
    assert torch.equal(train_transform()(pixels, generator()), expected)


def test_shift_is_an_eighth_of_the_side():
    row = torch.arange(16.0).expand(3, 16, 16)
    offsets = set()
    for seed in range(200):
        view = train_transform(16, "shift")(row, generator(seed))
        grey = (view[0, 8] * STD[0] + MEAN[0]) * 255  # the middle row, which no shift makes black
        offsets.add(round(grey[8].item()) - 8)
    assert offsets == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("crop", ["distorted", "shift", "none"])
def test_the_generator_decides(crop):
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    transform = train_transform(8, crop, flip=True)
    views = []
    for seed in range(20):
        state = torch.get_rng_state()
        views.append(transform(pixels, generator(seed)))
        assert torch.equal(torch.get_rng_state(), state)  # nothing else is drawn from
        torch.rand(3)
        assert torch.equal(transform(pixels, generator(seed)), views[-1])
    assert any(not torch.equal(view, views[0]) for view in views)


@pytest.mark.parametrize("crop", ["distorted", "shift", "none"])
def test_the_image_itself_is_left_alone(crop):
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    before = pixels.clone()
    train_transform(8, crop, flip=True)(pixels, generator())
    EvalTransform(8, 0, MEAN, STD)(pixels)
    assert torch.equal(pixels, before)


def test_evaluation_without_margin_leaves_pixels():
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(EvalTransform(8, 0, MEAN, STD)(pixels), normalize(pixels, MEAN, STD))


@pytest.mark.parametrize(("shape", "margin"), [((8, 8), 4), ((8, 9), 0), ((30, 20), 32)])
def test_evaluation_is_the_papers_view(shape, margin):
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    expected = normalize(evaluation_view(pixels, 8, margin), MEAN, STD)
    assert torch.equal(EvalTransform(8, margin, MEAN, STD)(pixels), expected)


def test_grey_images_stay_one_channel():
    pixels = torch.randint(0, 256, (1, 10, 10), dtype=torch.uint8)
    assert EvalTransform(6, 2, (0.5,), (0.5,))(pixels).shape == (1, 6, 6)
    assert TrainTransform(6, "distorted", True, (0.5,), (0.5,))(pixels, generator()).shape == (1, 6, 6)
