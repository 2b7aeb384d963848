"""What is too large is named and left out, and the run goes on: images, objects, members of tars, masks, tables."""

import json

import coco_files
import hostile_data
import hostile_images
import image_files
import numpy as np
import pair_files
import pytest
import shard_files
import torch
from PIL import Image

from normfree import UsageError
from normfree.data import Loader, UnreadableImage, coco_masks, decode_image
from normfree.data import coco as coco_module
from normfree.data.coco_masks import rasterized
from normfree.data.detection import ObjectTransform
from normfree.data.matlab import matlab
from normfree.data.objects import open_objects
from normfree.data.pairs import open_pairs, read_depth
from normfree.data.pixels import PixelTransform
from normfree.data.shards import shards
from normfree.data.tables import labelled, read_table
from normfree.limits import MAX_IMAGE_SIDE, MAX_OBJECTS, MAX_RESIZED_PIXELS
from normfree.runs.predict import Answers, _batches

GREY = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
LONG = "would become 2,400,000 x 48; 33,554,432 is the limit"


def test_an_image_that_a_short_side_makes_huge_is_left_out(tmp_path):
    root = pair_files.masks_folder(tmp_path, count=3)
    for folder in ("images", "masks"):
        Image.fromarray(np.ones((1, 50_000), np.uint8)).save(root / "train" / folder / "1.png")
    source = open_pairs(f"masks:{root}", "segmentation")
    loader = Loader(source.train, PixelTransform(24, 24, short_side=48, **GREY), 3, pairs=True, shape=(3, 24, 24))
    (batch,) = list(loader)
    assert batch.indices.tolist() == [0, 2]
    assert [one.image for one in batch.unreadable] == [source.train.name(1)]
    assert batch.unreadable[0].reason == f"50000 x 1 pixels {LONG}"


def test_large_images_may_shrink_and_stay_and_grow_a_little(monkeypatch):
    monkeypatch.setattr("normfree.data.pixels.MAX_RESIZED_PIXELS", 400)
    nothing = torch.zeros(30, 30)
    for short_side in (None, 25, 15, 30):  # larger than the limit as they are
        PixelTransform(8, 8, short_side=short_side, **GREY)(torch.zeros(3, 30, 30), nothing)
    with pytest.raises(UnreadableImage, match=r"^30 x 30 pixels would become 31 x 31; 400 is the limit$"):
        PixelTransform(8, 8, short_side=31, **GREY)(torch.zeros(3, 30, 30), nothing)
    assert MAX_RESIZED_PIXELS == 8192 * 4096


def test_predict_goes_on_after_an_image_that_becomes_huge(tmp_path, capsys):
    paths = [image_files.write(tmp_path / f"{name}.png", image_files.pixels(*sides)) for name, sides in SIDES.items()]

    class Views(Answers):
        def view(self, image):
            return PixelTransform(24, 24, short_side=48, **GREY).whole(image)

    unreadable = []
    batches = list(_batches(Views(), paths, {path: path.stem for path in paths}, 1, unreadable))
    assert [asked.name for batch in batches for asked, _ in batch] == ["a", "c"]
    assert unreadable == [paths[1]]
    assert capsys.readouterr().err == f"skipped unreadable image {paths[1]}: 50000 x 1 pixels {LONG}\n"


SIDES = dict(a=(20, 20), b=(1, 50_000), c=(20, 20))


@pytest.mark.parametrize(("width", "height"), [(MAX_IMAGE_SIDE + 1, 1), (1, MAX_IMAGE_SIDE + 1)])
@pytest.mark.parametrize("ending", ["png", "npy"])
def test_a_side_that_no_image_has(tmp_path, width, height, ending):
    path, pixels = tmp_path / f"a.{ending}", np.zeros((height, width), np.uint8)
    np.save(path, pixels) if ending == "npy" else Image.fromarray(pixels).save(path)
    with pytest.raises(UnreadableImage, match=rf"^{path}: {width} x {height} pixels; a side may have 65,536 at most$"):
        decode_image(path)


