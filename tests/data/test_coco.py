"""COCO's layout: what is read, what is refused and in which words."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import coco_folder, content, rectangle, run_lengths
from PIL import Image
from selection import share

from normfree import UsageError
from normfree.data import UnreadableImage, coco_ids
from normfree.data.coco import coco
from normfree.data.coco_ids import CocoIds
from normfree.data.coco_masks import unpacked
from normfree.data.objects import open_objects
from normfree.data.sources import absolute


@pytest.fixture
def folder(tmp_path):
    return coco_folder(tmp_path / "data")


def rewrite(folder, change, part="train"):
    """Change a file's content in place."""
    file = folder / f"{part}.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


@pytest.mark.parametrize("official", [False, True])
def test_both_layouts(tmp_path, official):
    source = coco(str(coco_folder(tmp_path, official=official)))
    assert source.classes == ["dog", "cat"]  # by number: 3, 7
    assert (len(source.train), len(source.test)) == (4, 4)
    image, objects = source.train.pair(0)
    assert image.shape == (3, 30, 40)
    assert objects.boxes.tolist() == [[4, 5, 16, 19]]
    assert objects.labels.tolist() == [1]
    assert objects.areas.tolist() == [168]
    assert (objects.size, objects.original) == ((30, 40), (30, 40))
    inside = image[0] > 100
    assert torch.equal(objects.masks[0], inside)
    assert source.train.name(0).endswith("0.png")


def test_an_image_without_objects(folder):
    _, objects = coco(str(folder)).train.pair(1)
    assert len(objects) == 0
    assert (objects.boxes.shape, objects.masks.shape, objects.labels.dtype) == ((0, 4), (0, 30, 40), torch.int64)


def test_crowds_and_run_lengths(folder):
    _, objects = coco(str(folder)).train.pair(2)
    assert objects.crowd.tolist() == [False, True]
    expected = torch.zeros(30, 40, dtype=torch.bool)
    expected[2:22, 24:34] = True
    assert torch.equal(objects.masks[1], expected)


def test_every_form_of_a_mask_is_the_same(folder):
    mask = pytest.importorskip("pycocotools.mask")
    box = (8, 5, 12, 14)
    lengths = run_lengths(30, 40, box)
    packed = mask.frPyObjects(lengths, 30, 40)
    packed["counts"] = packed["counts"].decode()
    two = [rectangle(0, 0, (8, 5, 6, 14), 3)["segmentation"][0], rectangle(0, 0, (14, 5, 6, 14), 3)["segmentation"][0]]
    expected = np.zeros((30, 40), bool)
    expected[5:19, 8:20] = True
    for segmentation in (rectangle(0, 0, box, 3)["segmentation"], lengths, packed, two):
        rewrite(folder, lambda told, s=segmentation: told["annotations"][0].update(bbox=list(box), segmentation=s))
        assert np.array_equal(coco(str(folder)).train.pair(0)[1].masks[0].numpy(), expected)


def test_masks_are_there_only_if_asked_for(folder):
    rewrite(folder, lambda told: [one.pop("segmentation") for one in told["annotations"]])
    source = coco(str(folder), masks=False)
    assert source.train.pair(0)[1].masks is None
    with pytest.raises(UsageError, match=r"train\.json: annotation 0 has no 'segmentation'"):
        coco(str(folder))


def test_one_channel(folder):
    assert coco(str(folder), 1).train.image(0).shape == (1, 30, 40)


