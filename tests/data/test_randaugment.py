"""RandAugment: each operation against TensorFlow's pixels or its own definition; what is drawn, and by whom."""

import json
from collections import Counter

import golden_data
import numpy as np
import pytest
import torch

from normfree.data import operations
from normfree.data.randaugment import NAMES, RandAugment, apply, arguments
from normfree.errors import UsageError

PREPROCESSING = golden_data.load("preprocessing")
WARPS = golden_data.load("warps")
MAGNITUDES = (0, 1, 2.5, 5, 10, 15, 20, 30)
BLENDS = ("Color", "Contrast", "Brightness", "Sharpness")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def one(name: str, magnitude: float, image: torch.Tensor, **how) -> torch.Tensor:
    """One operation at a magnitude."""
    return apply(image, [(name, arguments(name, magnitude, *image.shape[1:], **how))])


@pytest.mark.parametrize("key", [key.removeprefix("op/") for key in PREPROCESSING if key.startswith("op/")])
def test_operations_are_the_released_ones(key):
    name, _, magnitude = key.partition("/")
    image, expected = (torch.from_numpy(PREPROCESSING[k]).permute(2, 0, 1) for k in ("op_image", f"op/{key}"))
    assert torch.equal(one(name, float(magnitude or 7), image), expected)


@pytest.mark.parametrize("key", sorted(set(WARPS) - {"image"}))
def test_geometry_is_tensorflows(key):
    name, magnitude = key.split("/")
    image, magnitude = torch.from_numpy(WARPS["image"])[None], int(magnitude)
    warped = one(name, abs(magnitude), image, sign=1 if magnitude > 0 else -1)
    assert torch.equal(warped[0], torch.from_numpy(WARPS[key]))


def test_magnitudes_mean_what_was_released():
    released = json.loads(str(PREPROCESSING["level_args"]))
    ours = dict(Posterize="bits", SolarizeAdd="addition", Cutout="half", Solarize="threshold")
    for key, (value,) in released.items():
        name, magnitude = key.split("/")
        expected = value % 256 if name == "Solarize" else value  # a uint8 there: the pictures above show it
        assert arguments(name, int(magnitude), 96, 96)[ours.get(name, "factor")] == expected


@pytest.mark.parametrize("size", [96, 192, 224, 256, 320])
def test_released_contrast_is_about_the_number_of_pixels(size):
    assert arguments("Contrast", 10, size, size)["level"] == min(255, size * size // 256)


@pytest.mark.parametrize("sign", [1, -1])
def test_sane_operations_grow_with_the_magnitude(sign):
    def value(name: str, key: str) -> list[float]:
        return [arguments(name, m, 64, 64, sign=sign, ops="sane")[key] for m in MAGNITUDES]

    for name in BLENDS:
        away = [abs(factor - 1) for factor in value(name, "factor")]
        assert away == sorted(away)
        assert away[0] == 0
    bits, thresholds = value("Posterize", "bits"), value("Solarize", "threshold")
    assert (bits[0], bits[-1]) == (8, 1)
    assert (thresholds[0], thresholds[-1]) == (256, 0)
    assert bits == sorted(bits, reverse=True)
    assert thresholds == sorted(thresholds, reverse=True)
    assert "level" not in arguments("Contrast", 10, 64, 64, ops="sane")


def test_sane_contrast_is_about_the_mean_of_the_grey_image():
    image = noise(3, 20, 30) // 2
    weights = torch.tensor([0.2989, 0.587, 0.114])[:, None, None]
    mean = int((image / 255 * weights).sum(0).mul(255.5).to(torch.uint8).float().mean())
    expected = (mean + 1.9 * (image.float() - mean)).clamp(0, 255).to(torch.uint8)
    assert torch.equal(operations.contrast(image, 1.9), expected)
    assert torch.equal(operations.contrast(image, 0.0), torch.full_like(image, mean))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 7, 5), (3, 2, 9), (3, 40, 31)])
