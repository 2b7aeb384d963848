"""``normfree augment``: what its pictures hold, and its errors."""

from pathlib import Path

import image_files
import numpy as np
import pytest
import torch
from PIL import Image

from normfree.data.autoaugment import POLICY_V0, step
from normfree.data.randaugment import NAMES, apply, arguments

SMALL = ["--size", 96, "--count", 4, "--layers", 4, "--magnitude", 2]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def holds(sheet: np.ndarray, tile: np.ndarray) -> bool:
    """Whether an image lies in one of a picture's columns, pixel for pixel."""
    height, width, _ = tile.shape
    for x in range(16, sheet.shape[1] - width, 8):
        column = sheet[:, x : x + width]
        tops = (column == tile[0]).all((1, 2)).nonzero()[0]
        if any(np.array_equal(column[y : y + height], tile) for y in tops):
            return True
    return False


@pytest.fixture
def photo(tmp_path) -> Path:
    """96 x 96 noise, which a picture of 96 px shows as it is."""
    return image_files.write(tmp_path / "photos" / "a.png", image_files.pixels(96, 96))


def tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(pixels(path).copy()).permute(2, 0, 1)


def test_the_steps_of_augmentation_row_by_row(normfree, photo, tmp_path):
    image_files.write(photo.parent / "b.png", image_files.pixels(40, 120, seed=1))
    out = tmp_path / "steps.png"
    result = normfree("augment", *SMALL, "--out", out, photo.parent)
    assert result.code == 0, result.err
    assert "RandAugment (4 layers, magnitude 2, released)" in result.out
    assert f"picture {out}" in result.out
    sheet = pixels(out)
    assert sheet.shape[1] == 4 * (96 + 8) + 16
    assert sheet.shape[0] > 4 * (96 + 16)
    assert holds(sheet, pixels(photo))


@pytest.mark.parametrize("sane", [False, True])
def test_each_operation_at_three_magnitudes(normfree, photo, tmp_path, sane):
    out = tmp_path / "operations.png"
    result = normfree("augment", "--ops", "--size", 96, "--out", out, photo, *(["--sane"] if sane else []))
    assert result.code == 0, result.err
    sheet, ops = pixels(out), "sane" if sane else "released"
    assert f"operations as {ops}" in result.out
    for name in NAMES:
        for magnitude in (5, 10, 15):
            how = arguments(name, magnitude, 96, 96, place=(48, 48), ops=ops)
            assert holds(sheet, apply(tensor(photo), [(name, how)]).permute(1, 2, 0).numpy())


def test_each_sub_policy_of_autoaugment(normfree, photo, tmp_path):
    out = tmp_path / "policies.png"
    result = normfree("augment", "--autoaugment", "v0", "--ops", "--size", 96, "--out", out, photo)
    assert result.code == 0, result.err
    assert "96 px; sub-policies of AutoAugment v0" in result.out
    sheet = pixels(out)
    for pair in POLICY_V0[::6]:
        steps = [step(operation, 96, 96, place=(48, 48)) for operation in pair]
        for shown in ([steps[0]], [steps[1]], steps):
            assert holds(sheet, apply(tensor(photo), shown).permute(1, 2, 0).numpy())


def test_autoaugment_takes_the_place_of_randaugment(normfree, photo, tmp_path):
    out, small = tmp_path / "a.png", ["--size", 96, "--count", 2]
    result = normfree("augment", "--autoaugment", "v0", *small, "--out", out, photo)
    assert result.code == 0, result.err
    assert "CutMix (alpha 1); AutoAugment (policy v0)" in result.out
    assert "RandAugment" not in result.out


def test_a_recipe_of_autoaugment_is_drawn(normfree, photo, tmp_path):
    recipe, out, small = tmp_path / "aa.yaml", tmp_path / "a.png", ["--size", 96, "--count", 2]
    recipe.write_text("model:\n  name: nf_regnet_b0\ndata:\n  autoaugment: v0\n")
    result = normfree("augment", "--recipe", recipe, *small, "--out", out, photo)
    assert "AutoAugment (policy v0)" in result.out, result.err
    result = normfree("augment", "--recipe", recipe, "--magnitude", 9, *small, "--out", out, photo)
    assert "RandAugment (2 layers, magnitude 9, released)" in result.out, result.err


def test_the_seed_decides(normfree, photo, tmp_path):
    sheets = []
    for number, seed in enumerate((3, 3, 4)):
        out = tmp_path / f"{number}.png"
        torch.manual_seed(number)  # does not matter
        assert normfree("augment", *SMALL, "--seed", seed, "--out", out, photo).code == 0
        sheets.append(pixels(out))
    assert np.array_equal(sheets[0], sheets[1])
    assert sheets[0].shape[1] == sheets[2].shape[1]
    assert not np.array_equal(sheets[0], sheets[2][: sheets[0].shape[0]])


def test_without_layers_there_is_one_row_less(normfree, photo, tmp_path):
    heights = []
    for layers in (4, 0):
        out = tmp_path / f"{layers}.png"
        result = normfree("augment", *SMALL, "--layers", layers, "--out", out, photo)
        assert ("RandAugment" in result.out) == bool(layers)
        heights.append(pixels(out).shape[0])
    assert heights[0] - heights[1] > 96