def test_scenes_have_exact_objects():
    source = open_objects("scenes:20,64")
    assert source.classes == ["disc", "box", "triangle", "ring", "cross"]
    for index in range(10):
        image, objects = source.train.pair(index)
        assert image.shape == (3, 64, 64)
        for box, mask, area in zip(objects.boxes, objects.masks, objects.areas, strict=True):
            rows, columns = torch.where(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert area == mask.sum()
        assert not objects.crowd.any()
        assert objects.labels.max() <= 4
    boxes = open_objects("scenes:20,64", masks=False).train.pair(3)[1]
    assert boxes.masks is None
    assert torch.equal(boxes.boxes, source.train.pair(3)[1].boxes)


def test_a_source_is_found_from_any_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert absolute("coco:data") == f"coco:{folder}"


def first(**fields):
    return lambda told: told["annotations"][0].update(fields)


CHANGES = {
    "no list": (lambda told: told.pop("annotations"), r"train\.json has no list 'annotations' of mappings"),
    "no categories": (lambda told: told.update(categories=[]), "4 images and 0 categories"),
    "no images": (lambda told: told.update(images=[], annotations=[]), "0 images and 2 categories"),
    "two ids": (lambda told: told["images"].append(told["images"][0]), "two entries of 'images' have the id 100"),
    "two categories": (lambda told: told["categories"][0].update(id=3), "two entries of 'categories' have the id 3"),
    "two annotations": (first(id=20), "two entries of 'annotations' have the id 20; ids must be unique"),
    "no number": (lambda told: told["annotations"][2].pop("id"), r"the id \(=None\) of annotations\[2\] must be"),
    "no integer": (lambda told: told["annotations"][1].update(id="a"), r"the id \(='a'\) of annotations\[1\] must be"),
    "no id": (lambda told: told["images"][0].pop("id"), r"the id \(=None\) of images\[0\] must be an integer"),
    "no width": (lambda told: told["images"][2].pop("width"), r"width \(=None\) of image 102 must be pixels"),
    "huge": (lambda told: told["images"][2].update(width=10**9), r"width \(=1000000000\) of image 102 must be pixels"),
    "no name": (lambda told: told["categories"][1].pop("name"), r"name \(=None\) of category 3 must be text"),
    "no file": (lambda told: told["images"][3].update(file_name="no.png"), r"train/no\.png is missing; .*train\.json"),
    "no box": (lambda told: told["annotations"][0].pop("bbox"), r"train\.json: annotation 0 has no 'bbox'"),
    "no image": (lambda told: told["annotations"][0].pop("image_id"), "annotation 0 has no 'image_id'"),
    "other image": (first(image_id=5), r"annotation 0 has image_id 5, which the file does not describe"),
    "other category": (first(category_id=4), r"annotation 0 has category_id 4, which the file does not describe"),
    "list": (first(category_id=[3]), r"annotation 0 has category_id \[3\]"),
    "three sides": (first(bbox=[1, 2, 3]), r"annotation 0: bbox \(=\[1, 2, 3\]\) must be left, top, width, height"),
    "negative": (first(bbox=[1, 2, -3, 4]), r"bbox \(=\[1, 2, -3, 4\]\) must be"),
    "text": (first(bbox=[1, 2, "3", 4]), r"bbox \(=\[1, 2, '3', 4\]\) must be"),
    "not finite": (first(bbox=[1, 2, float("nan"), 4]), r"bbox \(=\[1, 2, nan, 4\]\) must be"),
    "outside": (first(bbox=[40, 2, 3, 4]), r"bbox \(=\[40, 2, 3, 4\]\) lies outside of its image of 40 x 30 pixels"),
    "left of it": (first(bbox=[-9, 2, 3, 4]), r"bbox \(=\[-9, 2, 3, 4\]\) lies outside"),
    "touches the left": (first(bbox=[-5, 0, 5, 5]), r"bbox \(=\[-5, 0, 5, 5\]\) lies outside"),
    "touches the top": (first(bbox=[0, -5, 5, 5]), r"bbox \(=\[0, -5, 5, 5\]\) lies outside"),
    "crowd": (first(iscrowd=2), r"annotation 0: iscrowd \(=2\) must be 0 or 1$"),
    "area": (first(area="x"), r"annotation 0: area \(='x'\) must be a number$"),
    "empty area": (first(area=[]), r"annotation 0: area \(=\[\]\) must be a number$"),
    "no mask": (first(segmentation=None), r"segmentation \(=None\) must be polygons or run lengths"),
    "no polygon": (first(segmentation=[]), r"annotation 0: segmentation: polygons must be lists"),
    "odd": (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "polygons must be lists of x, y"),
    "far": (first(segmentation=[[1, 2, 3, 1e7, 5, 6]]), "near the image"),
    "runs": (first(segmentation=dict(size=[30, 40], counts=[5, 5])), "add up to 10, the image has 1200 pixels"),
    "size": (first(segmentation=dict(size=[3, 4], counts=[12])), r"size \(=\[3, 4\]\) of .* image's, \[30, 40\]"),
    "no size": (first(segmentation=dict(counts=[12])), r"segmentation: size \(=None\) of run lengths must be the"),
    "no counts": (first(segmentation=dict(size=[30, 40])), r"counts \(=None\) of run lengths must be a list or text"),
    "negative run": (first(segmentation=dict(size=[30, 40], counts=[-1, 1201])), "integers of at least 0"),
    "packed": (first(segmentation=dict(size=[30, 40], counts="0")), "annotation 0: segmentation: "),
    "numbers": (first(segmentation=dict(size=[30, 40], counts=7)), r"counts \(=7\) of run lengths must be a list"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_refusals_name_file_and_value(folder, kind):
    change, match = CHANGES[kind]
    rewrite(folder, change)
    with pytest.raises(UsageError, match=match) as caught:
        coco(str(folder))
    message = str(caught.value)
    assert message.startswith("data.source: ")
    assert len(message.splitlines()) == 1
    assert str(folder) in message


def test_what_lies_in_no_place(folder, tmp_path):
    with pytest.raises(UsageError, match=r"coco: is not a folder; it must hold annotations/instances_train2017\.json"):
        coco("")
    (folder / "val.json").unlink()
    with pytest.raises(UsageError, match=r"val\.json is missing"):
        coco(str(folder))
    (folder / "train.json").write_text("{")
    with pytest.raises(UsageError, match=r"train\.json is not JSON"):
        coco(str(folder))
    (folder / "train.json").write_text("[1]")
    with pytest.raises(UsageError, match=r"train\.json has no list 'images'"):
        coco(str(folder))
    with pytest.raises(
        UsageError, match=r"\(='voc:x'\) must be \"scenes:N\", \"coco:PATH\" or \"torchvision:NAME\" for"
    ):
        open_objects("voc:x")


def test_categories_of_both_splits(folder):
    rewrite(folder, lambda told: told["categories"].append(dict(id=9, name="cow")), "val")
    with pytest.raises(UsageError, match=r"category 9 \('cow'\) is only in .*val\.json"):
        coco(str(folder))


def test_an_image_of_another_size(folder):
    Image.new("RGB", (20, 20)).save(folder / "train" / "3.png")
    source = coco(str(folder))
    with pytest.raises(UnreadableImage, match=r"3\.png: 20 x 20 pixels; .*train\.json says 40 x 30"):
        source.train.pair(3)
    Image.new("RGB", (20, 20)).save(folder / "train" / "0.png")
    with pytest.raises(UsageError, match=r"data\.source: .*0\.png: 20 x 20 pixels"):
        coco(str(folder))


def test_boxes_of_no_width_and_beyond_the_image_are_kept_as_they_are(folder):
    def change(told):
        told["annotations"][0].update(bbox=[30, 5, 20, 4])
        told["annotations"].append(rectangle(99, told["images"][0]["id"], (3, 3, 5, 0), 3))

    rewrite(folder, change)
    _, objects = coco(str(folder)).train.pair(0)
    assert objects.boxes.tolist() == [[30, 5, 50, 9], [3, 3, 8, 3]]


def test_boxes_on_the_edge_and_of_no_size_are_not_outside(folder):
    """Of no width in the corner, and a box that reaches in by less than a pixel."""

    def change(told):
        told["annotations"][0].update(bbox=[0, 0, 0, 0])
        told["annotations"].append(rectangle(99, told["images"][0]["id"], (-4.5, 3, 5, 5), 3))

    rewrite(folder, change)
    assert coco(str(folder)).train.objects(0).boxes.tolist() == [[0, 0, 0, 0], [-4.5, 3, 0.5, 8]]


def test_null_is_as_if_it_were_not_there(folder):
    def left_out(told):
        del told["annotations"][0]["iscrowd"], told["annotations"][0]["area"]

    for change in (first(iscrowd=None, area=None), left_out):
        rewrite(folder, change)
        objects = coco(str(folder)).train.objects(0)
        assert objects.crowd.tolist() == [False]
        assert objects.areas.tolist() == [12 * 14]


def test_a_byte_order_mark_is_no_content(folder):
    for part in ("train", "val"):
        file = folder / f"{part}.json"
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert coco(str(folder)).classes == ["dog", "cat"]


def test_the_content_of_the_tests_is_sound():
    told = content()
    assert len(told["annotations"]) == 4


def test_packed_run_lengths_are_the_librarys():
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for density in (0.01, 0.3, 0.97):
        drawn = (rng.random((37, 53)) < density).astype(np.uint8)
        drawn[5:30, 7:40] |= 1
        packed = mask.encode(np.asfortranarray(drawn))["counts"].decode()
        counts = unpacked(packed)
        assert sum(counts) == drawn.size
        values = np.repeat(np.arange(len(counts)) % 2, counts).reshape(53, 37).T
        assert np.array_equal(values, drawn)
    for text in ("P", "0\x7f", "a b"):
        with pytest.raises(ValueError, match="packed run lengths"):
            unpacked(text)


HOSTILE = [None, True, -1, 0, 10**30, 1.5, float("inf"), "", "x", "0" * 50, [], [[]], [1], {}, {"size": [30, 40]}]
HOSTILE += [
    [[0, 0, 5, 0, 5, 5]],
    [[1e9] * 8],
    {"size": [30, 40], "counts": "04:"},
    {"size": [30, 40], "counts": [1200]},
]


def places(told, path=()):
    """Every place in nested lists and mappings."""
    if path:
        yield path
    inner = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@pytest.mark.scaled
def test_mutated_files_work_or_are_refused_in_one_line(folder):
    """Whatever one value becomes: images and objects, or one line that names the file."""
    original = (folder / "train.json").read_text()
    every, rng, opened, refused = list(places(json.loads(original))), np.random.default_rng(0), 0, []
    for _ in range(share(250)):
        told = json.loads(original)
        *way, last = every[rng.integers(len(every))]
        inner = told
        for key in way:
            inner = inner[key]
        inner[last] = HOSTILE[rng.integers(len(HOSTILE))]
        (folder / "train.json").write_text(json.dumps(told))
        try:
            source = coco(str(folder))
            for index in range(len(source.train)):
                _, objects = source.train.pair(index)
                assert objects.masks.shape == (len(objects), 30, 40)
            opened += 1
        except (UsageError, UnreadableImage) as error:
            refused.append(str(error))
    for message in refused:
        assert len(message.splitlines()) == 1
        assert "train.json" in message or "category" in message
        assert len(message) < 500
    assert share(250) // 25 <= opened <= share(250) * 24 // 25


def test_numbers_of_images_that_have_one_name_in_many_folders(tmp_path, monkeypatch):
    """Each path is looked up by its endings, not among all images: 200,000 of them are no more work each."""
    entries = [(Path(f"{i // 10}/{i}/0.png"), i) for i in range(500)] + [(Path("only.png"), 1000)]
    ids, asked = CocoIds("a.json", entries, [1], {}), []
    endings = coco_ids._endings
    monkeypatch.setattr(coco_ids, "_endings", lambda path: asked.append(path) or endings(path))
    paths = [tmp_path / name for name, _ in entries]
    assert ids.image_ids(paths) == [number for _, number in entries]
    assert ids.image_ids([Path("elsewhere/only.png"), Path("0/3/0.png")]) == [1000, 3]
    assert len(asked) == len(paths) + 2
    with pytest.raises(UsageError, match=r"a\.json has 500 images named 0\.png; x/0\.png needs one"):
        ids.image_ids([Path("x/0.png")])
    with pytest.raises(UsageError, match=r"a\.json has no images named 1\.png"):
        ids.image_ids([Path("0/3/1.png")])
