"""Random crops, shifts and flips: their reach, their statistics, and that a generator decides them."""

import collections
import dataclasses

import numpy as np
import pytest
import torch

from normfree.data import (
    EvalTransform,
    RandAugment,
    TrainTransform,
    centre_view,
    evaluation_view,
    normalize,
    resize_bicubic,
)
from normfree.data.transforms import (
    cutout_window,
    distorted_crop_window,
    padded_centre_window,
    random_shift,
    training_window,
)
from normfree.errors import UsageError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_transform(size: int = 8, crop: str = "none", flip: bool = False) -> TrainTransform:
    return TrainTransform(size, crop, flip, MEAN, STD)


def image(*shape: int) -> torch.Tensor:
    """Every pixel another value."""
    return 1 + torch.randperm(3 * shape[0] * shape[1]).view(3, *shape)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (224, 224), (40, 30), (100, 300)])
def test_crop_windows_are_the_papers(shape):
    height, width = shape
    draws = generator()
    for _ in range(2000):
        top, left, h, w = distorted_crop_window(height, width, draws)
        # the last place is not drawn; there is one place where the side is the image's
        assert 0 <= top < max(1, height - h)
        assert 0 <= left < max(1, width - w)
        assert 0.1 <= h * w / (height * width) <= 1  # 8 % would do, but a tenth of the image must be covered
        # the width is rounded to a whole pixel from the height and the aspect
        assert h * 3 / 4 - 0.5 <= w <= h * 4 / 3 + 0.5


def test_heights_of_crop_windows_are_uniform_given_the_aspect():
    """As TensorFlow draws them: areas are then not uniform, but more often small."""
    draws = generator()
    _, _, h, w = torch.tensor([distorted_crop_window(600, 600, draws) for _ in range(6000)]).T.double()
    aspect, area = w / h, h * w / 600**2
    # from the least side that covers a tenth to the greatest that fits
    lowest, highest = (0.1 * 600**2 / aspect).sqrt(), 600 / aspect.clamp(min=1)
    place = ((h - lowest) / (highest - lowest)).sort().values
    assert place[0] > -0.01  # rounded to pixels
    assert place[-1] < 1.01
    assert (place - torch.linspace(0, 1, len(place)).double()).abs().max() < 0.025  # Kolmogorov's 0.1 % is 0.025
    assert abs(area.median() - 0.38) < 0.02  # of uniform areas the median would be 0.54
    assert abs((aspect > (3 / 4 + 4 / 3) / 2).double().mean() - 0.5) < 0.03


def test_crop_windows_are_anywhere():
    draws = generator()
    top, left, h, w = torch.tensor([distorted_crop_window(300, 300, draws) for _ in range(4000)]).T.double()
    for start, side in ((top, h), (left, w)):
        room = 300 - side
        narrow = (room > 1) & (room < 20)  # windows that touch an edge every few draws
        assert (start[narrow] == 0).any()
        assert (start[narrow] == room[narrow] - 1).any()
        assert not (start[narrow] == room[narrow]).any()
        assert abs(((start + 0.5) / room)[room > 50].mean() - 0.5) < 0.03  # standard error 0.005


# (height, width): how many of 20,000 windows of an 8 x 8 image, by tf.image.stateless_sample_distorted_bounding_box
# of TensorFlow 2.21 with seeds (0..19999, 8008), min_object_covered 0.1, area_range (0.08, 1), ten attempts
TENSORFLOWS = {
    (3, 3): 3703,
    (3, 4): 1700,
    (4, 3): 753,
    (4, 4): 1373,
    (4, 5): 1433,
    (5, 4): 888,
    (5, 5): 1074,
    (5, 6): 1342,
    (5, 7): 249,
    (6, 5): 921,
    (6, 6): 829,
    (6, 7): 968,
    (6, 8): 639,
    (7, 5): 229,
    (7, 6): 723,
    (7, 7): 679,
    (7, 8): 857,
    (8, 6): 376,
    (8, 7): 622,
    (8, 8): 642,
}


def test_sizes_of_crop_windows_are_as_frequent_as_tensorflows():
    draws = generator()
    ours = collections.Counter(distorted_crop_window(8, 8, draws)[2:] for _ in range(20_000))
    assert ours.keys() == TENSORFLOWS.keys()
    # chi-square of two samples of one distribution, 19 degrees of freedom: 43.8 in one of a thousand
    assert sum((ours[size] - n) ** 2 / (ours[size] + n) for size, n in TENSORFLOWS.items()) < 43.8


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (2, 900), (3, 2), (9, 100)])
def test_crop_window_of_degenerate_images(shape):
    for seed in range(200):
        for window in (
            distorted_crop_window(*shape, generator(seed)),
            training_window(*shape, 192, 32, generator(seed)),
        ):
            top, left, h, w = window
            assert 0 <= top < top + h <= shape[0]
            assert 0 <= left < left + w <= shape[1]


@pytest.mark.parametrize(
    ("shape", "size", "margin", "window"),
    [
        ((224, 224), 192, 32, (16, 16, 192, 192)),
        ((448, 1000), 192, 32, (32, 308, 384, 384)),
        ((1001, 449), 192, 32, (309, 33, 384, 384)),  # offsets are rounded up
        ((30, 900), 224, 32, (2, 437, 26, 26)),
        ((50, 70), 28, 0, (0, 10, 50, 50)),
        ((1, 9), 192, 32, (0, 4, 1, 1)),
    ],
)
def test_the_padded_centre(shape, size, margin, window):
    assert padded_centre_window(*shape, size, margin) == window


