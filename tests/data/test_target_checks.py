"""What cannot be learnt or measured is refused before a run starts, and what to do is said."""

import json

import numpy as np
import pytest
from coco_files import coco_folder
from pair_files import depth_folder, masks_folder, nyu_file, voc_folder
from PIL import Image

from normfree import UsageError
from normfree.data.coco import coco
from normfree.data.pairs import open_pairs
from normfree.data.target_checks import check_depths, check_masks, check_objects


def repaint(root, part, change):
    """Change every mask of a split: ``change`` is from an array to another."""
    for path in (root / part / "masks").iterdir():
        with Image.open(path) as image:
            mask = change(np.array(image))
        Image.fromarray(mask).save(path)


def check(root, **options):
    values = options.pop("values", None)
    return check_masks(open_pairs(f"masks:{root}", "segmentation", values=values), **options)


def binary(mask):
    return np.where(mask == 1, 255, 0).astype(np.uint8)


def test_nothing_is_said_about_ordinary_masks(tmp_path):
    assert check(masks_folder(tmp_path)) == ([], None)
    assert check(masks_folder(tmp_path / "numbered", names=None)) == ([], None)


@pytest.mark.parametrize("names", ["ground\nthing\n", None])
def test_masks_of_0_and_255(tmp_path, names):
    root = masks_folder(tmp_path, names=names)
    repaint(root, "train", binary)
    missing = "thing" if names else "class1"
    with pytest.raises(UsageError) as caught:
        check(root)
    assert str(caught.value) == (
        f"data.source: {missing!r} occurs in none of the 6 training masks, which hold values 0, 255 (255 is ignored); "
        "if these are the classes, give --data.mask_values [0,255]"
    )
    with pytest.raises(UsageError):
        check(root, allow_missing=True)  # one class alone teaches nothing
    repaint(root, "val", binary)
    assert check(root, values=(0, 255)) == ([], None)


@pytest.mark.parametrize(
    ("names", "change", "told"),
    [
        ("ground\nthing\n", lambda m: m * 0, "'thing' occurs in none of the 6 training masks, which hold value 0"),
        ("ground\nthing\n", lambda m: m * 0 + 255, "every pixel of the 6 training masks is 255, so ignored"),
        (
            "ground\nthing\nsky\n",
            lambda m: m,
            r"'sky' occurs in none of the 6 training masks, which hold values 0, 1, 255 \(255 is ignored\); "
            r"if these are the classes, give --data.mask_values \[0,1,255\]; take the class out of classes.txt, or "
            r"give --data.allow_missing_classes true",
        ),
        (
            None,
            lambda m: (m == 1) * np.uint8(128),
            r"and 119 more occur .* hold values 0, 128; .*mask_values \[0,128\]",
        ),
    ],
)
def test_classes_that_never_occur(tmp_path, names, change, told):
    root = masks_folder(tmp_path, names=names)
    repaint(root, "train", change)
    with pytest.raises(UsageError, match=told) as caught:
        check(root)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_class_may_be_meant(tmp_path):
    assert check(masks_folder(tmp_path, names="ground\nthing\nsky\n"), allow_missing=True) == ([], None)


def test_a_rare_class_is_found_in_whichever_mask_it_is(tmp_path):
    root = masks_folder(tmp_path, 12, "ground\nthing\nsky\n")
    for part in ("train", "val"):
        Image.fromarray(np.full((24, 24), 2, np.uint8)).save(root / part / "masks" / "7.png")
    assert check(root) == ([], None)


def test_published_classes_may_be_there_in_part(tmp_path):
    source = open_pairs(f"voc:{voc_folder(tmp_path)}", "segmentation")
    assert check_masks(source, fixed=True) == ([], None)


def test_test_masks_of_one_class_or_none(tmp_path):
    root = masks_folder(tmp_path, names="ground\nthing\n")
    repaint(root, "val", lambda m: m * 0)
    told = "the 6 test masks hold 'ground' alone, so their mean IoU says nothing about the other classes"
    with pytest.raises(UsageError, match=f"{told}; add others, or give --data.allow_missing_classes true"):
        check(root)
    assert check(root, allow_missing=True) == ([told], "ground")
    repaint(root, "val", lambda m: m * 0 + 255)
    for allow in (False, True):
        with pytest.raises(UsageError, match="none of the 6 test masks has a pixel of a class; all are ignored"):
            check(root, allow_missing=allow)


def test_a_class_that_is_not_tested_is_said(tmp_path):
    root = masks_folder(tmp_path, names="ground\nthing\nsky\n")
    Image.fromarray(np.full((24, 24), 2, np.uint8)).save(root / "train" / "masks" / "3.png")
    assert check(root) == (["'sky': in none of the 6 test masks, so not measured there"], None)


@pytest.mark.parametrize("part", ["train", "val"])
def test_depth_without_a_measured_pixel(tmp_path, part):
    root = depth_folder(tmp_path)
    assert check_depths(open_pairs(f"depth:{root}", "depth")) == ["depth in 6 of the training maps: 1.50 to 2.50 m"]
    for path in (root / part / "depths").iterdir():
        zeros = np.zeros((24, 24), np.uint16)
        Image.fromarray(zeros).save(path) if path.suffix == ".png" else np.save(path, zeros.astype(np.float32))
    what = dict(train="training", val="test")[part]
    with pytest.raises(UsageError, match=f"none of the 6 {what} depth maps has a measured pixel"):
        check_depths(open_pairs(f"depth:{root}", "depth"))


def test_depth_of_nyu(tmp_path):
    (told,) = check_depths(open_pairs(f"nyu:{nyu_file(tmp_path)}", "depth"))
    assert told.startswith("depth in 4 of the training maps: 1.0")


def annotate(root, part, change):
    file = root / f"{part}.json"
    told = json.loads(file.read_text())
    told["annotations"] = change(told["annotations"])
    file.write_text(json.dumps(told))


def test_objects(tmp_path):
    root = coco_folder(tmp_path)
    assert check_objects(coco(str(root))) == []
    annotate(root, "val", lambda those: [one for one in those if one["category_id"] == 7])
    assert check_objects(coco(str(root))) == ["'dog': in none of the 4 test images, so not measured there"]
    annotate(root, "train", lambda those: [one for one in those if one["category_id"] == 3])
    assert check_objects(coco(str(root)))[0] == "'cat': in none of the 4 training images, so not learnt"


@pytest.mark.parametrize(("part", "what"), [("train", "training"), ("val", "test")])
def test_no_objects(tmp_path, part, what):
    root = coco_folder(tmp_path)
    annotate(root, part, lambda those: [one | dict(iscrowd=1) for one in those])  # a crowd is none
    with pytest.raises(UsageError, match=f"none of the 4 {what} images has an object"):
        check_objects(coco(str(root)))
