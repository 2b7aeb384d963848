"""Masks: which value is which class, read and written back."""

import numpy as np
import pytest
import torch
from pair_files import masks_folder
from PIL import Image

from normfree import UsageError
from normfree.data import DataConfig, UnreadableImage
from normfree.data.masks import MaskValues
from normfree.data.pairs import open_pairs

CLASSES = torch.tensor([[0, 1, 2], [2, 1, 255]])


def write(path, array, mode=None):
    image = Image.fromarray(np.array(array))
    (image.convert(mode) if mode else image).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("values", "ignored", "array"),
    [
        (None, None, np.uint8([[0, 1, 2], [2, 1, 255]])),
        ((0, 128, 255), 7, np.uint8([[0, 128, 255], [255, 128, 7]])),
        ((0, 255, 3), 254, np.uint8([[0, 255, 3], [3, 255, 254]])),
        ((3, 2, 1), None, np.uint8([[3, 2, 1], [1, 2, 255]])),
        ((0, 1000, 65535), 65534, np.uint16([[0, 1000, 65535], [65535, 1000, 65534]])),
        (
            ((0, 0, 0), (0, 0, 255), (128, 0, 0)),
            (224, 224, 192),
            np.uint8([[(0, 0, 0), (0, 0, 255), (128, 0, 0)], [(128, 0, 0), (0, 0, 255), (224, 224, 192)]]),
        ),
    ],
)
def test_values_of_each_kind(tmp_path, values, ignored, array):
    mask = MaskValues(3, values, ignored)
    assert torch.equal(mask.read(write(tmp_path / "a.png", array)), CLASSES)
    mask.image(CLASSES[:1]).save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert np.array_equal(np.array(image), array[:1])
    assert torch.equal(mask.read(str(tmp_path / "b.png")), CLASSES[:1])


def test_colours_of_a_palette(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1], [1, 0]]))
    image.putpalette([0, 0, 0, 250, 0, 0] + [9] * 762)
    image.save(tmp_path / "a.png")
    assert MaskValues(2, ((0, 0, 0), (250, 0, 0))).read(str(tmp_path / "a.png")).tolist() == [[0, 1], [1, 0]]
    assert MaskValues(2).read(str(tmp_path / "a.png")).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("values", "array", "told"),
    [
        (None, np.uint8([[7, 9]]), "class 7 is unknown; there are 0 to 1, and 255 to ignore"),
        (
            (0, 255),
            np.uint8([[0, 9]]),
            r"the value 9 is neither among data.mask_values \(=\[0, 255\]\) nor data.mask_ignored",
        ),
        (
            ((0, 0, 0), (9, 9, 9)),
            np.uint8([[(0, 0, 255)]]),
            r"the value \[0, 0, 255\] is neither among",
        ),  # blue is not 255
        (
            (0, 255),
            np.uint8([[(0, 0, 255)]]),
            "a RGB image; a mask holds one class number .*data.mask_values \\[\\[0,0,0",
        ),
        (None, np.uint16([[1]]), "a I;16 image; a mask holds one class number per pixel .* give data.mask_values"),
    ],
)
def test_values_that_are_of_no_class(tmp_path, values, array, told):
    path = write(tmp_path / "a.png", array)
    with pytest.raises(UnreadableImage, match=f"{path}: {told}"):
        MaskValues(2, values).read(path)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (dict(mask_values=(0, 0)), r"data\.mask_values \(=\[0, 0\]\) must be 2 to 254 values, each once"),
        (dict(mask_values=(0,)), "must be 2 to 254 values"),
        (dict(mask_values=(0, 65536)), r"\(=\[0, 65536\]\) must be numbers from 0 to 65535, or colours"),
        (dict(mask_values=(0, (1, 2, 3))), r"\(=\[0, \[1, 2, 3\]\]\) must be numbers"),
        (dict(mask_values=((0, 0, 0), (1, 2, 256))), "must be numbers"),
        (dict(mask_values=(0, 255), mask_ignored=(1, 2, 3)), "mask_ignored likewise"),
        (dict(mask_ignored=3), r"data\.mask_ignored \(=3\) needs data\.mask_values"),
        (
            dict(mask_values=(0, 255), mask_ignored=255),
            r"mask_ignored \(=255\) is among data\.mask_values \(=\[0, 255\]\)",
        ),
    ],
)
def test_recipes_that_say_nothing_about_masks(fields, told):
    with pytest.raises(UsageError, match=told):
        DataConfig(**fields)


def test_a_folder_of_0_and_255(tmp_path):
    root = masks_folder(tmp_path, names=None)
    for path in root.rglob("masks/*.png"):
        mask = np.array(Image.open(path))
        write(path, np.uint8(255) * (mask == 1))
    source = open_pairs(f"masks:{root}", "segmentation", values=(0, 255))
    assert source.classes == ["class0", "class1"]
    image, mask = source.train.pair(1)
    assert torch.equal(mask[1:] == 1, image[0, 1:] > 100)
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(UsageError, match=r"mask_values \(=\[0, 255\]\) are 2, .*classes.txt names 3 classes"):
        open_pairs(f"masks:{root}", "segmentation", values=(0, 255))


def test_values_are_for_folders_of_masks():
    with pytest.raises(UsageError, match=r"data\.mask_values \(=\[0, 255\]\) is for \"masks:PATH\"; data.source is"):
        open_pairs("scenes:20,32", "segmentation", values=(0, 255))