def test_cutout_is_a_row_of_its_own_and_shows_the_mean(normfree, photo, tmp_path):
    """A square of the mean in an image that is otherwise as the row above has it."""
    out, small = tmp_path / "cut.png", ["--recipe", "digits", "--size", 96, "--count", 1]
    result = normfree("augment", *small, "--cutout", 40, "--out", out, photo)
    assert result.code == 0, result.err
    assert "crop shift (12 px, constant); cutout (40 px)" in result.out
    sheet, side = pixels(out)[:, 16 : 16 + 96], 96
    tops = [y for y in range(len(sheet)) if (sheet[y] != 255).any(axis=1).all()]  # rows of images, which noise is
    first = [y for y in tops if y - 1 not in tops]
    assert len(first) == 3
    cropped, cut = (sheet[y : y + side] for y in first[1:])
    changed = (cropped != cut).any(axis=2)
    assert (cut[changed] == int(0.305 * 255)).all()  # the recipe's mean
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    for places in (rows, columns):
        assert places[-1] - places[0] < 40
        assert places[-1] - places[0] >= 40 - 2 or places[0] == 0 or places[-1] == side - 1
    plain = tmp_path / "plain.png"
    assert normfree("augment", *small, "--out", plain, photo).code == 0
    assert np.array_equal(pixels(plain), pixels(out)[: len(pixels(plain))][:, : pixels(plain).shape[1]])


@pytest.mark.parametrize(("size", "shown"), [(300, 192), (192, 192), (120, 120), (8, 96), (1, 96)])
def test_tiles_have_a_size_to_look_at(normfree, photo, tmp_path, size, shown):
    out = tmp_path / "size.png"
    assert normfree("augment", "--size", size, "--count", 2, "--out", out, photo).code == 0
    assert pixels(out).shape[1] == 2 * (shown + 8) + 16


def test_grey_images(normfree, photo, tmp_path):
    for ops in ([], ["--ops"]):
        out = tmp_path / "grey.png"
        result = normfree("augment", "--recipe", "digits", *SMALL, *ops, "--out", out, photo)
        assert result.code == 0, result.err
        sheet = pixels(out).astype(int)
        assert np.ptp(sheet, axis=2).max() == 0


def test_unreadable_images_are_skipped(normfree, photo, tmp_path):
    broken = image_files.break_file(tmp_path / "broken.png")
    result = normfree("augment", *SMALL, "--out", tmp_path / "a.png", broken, photo)
    assert result.code == 1
    assert result.err.startswith(f"skipped unreadable image {broken}: ")
    assert (tmp_path / "a.png").is_file()
    result = normfree("augment", *SMALL, "--out", tmp_path / "b.png", broken)
    assert result.code == 2
    assert "none of the 1 images could be read" in result.err
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", 0], "--count (=0) must be 1..64"),
        (["--size", 5000], "--size (=5000) must be 1..2048"),
        (["--layers", -1], "layers of RandAugment (=-1) must be at least 0"),
        (["--cutout", -1], "--cutout (=-1) must be 0..2048"),
        (["--cutout", 9, "--size", 8], "cutout (=9) must be at most the side of the images (=8)"),
        (["--magnitude", 99], "magnitude of RandAugment (=99.0) must be 0..30"),
        (["--autoaugment", "v0", "--layers", 2], "--layers is for RandAugment, --autoaugment for AutoAugment"),
        (["--autoaugment", "v0", "--sane"], "--sane is for RandAugment, --autoaugment for AutoAugment"),
        (["--out", "a.txt"], "--out a.txt must end like an image file, for example in .png"),
        (["--out", "nowhere/a.png"], "--out nowhere/a.png: folder nowhere does not exist"),
        (["--recipe", "nfnet_f9"], "recipe 'nfnet_f9' is unknown"),
    ],
)
def test_errors_are_one_line(normfree, photo, options, message):
    result = normfree("augment", photo, *options)
    assert result.code == 2
    assert result.error.startswith(message)


def test_a_missing_image_is_named(normfree, tmp_path):
    result = normfree("augment", tmp_path / "none.png", "--out", tmp_path / "a.png")
    assert (result.code, result.error) == (2, f"{tmp_path / 'none.png'} does not exist")


def test_classes_take_turns(normfree, tmp_path):
    """The first files of a folder of classes are all of one class."""
    tiles = {}
    for level, name in enumerate(("cat", "dog", "emu")):
        tiles[name] = np.full((96, 96, 3), 60 + 60 * level, dtype=np.uint8)
        for i in range(5):
            image_files.write(tmp_path / "photos" / name / f"{i}.png", tiles[name])
    out = tmp_path / "a.png"
    assert normfree("augment", tmp_path / "photos", "--out", out, *SMALL[:2], "--count", 3).code == 0
    sheet = pixels(out)
    assert all(holds(sheet, tile) for tile in tiles.values())
