"""Embedded digits, folders of images and noise: what is in them, and every way a folder can be wrong."""

import re
import shutil
import zlib

import image_files
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from normfree import UsageError
from normfree.data import UnreadableImage, digits, find_images, image_folder, open_source
from normfree.data.decode import EXTENSIONS
from normfree.data.held_out import HeldOut

DIGITS_TEST_CRC = 787577922


def arrays(split) -> tuple[np.ndarray, np.ndarray]:
    images = torch.stack([split.image(i) for i in range(len(split))])
    assert images.dtype == torch.uint8
    return images.numpy(), np.array([split.label(i) for i in range(len(split))])


def test_digits_are_all_of_scikit_learns_once():
    source, data = digits(), load_digits()
    images, labels = (np.concatenate(both) for both in zip(arrays(source.train), arrays(source.test), strict=True))
    expected = np.round(data.images * 255 / 16).astype(np.uint8)
    assert (images.min(), images.max()) == (0, 255)
    order, expected_order = (np.lexsort(a.reshape(len(a), -1).T) for a in (images, expected))
    assert np.array_equal(images[order, 0], expected[expected_order])
    assert np.array_equal(labels[order], data.target[expected_order])
    assert source.classes == list("0123456789")


def test_digits_are_split_by_class_and_always_the_same():
    source = digits()
    images, labels = arrays(source.test)
    assert (len(source.train), len(source.test)) == (1437, 360)
    share = np.bincount(load_digits().target) * 360 / 1797
    assert np.abs(np.bincount(labels, minlength=10) - share).max() < 1
    # published accuracies are on these 360 images: the split must not move with versions of scikit-learn
    assert zlib.crc32(images.tobytes() + labels.astype(np.int64).tobytes()) == DIGITS_TEST_CRC
    assert source.test.name(3) == "digits/test[3]"


def test_digits_as_rgb():
    grey, rgb = open_source("digits", 1).train, open_source("digits", 3).train
    assert grey.image(7).shape == (1, 8, 8)
    assert torch.equal(rgb.image(7), grey.image(7).expand(3, 8, 8))
    assert rgb.label(7) == grey.label(7)


def test_folder_labels_are_sorted_names(tmp_path):
    root = image_files.folder(tmp_path, ("zebra", "ape", "Bee"))
    source = open_source(f"imagefolder:{root}")
    assert source.classes == ["Bee", "ape", "zebra"]
    assert (len(source.train), len(source.test)) == (12, 6)
    for split, part in ((source.train, "train"), (source.test, "val")):
        for i in range(len(split)):
            assert split.name(i).startswith(str(root / part / source.classes[split.label(i)]))
            assert split.image(i).shape == (3, 9 + int(split.name(i)[-5]), 12)
    assert image_folder(str(root), 1).train.image(0).shape[0] == 1


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_names_of_the_second_split(tmp_path, name):
    root = image_files.folder(tmp_path)
    (root / "val").rename(root / name)
    assert len(image_folder(str(root)).test) == 4


def test_val_comes_before_test(tmp_path):
    root = image_files.folder(tmp_path)
    shutil.copytree(root / "train", root / "test")
    assert len(image_folder(str(root)).test) == 4


def test_home_and_relative_paths(tmp_path, monkeypatch):
    image_files.folder(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert len(open_source("imagefolder:~/photos").train) == len(open_source("imagefolder:photos").train) == 8


def test_nested_folders_and_upper_case_extensions(tmp_path):
    root = image_files.folder(tmp_path)
    image_files.write(root / "train" / "cat" / "deep" / "er" / "A.PNG")
    image_files.write(root / "train" / "cat" / "B.JPeG")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "readme.txt").write_text("no class")
    assert len(image_folder(str(root)).train) == 10


def test_hidden_folders_are_no_classes(tmp_path):
    root = image_files.folder(tmp_path)
    (root / "train" / ".ipynb_checkpoints").mkdir()
    image_files.write(root / "val" / ".cache" / "a.png")
    assert image_folder(str(root)).classes == ["cat", "dog"]


def test_hidden_files_are_no_images(tmp_path):
    """macOS leaves ._NAME.jpg beside every file it copies, and Jupyter keeps copies in .ipynb_checkpoints."""
    root = image_files.folder(tmp_path)
    (root / "train" / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    image_files.write(root / "train" / "cat" / ".ipynb_checkpoints" / "0.png")
    assert len(image_folder(str(root)).train) == 8
    assert len(find_images([root / "train"])) == 8


def test_an_unreadable_file_is_an_image_until_it_is_read(tmp_path):
    root = image_files.folder(tmp_path)
    image_files.break_file(root / "train" / "cat" / "0.png")
    split = image_folder(str(root)).train
    with pytest.raises(UnreadableImage, match=r"cat/0\.png: "):
        split.image(0)


def missing(root):
    shutil.rmtree(root)


def a_file(root):
    shutil.rmtree(root)
    root.write_text("")


def no_train(root):
    shutil.rmtree(root / "train")


def train_is_a_file(root):
    no_train(root)
    (root / "train").write_text("")


def no_val(root):
    shutil.rmtree(root / "val")


def empty_train(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def loose_images(root):
    empty_train(root)
    image_files.write(root / "train" / "a.png")


def empty_val(root):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()


def empty_class(root):
    for path in (root / "train" / "cat").iterdir():
        path.rename(path.with_suffix(".txt"))


def extra_in_val(root):
    image_files.write(root / "val" / "emu" / "a.png")


def both_differ(root):
    (root / "val" / "cat").rename(root / "val" / "Cat")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (missing, ["ROOT", "not a folder"]),
        (a_file, ["ROOT", "not a folder"]),
        (no_train, ["ROOT", "'train'"]),
        (train_is_a_file, ["ROOT", "'train'"]),
        (no_val, ["ROOT", "'val'"]),
        (empty_train, ["ROOT/train", "class"]),
        (loose_images, ["ROOT/train", "class"]),
        (empty_val, ["ROOT/val", "class"]),
        (empty_class, ["ROOT/train", "cat", ".jpg"]),
        (extra_in_val, ["emu (only in val)"]),
        (both_differ, ["Cat (only in val)", "cat (only in train)"]),
    ],
)
def test_a_wrong_folder_is_named(tmp_path, spoil, named):
    root = image_files.folder(tmp_path / "photos")
    spoil(root)
    with pytest.raises(UsageError) as caught:
        open_source(f"imagefolder:{root}")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in named:
        assert part.replace("ROOT", str(root)) in message