def test_an_image_of_20_000_boxes_is_left_out(tmp_path):
    root, told = coco_files.coco_folder(tmp_path, 3), coco_files.content(3)
    more = [coco_files.rectangle(number, 101, (1, 1, 5, 5), 7) for number in range(1000, 21_000)]
    (root / "train.json").write_text(json.dumps(told | dict(annotations=told["annotations"] + more)))
    source = open_objects(f"coco:{root}")
    transform = ObjectTransform(32, 32, train=True, **GREY)
    (batch,) = list(Loader(source.train, transform, 3, pairs=True, shape=(3, 32, 32)))
    assert batch.indices.tolist() == [0, 2]
    assert [str(one) for one in batch.unreadable] == [
        f"{source.train.name(1)}: 20,000 objects in {root / 'train.json'}; an image may have {MAX_OBJECTS:,} at most"
    ]


def test_masks_of_an_image_that_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_module, "MAX_MASK_PIXELS", 40 * 30)
    source = open_objects(f"coco:{coco_files.coco_folder(tmp_path)}")
    assert source.train.pair(0)[1].masks.shape == (1, 30, 40)
    with pytest.raises(UnreadableImage, match=r"2\.png: 2 masks of 40 x 30 pixels in .*; 1,200 pixels may be drawn"):
        source.train.pair(2)


@pytest.mark.parametrize(
    ("polygons", "said"),
    [
        ([[(-400, 400)[n % 2] for n in range(5000)]], r"polygons of [\d,]+ pixels around; 1,000 are the limit"),
        ([[1, 1, 2, 1, 2, 2]] * 51, "51 polygons; 50 are the limit"),
        ([[1, 1] * 1001], "polygons of 1,001 pixels around"),
    ],
)
def test_polygons_that_take_for_ever_to_draw(monkeypatch, polygons, said):
    monkeypatch.setattr(coco_masks, "MAX_OUTLINE_PIXELS", 1000)
    monkeypatch.setattr(coco_masks, "MAX_POLYGONS", 50)
    assert rasterized([[1, 1, 5, 1, 5, 5, 1, 5]], 30, 40, "a").sum() == 16
    with pytest.raises(UnreadableImage, match=rf"^a: segmentation: {said}"):
        rasterized(polygons, 30, 40, "a")


def test_a_member_of_300_gigabytes_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, write in hostile_data.tars():
        if name == "an image of 300 GB":
            write(tmp_path)
    path = shard_files.shard(tmp_path / "val.tar", shard_files.numbered(0, 2))
    train, test, _ = shards(f"{tmp_path / 'train.tar'},{path}")
    assert test.image(1).shape == (3, 12, 12)
    with pytest.raises(UnreadableImage, match=r"train\.tar:a: 300,000,000,000 bytes; an image in a shard may"):
        train.image(0)


def test_an_array_that_is_not_there(tmp_path):
    """Its heading claims 24 GB; a reader that trusts it asks for them."""
    path = tmp_path / "a.npy"
    path.write_bytes(hostile_images.npy(hostile_images.numbers("(50000, 60000)")) + bytes(80))
    with pytest.raises(UnreadableImage, match=r"a\.npy: an array of 3000000000 numbers, more than the limit"):
        read_depth(str(path))
    path.write_bytes(hostile_images.npy(hostile_images.numbers("(5000, 6000)")) + bytes(80))
    with pytest.raises(UnreadableImage, match=r"a\.npy: truncated: it ends within its 240,000,000 bytes of numbers"):
        read_depth(str(path))


@pytest.mark.parametrize(
    "name", ["100 MB that are 100 kB", "30 MB many times", "cells in cells", "cells in cells, packed"]
)
def test_matlab_files_that_are_larger_or_deeper_than_they_seem(tmp_path, name):
    path = tmp_path / "a.mat"
    path.write_bytes(hostile_images.made(dict(hostile_data.matlab_files())[name]))
    with pytest.raises(ValueError, match=r"more than 64 MB when unpacked|arrays in arrays, more than 16 deep"):
        matlab(str(path), ["trainNdxs"])


def test_classes_that_are_names_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr("normfree.data.tables.MAX_TARGETS", 100)
    rows = [f"{n}.png,c{n}" for n in range(11)]
    for n in range(11):
        image_files.write(tmp_path / f"{n}.png")
    (tmp_path / "a.csv").write_text("file,class\n" + "\n".join(rows) + "\n")
    table = read_table(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"a\.csv names 11 classes for 11 images, too many to hold in memory"):
        labelled(table, "classes")
    assert len(labelled(table, "class").classes) == 11
