"""The images of a run that goes on are compared with those that it was started with."""

import json
import shutil

import image_files
import numpy as np
import pytest
import torch
from coco_files import coco_folder
from pair_files import masks_folder
from PIL import Image

from normfree import UsageError
from normfree.data import Source, image_folder, open_source
from normfree.data.coco import coco
from normfree.data.held_out import BLOCK, file_hash
from normfree.data.pairs import open_pairs
from normfree.data.scenes import scenes
from normfree.data.sources import ArraySplit
from normfree.runs.started import compare_images, describe_images, read_started, write_started


def arrays(labels, classes) -> Source:
    split = ArraySplit(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels), "array/train")
    return Source(split, split, classes)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["ant", "bee"], ["ant", "wasp"], "'bee' is gone, 'wasp' is new"),
        (["ant", "bee"], ["bee", "ant"], "class 0 was 'ant' and is 'bee', class 1 was 'bee' and is 'ant'"),
        (["ant", "bee"], ["ant", "bee", "cat"], "'cat' is new"),
        ([str(i) for i in range(12)], ["0"], "'8' is gone and 3 more"),
    ],
)
def test_other_classes_are_refused_and_each_is_named(before, now, said):
    with pytest.raises(UsageError, match="the classes of photos are not those") as refused:
        compare_images(dict(classes=before), dict(classes=now), "photos")
    assert said in str(refused.value)


def test_the_same_images_are_not_worth_a_word():
    source = arrays([0, 1, 1], ["a", "b"])
    assert compare_images(describe_images(source), describe_images(source), "photos") == []


def test_another_number_of_images_is_said():
    told = compare_images(
        describe_images(arrays([0, 1, 1], ["a", "b"])), describe_images(arrays([0, 1, 1, 0], ["a", "b"])), "photos"
    )
    assert told[:2] == ["training images of photos: 4 instead of 3", "test images of photos: 4 instead of 3"]
    assert "no longer as if it had not stopped" in told[2]


def test_other_labels_of_as_many_images_are_said():
    told = compare_images(
        describe_images(arrays([0, 1, 1], ["a", "b"])), describe_images(arrays([0, 1, 0], ["a", "b"])), "photos"
    )
    assert told[0] == "training images of photos are others than before: other names, labels or order"


def test_a_run_from_before_has_its_classes_compared():
    now = describe_images(arrays([0, 1], ["a", "b"]))
    assert "only the classes were compared" in compare_images(dict(classes=["a", "b"]), now, "photos")[0]
    with pytest.raises(UsageError, match="'c' is gone"):
        compare_images(dict(classes=["a", "b", "c"]), now, "photos")


SAID = dict(images=1, names_and_labels="a")


@pytest.mark.parametrize(
    "said",
    [
        {},
        dict(classes=5, train=SAID, test=SAID),
        dict(classes=[["cat"], "dog"], train=SAID, test=SAID),
        dict(train=SAID, test=SAID),
        dict(classes=["a"], train=[1], test=SAID),
        dict(classes=["a"], train={}, test=SAID),
        dict(classes=["a"], train=SAID),
    ],
    ids=str,
)
def test_images_that_a_damaged_record_does_not_say(tmp_path, said):
    asked = dict(train=dict(seed=1))
    write_started(tmp_path, asked, said)
    started = read_started(tmp_path)
    assert (started["images"], started["asked"]) == ({}, asked)


def test_a_whole_record_is_read_as_it_was_written(tmp_path):
    for source in (arrays([0, 1], ["a", "b"]), Source(*scenes("20", "depth"), [])):
        write_started(tmp_path, {}, describe_images(source))
        assert read_started(tmp_path)["images"] == describe_images(source)


def test_a_table_of_absolute_and_relative_paths(tmp_path, monkeypatch):
    """The same images whether the table itself is named from here, as at first, or from the root, as by a recipe."""
    rows = ["file,class,split"]
    for split in ("train", "val"):
        for name in (f"here/{split}.png", f"there/{split}.png"):
            image_files.write(tmp_path / name)
        rows += [f"here/{split}.png,cat,{split}", f"{tmp_path}/there/{split}.png,dog,{split}"]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    found = describe_images(open_source("csv:labels.csv"))
    assert found == describe_images(open_source(f"csv:{tmp_path}/labels.csv"))
    assert found["train"]["images"] == 2


def test_a_folder_that_was_moved_is_the_same(tmp_path):
    first = image_files.folder(tmp_path / "here")
    before = describe_images(image_folder(str(first)))
    moved = tmp_path / "far" / "away" / "photos"
    moved.parent.mkdir(parents=True)
    shutil.move(first, moved)
    assert describe_images(image_folder(str(moved))) == before
    renamed = next((moved / "train" / "cat").iterdir())
    renamed.rename(renamed.with_name("another.png"))
    assert describe_images(image_folder(str(moved)))["train"] != before["train"]
    assert describe_images(image_folder(str(moved)))["test"] == before["test"]


def test_pairs_have_no_labels():
    source = Source(*scenes("20", "depth"), [])
    assert describe_images(source) == describe_images(source)
    assert describe_images(source)["train"]["images"] == len(source.train)


def moved(told):
    told["annotations"][0]["bbox"][0] += 1


def deleted(told):
    del told["annotations"][-1]


def another_outline(told):
    told["annotations"][0]["segmentation"][0][0] += 1


@pytest.mark.parametrize("change", [moved, deleted, another_outline])
def test_other_boxes_and_masks_of_the_same_images_are_said(tmp_path, change):
    folder = coco_folder(tmp_path)
    before = describe_images(coco(str(folder)))
    assert compare_images(before, describe_images(coco(str(folder))), "photos") == []
    told = json.loads((folder / "train.json").read_text())
    change(told)
    (folder / "train.json").write_text(json.dumps(told))
    said = compare_images(before, describe_images(coco(str(folder))), "photos")
    assert said[0] == "training images of photos have other boxes, masks or depths than before"
    assert len(said) == 2
    for split in ("train", "test"):  # of a run from before they were compared
        del before[split]["targets"]
    assert compare_images(before, describe_images(coco(str(folder))), "photos") == []


def test_other_masks_of_the_same_images_are_said(tmp_path):
    folder = masks_folder(tmp_path)
    open_folder = lambda: describe_images(open_pairs(f"masks:{folder}", "segmentation"))  # noqa: E731
    before = open_folder()
    file = next((folder / "val" / "masks").iterdir())
    file.touch()
    assert compare_images(before, open_folder(), "photos") == []
    with Image.open(file) as mask:
        pixels = np.array(mask)
    pixels[0, 0] = 1 - min(pixels[0, 0], 1)
    Image.fromarray(pixels).save(file)
    assert compare_images(before, open_folder(), "photos")[0] == (
        "test images of photos have other boxes, masks or depths than before"
    )


def test_large_files_are_compared_at_three_places(tmp_path):
    file, content = tmp_path / "a.npy", bytes(5 * BLOCK)
    file.write_bytes(content)
    before = file_hash(str(file))
    for place in (0, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:place] + b"1" + content[place + 1 :])
        assert file_hash(str(file)) != before
