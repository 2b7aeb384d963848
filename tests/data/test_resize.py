"""Resizing against TensorFlow's numbers and against what defines Keys' cubic."""

import golden_data
import pytest
import torch

from normfree.data import centre_view, evaluation_view, normalize, resize_bicubic
from normfree.data.resize import centre_crop, cubic_taps, padded_centre_window, pixels_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 7), (7, 5), (16, 4), (4, 16), (33, 32), (32, 33)]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    """Arrays of preprocessing.npz, images as (C, H, W)."""
    arrays = {k: v for k, v in golden_data.load("preprocessing").items() if v.dtype.kind in "fiu"}
    return {k: torch.from_numpy(v).permute(2, 0, 1) if v.ndim == 3 else torch.from_numpy(v) for k, v in arrays.items()}


@pytest.mark.parametrize("size", [64, 96, 192])
def test_evaluation_is_the_papers(golden, size):
    view = evaluation_view(golden["image"], size)
    torch.testing.assert_close(view, golden[f"eval_resize_crop_32/{size}/raw"], rtol=0, atol=1e-3)
    # the same thousandth of a grey level, on the normalized scale
    expected = golden[f"eval_resize_crop_32/{size}/normalized"]
    torch.testing.assert_close(normalize(view, MEAN, STD), expected, rtol=0, atol=1e-3 / 255 / min(STD))


@pytest.fixture(scope="module")
def cropped() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in golden_data.load("crop_resize").items()}


@pytest.mark.parametrize("key", ["wide/64", "wide/96", "tall/48", "odd/48"])
def test_evaluation_is_the_first_papers(golden, cropped, key):
    image, (part, size) = golden["image"], key.split("/")
    image = dict(wide=image, tall=image[:, :, 40:191], odd=image[:, :77, :61])[part]
    view = centre_view(image, int(size))
    torch.testing.assert_close(view, cropped[key].permute(2, 0, 1), rtol=0, atol=1e-3)


def test_padded_centre_windows_are_tensorflows(cropped):
    for height, width, size, top, left, side in cropped["windows"].tolist():
        if side:  # of images of a pixel or two TensorFlow takes nothing
            assert padded_centre_window(height, width, size) == (top, left, side, side)
    assert (cropped["windows"][:, 5] > 0).sum() > 190


def test_training_window_is_the_papers(golden):
    window = tuple(golden["train_crop_window_yxhw"].tolist())
    view = resize_bicubic(golden["image"], 96, 96, window)
    torch.testing.assert_close(view, golden["train_resize/96"], rtol=0, atol=1e-3)


def test_window_is_the_same_as_cutting_first(golden):
    image = golden["image"]
    cut = image[:, 31 : 31 + 77, 5 : 5 + 120]  # taps outside the window are left out, so its neighbours do not matter
    assert torch.equal(resize_bicubic(image, 50, 200, (31, 5, 77, 120)), resize_bicubic(cut, 50, 200))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 32, 8)])
def test_equal_sizes_change_nothing(shape):
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    assert torch.equal(resize_bicubic(image, *shape[1:]), image.float())


def test_window_of_the_output_size_is_cut_out():
    image = torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8)
    assert torch.equal(resize_bicubic(image, 4, 5, (3, 6, 4, 5)), image[:, 3:7, 6:11].float())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out", SIZES)
