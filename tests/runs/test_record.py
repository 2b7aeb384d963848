"""The images of a run that goes on are compared with those that it was started with."""

import shutil

import image_files
import pytest
import torch

from normfree import UsageError
from normfree.data import Source, image_folder
from normfree.data.scenes import scenes
from normfree.data.sources import ArraySplit
from normfree.runs.record import compare, images


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
        compare(dict(classes=before), dict(classes=now), "photos")
    assert said in str(refused.value)


def test_the_same_images_are_not_worth_a_word():
    source = arrays([0, 1, 1], ["a", "b"])
    assert compare(images(source), images(source), "photos") == []


def test_another_number_of_images_is_said():
    told = compare(images(arrays([0, 1, 1], ["a", "b"])), images(arrays([0, 1, 1, 0], ["a", "b"])), "photos")
    assert told[:2] == ["training images of photos: 4 instead of 3", "test images of photos: 4 instead of 3"]
    assert "no longer as if it had not stopped" in told[2]


def test_other_labels_of_as_many_images_are_said():
    told = compare(images(arrays([0, 1, 1], ["a", "b"])), images(arrays([0, 1, 0], ["a", "b"])), "photos")
    assert told[0] == "training images of photos are others than before: other names, labels or order"


def test_a_run_from_before_has_its_classes_compared():
    now = images(arrays([0, 1], ["a", "b"]))
    assert "only the classes were compared" in compare(dict(classes=["a", "b"]), now, "photos")[0]
    with pytest.raises(UsageError, match="'c' is gone"):
        compare(dict(classes=["a", "b", "c"]), now, "photos")


def test_a_folder_that_was_moved_is_the_same(tmp_path):
    first = image_files.folder(tmp_path / "here")
    before = images(image_folder(str(first)))
    moved = tmp_path / "far" / "away" / "photos"
    moved.parent.mkdir(parents=True)
    shutil.move(first, moved)
    assert images(image_folder(str(moved))) == before
    renamed = next((moved / "train" / "cat").iterdir())
    renamed.rename(renamed.with_name("another.png"))
    assert images(image_folder(str(moved)))["train"] != before["train"]
    assert images(image_folder(str(moved)))["test"] == before["test"]


def test_pairs_have_no_labels():
    source = Source(*scenes("20", "depth"), [])
    assert images(source) == images(source)
    assert images(source)["train"]["images"] == len(source.train)