def test_many_differing_classes_are_counted(tmp_path):
    root = image_files.folder(tmp_path, tuple(f"c{i:02}" for i in range(30)), train=1, val=1)
    for i in range(20):
        shutil.rmtree(root / "train" / f"c{i:02}")
    with pytest.raises(UsageError, match=r"c00 \(only in val\).* and 12 more"):
        image_folder(str(root))


@pytest.mark.parametrize("source", ["", "digit", "imagefolder", "imagefolder:", "digits:x", "folder:/tmp", "/tmp"])
def test_an_unknown_source_says_what_there_is(source):
    with pytest.raises(UsageError, match=r"data\.source.*(imagefolder:PATH|train/CLASS)"):
        open_source(source)


def test_a_long_path_is_shown_whole(tmp_path):
    file = tmp_path.joinpath(*("a folder with a long name" for _ in range(4)), "last.jpg")
    image_files.write(file)
    with pytest.raises(UsageError, match=rf"as a folder, {re.escape(str(file))} is a file$"):
        open_source(str(file))


def test_find_images(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/d.txt"):
        image_files.write(tmp_path / name, format="PNG")
    (tmp_path / "x.png").mkdir()
    found = find_images([tmp_path / "sub" / "d.txt", tmp_path])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["sub/d.txt", "a.JPG", "b.png", "sub/c.png"]


def test_find_images_names_what_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"nowhere\.png does not exist"):
        find_images([tmp_path / "nowhere.png"])
    with pytest.raises(UsageError, match=rf"empty holds no image \(.*{EXTENSIONS[0]}"):
        find_images([tmp_path / "empty"])


@pytest.mark.parametrize(("text", "counts"), [("30", (30, 3, 1000)), ("5,7", (5, 1, 7)), ("1,1", (1, 1, 1))])
def test_synthetic(text, counts):
    source = open_source(f"synthetic:{text}")
    assert (len(source.train), len(source.test), len(source.classes)) == counts
    image = source.train.image(0)
    assert image.shape == (3, 256, 256)
    assert image.dtype == torch.uint8
    assert abs(image.float().mean() - 127.5) < 1  # uniform: the standard error is 0.17
    assert torch.equal(image, open_source(f"synthetic:{text}").train.image(0))
    assert not torch.equal(image, source.test.image(0))
    assert [source.train.label(i) for i in range(5)] == [i % counts[2] for i in range(5)]
    assert source.test.name(0) == "synthetic/test[0]"
    assert open_source(f"synthetic:{text}", 1).train.image(0).shape == (1, 256, 256)


def test_synthetic_noise_does_not_move_between_versions():
    image = open_source("synthetic:9").train.image(8)
    assert zlib.crc32(image.numpy().tobytes()) == 1852548179


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "3,", "3,0", "3,4,5", "1e3", "9999999999", "3,2000000", "²"])
def test_synthetic_numbers_are_checked(text):
    with pytest.raises(UsageError, match="must be synthetic:N or synthetic:N,CLASSES"):
        open_source(f"synthetic:{text}")


def test_an_unknown_source_lists_the_kinds():
    with pytest.raises(UsageError, match=r'"digits", "imagefolder:PATH", "wds:FOLDER".* or "synthetic:N'):
        open_source("tar:a.tar")


def test_a_class_without_test_images_keeps_its_index(tmp_path):
    root = image_files.folder(tmp_path, ("ant", "bee", "cat", "dog"))
    shutil.rmtree(root / "val" / "bee")  # no folder
    for path in (root / "val" / "ant").iterdir():  # or nothing in it
        path.unlink()
    source = image_folder(str(root))
    assert source.classes == ["ant", "bee", "cat", "dog"]
    assert [source.test.label(i) for i in range(len(source.test))] == [2, 2, 3, 3]
    assert source.notes == (
        "there are no test images of ant, bee: scores are over the 2 of 4 classes that have test images",
    )


def test_a_test_split_must_hold_an_image(tmp_path):
    root = image_files.folder(tmp_path)
    for path in (root / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match=r"val has no images in cat, dog"):
        image_folder(str(root))


@pytest.mark.parametrize(("kind", "task"), [("masks", "segmentation"), ("Mask", "segmentation"), ("depths", "depth")])
@pytest.mark.parametrize("split", ["", "train", "val"])
def test_masks_and_depths_beside_images_are_no_classes(tmp_path, kind, task, split):
    for part in ("train", "val") if split else ("",):
        for name in ("images", kind):
            image_files.write(tmp_path / part / name / "0.png")
            image_files.write(tmp_path / part / name / "1.png")
    held_out = None if split else HeldOut(0.5)
    with pytest.raises(UsageError, match=f"not classes; for {task} a folder needs train/images, .* and val/"):
        open_source(f"imagefolder:{tmp_path}", held_out=held_out)