def test_a_window_that_never_fits_becomes_the_padded_centre():
    assert distorted_crop_window(30, 900, generator()) == (0, 0, 30, 900)
    assert training_window(30, 900, 224, 32, generator()) == padded_centre_window(30, 900, 224, 32)
    pixels = torch.randint(0, 256, (3, 30, 900), dtype=torch.uint8)
    for margin in (32, 0):
        view = TrainTransform(24, "distorted", False, MEAN, STD, margin=margin)(pixels, generator())
        expected = resize_bicubic(pixels, 24, 24, padded_centre_window(30, 900, 24, margin))
        assert torch.equal(view, normalize(expected, MEAN, STD))


def test_a_window_of_the_whole_image_becomes_the_padded_centre():
    seed = next(seed for seed in range(999) if distorted_crop_window(8, 8, generator(seed)) == (0, 0, 8, 8))
    assert training_window(8, 8, 24, 8, generator(seed)) == (1, 1, 6, 6)


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


@pytest.mark.parametrize(("shape", "reach"), [((6, 5), 2), ((8, 8), 1), ((4, 5), 2)])
def test_padding_by_reflection_mirrors_the_border(shape, reach):
    """As numpy's "reflect": the border itself is not repeated."""
    pixels = image(*shape)
    padded = np.pad(pixels.numpy(), ((0, 0), (reach, reach), (reach, reach)), "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, shape, axis=(1, 2))
    every = [
        torch.from_numpy(windows[:, y, x].copy()).float()
        for y in range(windows.shape[1])
        for x in range(windows.shape[2])
    ]
    assert len(every) == (2 * reach + 1) ** 2
    seen = set()
    for seed in range(400):
        shifted = random_shift(pixels, reach, generator(seed), "reflect")
        (match,) = [i for i, view in enumerate(every) if torch.equal(view, shifted)]
        seen.add(match)
    assert seen == set(range(len(every)))


def test_the_padding_is_in_pixels():
    row, offsets = torch.arange(16.0).expand(3, 16, 16), set()
    for seed in range(200):
        view = dataclasses.replace(train_transform(16, "shift"), padding=3)(row, generator(seed))
        offsets.add(round(((view[0, 8, 8] * STD[0] + MEAN[0]) * 255).item()) - 8)
    assert offsets == set(range(-3, 4))


def test_where_windows_of_cutout_are():
    """Around every pixel equally often, cut off at the border."""
    size, side = 6, 4
    centres = [(max(0, c - 2), min(size, c + 2) - max(0, c - 2)) for c in range(size)]
    expected = {(top, left, height, width) for top, height in centres for left, width in centres}
    draws = generator()
    found = collections.Counter(cutout_window(size, size, side, draws) for _ in range(3600))
    assert found.keys() == expected
    assert len(found) == 36
    assert sum((n - 100) ** 2 / 100 for n in found.values()) < 66.6  # chi-square, 35 degrees of freedom, one in 1000


@pytest.mark.parametrize(("side", "of"), [(1, 1), (3, 9), (8, 8), (2, 32)])
def test_windows_of_cutout_lie_in_the_image(side, of):
    for seed in range(300):
        top, left, height, width = cutout_window(of, 2 * of, side, generator(seed))
        assert 0 <= top < top + height <= of
        assert 0 <= left < left + width <= 2 * of
        assert max(height, width) <= side
        assert min(height, width) >= side // 2  # the centre is in the image


@pytest.mark.parametrize("randaugment", [None, RandAugment(2, 5.0)])
def test_cutout_is_the_last_step_and_leaves_the_mean(randaugment):
    pixels = torch.randint(1, 256, (3, 12, 12), dtype=torch.uint8)
    plain = dataclasses.replace(train_transform(12, "shift", flip=True), randaugment=randaugment)
    for seed in range(20):
        draws, again = generator(seed), generator(seed)
        view, cut = plain(pixels, draws), dataclasses.replace(plain, cutout=5)(pixels, again)
        top, left, height, width = cutout_window(12, 12, 5, draws)  # drawn behind everything else
        inside = torch.zeros(12, 12, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert not cut[:, inside].any()
        assert torch.equal(cut[:, ~inside], view[:, ~inside])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(crop="shift", padding=8), r"data.padding \(=8\) must be below the side of the images \(=8\)"),
        (dict(cutout=9), r"data.cutout \(=9\) must be at most the side of the images \(=8\)"),
        (dict(size=1, padding_mode="reflect"), r"data.padding_mode \(='reflect'\) needs images of 2 pixels at least"),
    ],
)
def test_padding_and_cutout_must_fit_the_size(options, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(train_transform(8), **options)


@pytest.mark.parametrize("crop", ["distorted", "shift", "none"])
def test_the_generator_decides(crop):
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    transform = dataclasses.replace(train_transform(8, crop, flip=True), padding_mode="reflect", cutout=3)
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
    dataclasses.replace(train_transform(8, crop, flip=True), cutout=3)(pixels, generator())
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
    expected = normalize(centre_view(pixels, 8, margin), MEAN, STD)
    assert torch.equal(EvalTransform(8, margin, MEAN, STD, "centre")(pixels), expected)


def test_grey_images_stay_one_channel():
    pixels = torch.randint(0, 256, (1, 10, 10), dtype=torch.uint8)
    assert EvalTransform(6, 2, (0.5,), (0.5,))(pixels).shape == (1, 6, 6)
    assert TrainTransform(6, "distorted", True, (0.5,), (0.5,))(pixels, generator()).shape == (1, 6, 6)