def test_constant_stays_constant(size, out):
    view = resize_bicubic(torch.full((2, *size), 255, dtype=torch.uint8), *out)
    assert view.shape == (2, *out)
    # weights sum to 1 up to float rounding: two passes of four products
    torch.testing.assert_close(view, torch.full((2, *out), 255.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("size", "out"), [(40, 40), (40, 97), (40, 13), (13, 40), (64, 63)])
@pytest.mark.parametrize("power", [1, 2])
def test_quadratics_are_kept_in_the_interior(size, out, power):
    """Keys' cubic with a = -0.5, and no other, interpolates polynomials of degree 2 exactly."""
    x = torch.arange(size, dtype=torch.float32)
    rows = (x / size) ** power
    view = resize_bicubic(rows[None, :, None].expand(1, size, 3), out, 3)[0, :, 0]
    centre = (torch.arange(out) + 0.5) * size / out - 0.5
    inside = (centre >= 1) & (centre <= size - 3)
    slope = power / size
    # places are rounded to 1/1024 of a pixel; 1e-6 is float rounding
    torch.testing.assert_close(view[inside], (centre[inside] / size) ** power, rtol=0, atol=slope / 2048 + 1e-6)
    assert inside.sum() >= out // 2


def test_rows_and_columns_are_treated_alike():
    image = torch.rand(3, 11, 6) * 255
    turned = resize_bicubic(image.transpose(1, 2), 8, 17).transpose(1, 2)
    # the passes run in the other order, so the roundings differ
    torch.testing.assert_close(resize_bicubic(image, 17, 8), turned, rtol=0, atol=255 * 1e-6)


def test_nothing_is_antialiased():
    image = torch.zeros(1, 64, 64)
    image[:, ::4] = 255  # every fourth row; shrinking by 4 looks half-way between rows 1 and 2 of each four
    view = resize_bicubic(image, 16, 64)
    # Keys' weights at 1/2 are -1/16, 9/16, 9/16, -1/16, and row 0 of each four has the first of them
    torch.testing.assert_close(view[:, 1:], torch.full((1, 15, 64), -255 / 16), rtol=1e-6, atol=0)


def test_kept_taps_serve_in_every_mode():
    with torch.inference_mode(), torch.device("meta"):
        resize_bicubic(torch.rand(1, 41, 43, device="cpu"), 7, 9)
    image = torch.rand(1, 41, 43, requires_grad=True)
    resize_bicubic(image, 7, 9).sum().backward()
    torch.testing.assert_close(image.grad.sum(), torch.tensor(63.0))  # each of 7 x 9 pixels has weights of sum 1


def test_overshoot_is_not_clipped():
    image = torch.zeros(1, 8, 8)
    image[:, 4:] = 255
    view = resize_bicubic(image, 32, 32)
    assert view.min() < -1
    assert view.max() > 256


@pytest.mark.parametrize(("size", "out", "start", "length"), [(10, 7, 0, None), (10, 23, 3, 4), (1, 5, 0, None)])
def test_taps_stay_in_the_window_and_sum_to_one(size, out, start, length):
    index, weight = cubic_taps(size, out, start, length)
    stop = size if length is None else start + length
    used = index[weight != 0]
    assert used.min() >= start
    assert used.max() < stop
    assert 0 <= index.min() <= index.max() < size
    torch.testing.assert_close(weight.sum(1), torch.ones(out), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("shape", "size", "top", "left"), [((7, 9), 3, 2, 3), ((8, 8), 3, 2, 2), ((4, 4), 4, 0, 0)])
def test_centre_crop(shape, size, top, left):
    image = torch.rand(2, *shape)
    assert torch.equal(centre_crop(image, size), image[:, top : top + size, left : left + size])


@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("margin", [0, 5, 32])
@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (31, 17)])
def test_evaluation_view_of_any_shape(size, margin, shape):
    view = evaluation_view(torch.full((3, *shape), 100, dtype=torch.uint8), size, margin)
    torch.testing.assert_close(view, torch.full((3, size, size), 100.0), rtol=1e-6, atol=0)


def test_normalize():
    image = torch.randint(0, 256, (3, 6, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    expected = (image.double() / 255 - mean) / std
    got = normalize(image, MEAN, STD)
    assert got.dtype == torch.float32
    # values up to 2.7 in float32, as a difference of two products
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_that_were_normalized(channels):
    image = torch.randint(0, 256, (channels, 6, 5), dtype=torch.uint8)
    mean, std = MEAN[:channels], STD[:channels]
    assert torch.equal(pixels_of(normalize(image, mean, std), mean, std), image)
    beyond = torch.tensor([-9.0, 9.0]).view(1, 1, 2).expand(channels, 1, 2)
    assert pixels_of(beyond, mean, std).tolist() == [[[0, 255]]] * channels
