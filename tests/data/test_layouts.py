"""A bare folder or file is named by what lies in it."""

import image_files
import pytest

from normfree.data.layouts import with_kind


@pytest.mark.parametrize(
    ("inside", "kind"),
    [
        ("train/cat/", "imagefolder"),
        ("cat/", "imagefolder"),
        ("train/images/ train/masks/", "masks"),
        ("val/images/ val/depths/", "depth"),
        ("annotations/instances_train2017.json", "coco"),
        ("train.json train/", "coco"),
        ("SegmentationClass/ JPEGImages/", "voc"),
        ("VOCdevkit/VOC2012/SegmentationClass/", "voc"),
        ("a-train-0.tar a-val-0.tar", "wds"),
        ("masks/ images/", "masks"),  # without a split, which its opener says
        ("images/ depths/", "depth"),
        ("images/ cat/", "imagefolder"),
    ],
)
def test_folders(tmp_path, inside, kind):
    for part in inside.split():
        path = tmp_path / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if part.endswith("/") else path.touch()
    assert with_kind(str(tmp_path)) == f"{kind}:{tmp_path}"


def test_what_has_a_kind_or_is_not_there_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    for source in ("digits", "imagefolder:x", "synthetic:8", "nowhere", "", "scenes:4", "a" * 5000):
        assert with_kind(source) == source


def test_files(tmp_path):
    (tmp_path / "nyu.mat").touch()
    assert with_kind(str(tmp_path / "nyu.mat")) == f"nyu:{tmp_path / 'nyu.mat'}"


def test_a_folder_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    image_files.folder(tmp_path / "photos")
    assert with_kind("~/photos") == "imagefolder:~/photos"