@pytest.mark.parametrize("name", NAMES)
def test_any_image_at_any_magnitude_keeps_its_form(name, shape):
    for image in (noise(*shape), torch.full(shape, 77, dtype=torch.uint8)):
        before = image.clone()
        for ops in ("released", "sane"):
            for magnitude in MAGNITUDES:
                changed = one(name, magnitude, image, ops=ops)
                assert changed.shape == image.shape
                assert changed.dtype == torch.uint8
                changed.fill_(3)  # what comes out is new: it shares no pixel with the image
                assert torch.equal(image, before)


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_of_an_image_does_not_matter(name):
    image = noise(12, 10, 3).permute(2, 0, 1)  # as decoding leaves it
    assert torch.equal(one(name, 10, image), one(name, 10, image.contiguous()))


def test_one_channel_has_no_colour_and_is_its_own_grey():
    image = noise(1, 12, 12)
    assert torch.equal(operations.color(image, 1.9), image)
    assert torch.equal(operations.contrast(image, 0.0), torch.full_like(image, int(image.float().mean())))


@pytest.mark.parametrize("name", BLENDS)
def test_a_factor_of_one_changes_nothing(name):
    image = noise(3, 16, 16)
    assert torch.equal(one(name, 5, image), image)


def test_pixel_operations_on_every_value():
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    for value, inverted, added, kept in zip(
        range(256),
        operations.solarize(values, 200).flatten().tolist(),
        operations.solarize_add(values, 110).flatten().tolist(),
        operations.posterize(values, 3).flatten().tolist(),
        strict=True,
    ):
        assert inverted == (255 - value if value >= 200 else value)
        assert added == (min(255, value + 110) if value < 128 else value)
        assert kept == value // 32 * 32
    assert torch.equal(operations.solarize(values, 0), operations.invert(values))
    assert torch.equal(operations.solarize(values, 256), values)
    assert torch.equal(operations.brightness(values, 0.0), torch.zeros_like(values))


