"""Masks and depths that training cannot use are refused before a run, with what would be right."""

import re

import numpy as np
import pytest
from pair_files import depth_folder, masks_folder
from PIL import Image

from normfree.recipes import load_recipe
from normfree.runs.load import load_trained

SMALL = ["--quiet", "--train.device", "cpu", "--train.batch_size", "2", "--train.steps", "2", "--task.head_width", "8"]
SMALL += ["--model.options.depths", "[1,1,1]", "--model.options.widths", "[16,16,32]"]
SIZES = ["--data.image_size", "24", "--data.test_size", "24"]


def binary_folder(root):
    """Masks of 0 and 255."""
    for path in masks_folder(root).rglob("masks/*.png"):
        with Image.open(path) as image:
            mask = np.array(image)
        Image.fromarray(np.uint8(255) * (mask == 1)).save(path)
    return root


def test_masks_of_0_and_255(normfree, tmp_path):
    """Refused as they are; with their values named, learnt and written back."""
    source = ["--data", f"masks:{binary_folder(tmp_path / 'data')}"]
    refused = normfree("train", *source, *SMALL, *SIZES, "--out", tmp_path / "run")
    assert refused.code == 2
    assert "'thing' occurs in none of the 6 training masks" in refused.error
    assert "give --data.mask_values [0,255]" in refused.error
    assert not (tmp_path / "run").exists()
    train = normfree("train", *source, *SMALL, *SIZES, "--data.mask_values", "0,255", "--out", tmp_path / "run")
    assert train.code == 0, train.err
    recipe = load_trained(str(tmp_path / "run")).recipe
    assert list(recipe.data.mask_values) == [0, 255]
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml")) == recipe
    result = normfree("eval", tmp_path / "run")
    assert result.code == 0, result.err
    assert re.search(r"mean IoU .*\n.*ground +[\d.]+%", result.out)
    images = tmp_path / "data" / "val" / "images"
    assert normfree("predict", tmp_path / "run", images, "--masks", tmp_path / "said").code == 0
    for path in (tmp_path / "said").iterdir():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (24, 24))
            assert set(np.unique(np.array(image)).tolist()) <= {0, 255}


def test_targets_that_hold_nothing_are_refused_before_a_run(normfree, tmp_path):
    for path in (masks_folder(tmp_path / "m") / "val" / "masks").iterdir():
        Image.fromarray(np.full((24, 24), 255, np.uint8)).save(path)
    for path in (depth_folder(tmp_path / "d") / "val" / "depths").iterdir():
        zeros = np.zeros((24, 24), np.uint16)
        Image.fromarray(zeros).save(path) if path.suffix == ".png" else np.save(path, zeros.astype(np.float32))
    for source, told in (
        (f"masks:{tmp_path / 'm'}", "none of the 6 test masks has a pixel of a class"),
        (f"depth:{tmp_path / 'd'}", "none of the 6 test depth maps has a measured pixel"),
    ):
        result = normfree("train", "--data", source, *SMALL, *SIZES, "--out", tmp_path / "run")
        assert (result.code, told in result.error) == (2, True)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (["--data.mask_values", "[0, 255, 7]"], r"data\.mask_values \(=\[0, 255, 7\]\) are 3, .* names 2 classes"),
        (["--data.mask_values", "[0, 0]"], "must be 2 to 254 values, each once"),
        (["--data.mask_values", "red"], r"data\.mask_values \(='red'\) must be a list"),
    ],
)
def test_values_that_do_not_fit(normfree, tmp_path, fields, told):
    source = ["--data", f"masks:{binary_folder(tmp_path / 'data')}"]
    result = normfree("train", *source, *SMALL, *SIZES, *fields, "--out", tmp_path / "run")
    assert result.code == 2
    assert re.search(told, result.error), result.error


def test_values_are_for_segmentation(normfree, tmp_path):
    for recipe in ("demo_depth", "digits"):
        result = normfree("train", "--recipe", recipe, "--data.mask_values", "[0,255]", "--out", tmp_path / "run")
        assert (result.code, "(=[0, 255]) is for segmentation; task.name is" in result.error) == (2, True)
