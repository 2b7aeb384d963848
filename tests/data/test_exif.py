"""Photos that EXIF turns: boxes and masks lie on what they are for, whichever frame they were made in."""

import json

import numpy as np
import pytest
import torch
from coco_files import coco_folder
from image_files import turn
from pair_files import masks_folder
from PIL import Image

from normfree.data import decode_image
from normfree.data.coco import coco
from normfree.data.exif import as_stored
from normfree.data.pairs import open_pairs

TURNS = range(1, 9)


@pytest.mark.parametrize("orientation", TURNS)
def test_stored_pixels(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    turn(tmp_path / "a.png", orientation, shown=False)
    upright = decode_image(tmp_path / "a.png")
    assert np.array_equal(as_stored(upright, orientation).permute(1, 2, 0).numpy(), pixels)
    turn(tmp_path / "a.png", 1, shown=False)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    turn(tmp_path / "a.png", orientation)
    assert np.array_equal(decode_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), pixels)


def on_objects(split, index) -> bool:
    """Whether the boxes and masks lie on what is bright."""
    image, objects = split.pair(index)
    bright = image[0] > 100
    left, top, right, bottom = objects.boxes[0].int().tolist()
    inside = torch.zeros_like(bright)
    inside[top:bottom, left:right] = True
    return torch.equal(bright, inside) and torch.equal(bright, objects.masks[0])


@pytest.fixture
def folder(tmp_path):
    """Two photos of one red object each."""
    root = coco_folder(tmp_path, 2)
    for part, first in (("train", 0), ("val", 50)):
        told = json.loads((root / f"{part}.json").read_text())
        told["annotations"].append(told["annotations"][0] | dict(id=1, image_id=101 + first))
        (root / f"{part}.json").write_text(json.dumps(told))
        (root / part / f"{1 + first}.png").write_bytes((root / part / f"{first}.png").read_bytes())
    return root


@pytest.mark.parametrize("orientation", TURNS)
def test_annotations_of_stored_pixels(folder, orientation):
    """As COCO's own tools read them; half turns are taken to be so, too, and that is said."""
    turn(folder / "train" / "0.png", orientation, shown=False)
    source = coco(str(folder))
    assert on_objects(source.train, 0)
    assert on_objects(source.train, 1)
    if orientation == 1:
        assert source.notes == ()
    elif orientation < 5:
        (told,) = source.notes
        assert told == (
            f"EXIF turns 1 of 2 photos of {folder / 'train.json'} whose size does not say whether they are annotated "
            "as they are stored or shown; taken to be as they are stored: if that is wrong, write them without EXIF"
        )
    else:
        (told,) = source.notes
        assert told.startswith("EXIF turns 1 of 2 photos of ")
        assert told.endswith("by their size are annotated as they are stored")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("other", [2, 3, 4])
def test_annotations_of_what_is_shown(folder, orientation, other):
    """A quarter turn tells it by its size, and what others of the file are taken for."""
    turn(folder / "train" / "0.png", orientation)
    turn(folder / "train" / "1.png", other)
    source = coco(str(folder))
    assert on_objects(source.train, 0)
    assert on_objects(source.train, 1)
    first, second = source.notes
    assert first.endswith("by their size are annotated as they are shown")
    assert second.endswith("taken to be as they are shown: like the others")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("shown", [True, False])
def test_masks_of_photos(tmp_path, orientation, shown):
    """By their size; a half turn is taken to be annotated as it is shown."""
    root = masks_folder(tmp_path, 1)
    image, mask = (root / "train" / kind / "0.png" for kind in ("images", "masks"))
    for path in (image, mask):
        with Image.open(path) as opened:
            opened.crop((0, 0, 24, 16)).save(path)
    turn(image, orientation, shown)
    source = open_pairs(f"masks:{root}", "segmentation")
    pixels, classes = source.train.pair(0)
    assert len(source.notes) == (orientation > 1)
    assert ("does not say" in "".join(source.notes)) == (1 < orientation < 5)
    fits = torch.equal(classes[1:] == 1, pixels[0, 1:] > 100)
    assert fits == (shown or orientation in (1, 4, 5, 6, 7, 8))  # the picture is the same upside down