def test_autocontrast_reaches_black_and_white_in_each_channel():
    image = torch.stack([noise(30, 30, seed=s) // (2 + s) + 20 for s in range(3)])
    stretched = operations.autocontrast(image)
    assert stretched.amin((1, 2)).tolist() == [0, 0, 0]
    assert set(stretched.amax((1, 2)).tolist()) <= {254, 255}  # 254.99998 is truncated, as released
    flat = torch.full((3, 4, 4), 7, dtype=torch.uint8)
    assert torch.equal(operations.autocontrast(flat), flat)


def test_equalize_makes_values_uniform():
    image = (torch.rand(3, 200, 200, generator=generator()) ** 3 * 255).to(torch.uint8)
    flat = operations.equalize(image)
    for channel in flat.flatten(1).double() / 255:
        for quantile in (0.4, 0.6, 0.8):  # cubes of uniform values crowd at black, so not lower
            assert abs((channel < quantile).double().mean() - quantile) < 0.05
    few = noise(3, 1, 5)
    assert torch.equal(operations.equalize(few), few)  # too few pixels for a step


@pytest.mark.parametrize("size", [1, 2, 7, 64, 193])
def test_quarter_turns_are_exact(size):
    image = noise(3, size, size)
    for quarters in range(-4, 5):
        assert torch.equal(operations.rotate(image, 90.0 * quarters), torch.rot90(image, quarters, (1, 2)))


def test_a_half_turn_of_a_rectangle_is_two_flips():
    image = noise(3, 20, 31)
    assert torch.equal(operations.rotate(image, 180.0), image.flip(1, 2))


@pytest.mark.parametrize("pixels", [-40, -8, -7, -1, 0, 1, 5, 9, 40])
def test_translation_is_by_whole_pixels(pixels):
    image = noise(3, 8, 10)
    right, down = operations.translate_x(image, pixels), operations.translate_y(image, pixels)
    for y in range(8):
        for x in range(10):
            expected = image[:, y, x + pixels] if 0 <= x + pixels < 10 else torch.tensor(128)
            assert (right[:, y, x] == expected).all()
            expected = image[:, y + pixels, x] if 0 <= y + pixels < 8 else torch.tensor(128)
            assert (down[:, y, x] == expected).all()


@pytest.mark.parametrize("level", [-1, 1, 2])
def test_a_shear_moves_each_row_by_its_height(level):
    image = noise(3, 9, 9)
    rows = operations.shear_x(image, level)
    for y in range(9):
        assert torch.equal(rows[:, y : y + 1], operations.translate_x(image[:, y : y + 1], level * y))
    turned = operations.shear_y(image.transpose(1, 2), level)
    assert torch.equal(turned, rows.transpose(1, 2))


def test_a_centred_shear_keeps_the_middle():
    image = noise(3, 9, 9)
    rows = operations.shear_x(image, 1, centred=True)
    for y in range(9):
        assert torch.equal(rows[:, y : y + 1], operations.translate_x(image[:, y : y + 1], y - 4))
    assert torch.equal(operations.shear_y(image, 1, centred=True)[:, :, 4], image[:, :, 4])


@pytest.mark.parametrize(("y", "x", "area"), [(50, 50, 400), (0, 0, 100), (99, 50, 220), (5, 99, 165), (10, 10, 400)])
def test_cutout_is_a_grey_square_clipped_at_the_border(y, x, area):
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    cut = operations.cutout(image, 10, y, x)
    assert set(cut.unique().tolist()) == {0, 128}
    assert [(channel == 128).sum().item() for channel in cut] == [area] * 3
    ys, xs = (cut[0] == 128).nonzero().T
    assert (ys.min(), ys.max()) == (max(0, y - 10), min(99, y + 9))
    assert (xs.min(), xs.max()) == (max(0, x - 10), min(99, x + 9))


def test_every_operation_is_drawn_equally_often_with_either_sign_anywhere():
    steps = RandAugment(32_000, 1).draw(10, 20, generator())
    counts = Counter(name for name, _ in steps)
    assert set(counts) == set(NAMES)
    # 2000 expected each; the standard deviation of a count is 43
    assert all(abs(count - 2000) < 200 for count in counts.values())
    positive = np.mean([how["degrees"] > 0 for name, how in steps if name == "Rotate"])
    assert abs(positive - 0.5) < 0.06  # five standard errors
    places = {(how["y"], how["x"]) for name, how in steps if name == "Cutout"}
    assert {y for y, _ in places} == set(range(10))
    assert {x for _, x in places} == set(range(20))


def test_the_draws_of_each_layer_are_independent():
    pairs = Counter()
    for seed in range(3000):
        (first, _), (second, _) = RandAugment(2, 5).draw(8, 8, generator(seed))
        pairs[first == second] += 1
    assert abs(pairs[True] / 3000 - 1 / 16) < 0.02  # four standard errors


def test_the_generator_decides():
    image, augment, seen = noise(3, 160, 160), RandAugment(4, 5), set()  # a smaller one is shifted out of itself
    for seed in range(30):
        state = torch.get_rng_state()
        changed = augment(image, generator(seed))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert torch.equal(augment(image, generator(seed)), changed)
        assert torch.equal(changed, apply(image, augment.draw(160, 160, generator(seed))))
        seen.add(changed.numpy().tobytes())
    assert len(seen) > 25


def test_no_layers_change_nothing():
    image = noise(3, 8, 8)
    assert torch.equal(RandAugment(0, 10)(image, generator()), image)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(layers=-1, magnitude=5), "layers of RandAugment (=-1) must be at least 0"),
        (dict(layers=1, magnitude=31), "magnitude of RandAugment (=31) must be 0..30"),
        (dict(layers=1, magnitude=float("nan")), "magnitude of RandAugment (=nan) must be 0..30"),
        (dict(layers=1, magnitude=5, ops="mad"), 'ops of RandAugment (=\'mad\') must be "released" or "sane"'),
    ],
)
def test_settings_are_checked(how, message):
    with pytest.raises(UsageError) as error:
        RandAugment(**how)
    assert str(error.value) == message


def test_only_bytes_are_augmented():
    with pytest.raises(UsageError, match=r"uint8, not torch.float32"):
        RandAugment(1, 5)(torch.rand(3, 8, 8), generator())
