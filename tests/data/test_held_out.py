"""Holding images out for testing."""

import os
from collections import Counter

import image_files
import pytest

from normfree import UsageError
from normfree.data import HeldOut, open_source
from normfree.data.held_out import HELD_OUT


def names(split) -> list[str]:
    return [split.name(i) for i in range(len(split))]


@pytest.fixture
def photos(tmp_path):
    """40 cats, 7 dogs and 2 emus, in class folders without a split."""
    root = tmp_path / "photos"
    for name, count in dict(cat=40, dog=7, emu=2).items():
        for i in range(count):
            image_files.write(root / name / f"{i}.png", image_files.pixels(4, 4, seed=100 * count + i))
    return root


def opened(root, fraction=0.2, seed=0, **options):
    return open_source(f"imagefolder:{root}", held_out=HeldOut(fraction, seed, **options))


def test_images_are_held_out_by_class(photos):
    source = opened(photos)
    assert source.classes == ["cat", "dog", "emu"]
    assert Counter(source.test.label(i) for i in range(len(source.test))) == {0: 8, 1: 1, 2: 1}
    assert Counter(source.train.label(i) for i in range(len(source.train))) == {0: 32, 1: 6, 2: 1}
    both = names(source.train) + names(source.test)
    assert len(set(both)) == len(both) == 49
    for split in (source.train, source.test):
        for i in range(len(split)):
            assert split.name(i).split("/")[-2] == source.classes[split.label(i)]
            assert split.image(i).shape == (3, 4, 4)
    assert source.notes == (f"{photos} has no test split: 10 of 49 images are held out (seed 0)",)


def test_the_choice_depends_on_seed_and_names_alone(photos, tmp_path):
    chosen = opened(photos).held_out
    assert opened(photos).held_out == chosen
    assert opened(photos, seed=1).held_out.names != chosen.names
    photos.rename(tmp_path / "moved")
    assert opened(tmp_path / "moved").held_out == chosen
    assert set(chosen.names) <= {f"{c}/{i}.png" for c in ("cat", "dog", "emu") for i in range(40)}


def test_train_alone_is_divided_too(photos, tmp_path):
    (tmp_path / "other").mkdir()
    photos.rename(tmp_path / "other" / "train")
    assert len(opened(tmp_path / "other").test) == 10


def test_links_to_a_file_are_held_out_with_it(photos):
    for i in range(20):
        os.symlink(photos / "cat" / f"{i}.png", photos / "cat" / f"link{i}.png")
        os.link(photos / "cat" / f"{i}.png", photos / "cat" / f"hard{i}.png")
    source = opened(photos, 0.5)
    train, test = ({os.path.realpath(name) for name in names(split)} for split in (source.train, source.test))
    assert not train & test
    inodes = [{os.stat(name).st_ino for name in names(split)} for split in (source.train, source.test)]
    assert not inodes[0] & inodes[1]


def test_what_was_held_out_stays_so(photos):
    chosen = opened(photos).held_out
    for i in range(40, 60):
        image_files.write(photos / "cat" / f"{i}.png")
    gone = chosen.names[0]
    (photos / gone).unlink()
    again = open_source(f"imagefolder:{photos}", held_out=chosen)
    assert {os.path.relpath(name, photos) for name in names(again.test)} == set(chosen.names) - {gone}
    assert len(again.train) == 39 + 20
    assert again.notes == (f"1 of 10 images held out for testing are not there any more: {gone}",)


def test_without_the_list_another_folder_is_noticed(photos):
    chosen = opened(photos).held_out
    assert opened(photos, expected=chosen.fingerprint).held_out.names == chosen.names
    for i in range(40, 60):
        image_files.write(photos / "cat" / f"{i}.png")
    with pytest.raises(UsageError, match=rf"holds other images than when training began.*{HELD_OUT}"):
        opened(photos, expected=chosen.fingerprint)


def test_a_class_of_one_image_is_named(photos):
    (photos / "emu" / "0.png").unlink()
    with pytest.raises(UsageError, match=r"data\.val_fraction \(=0\.2\) needs two images of every class.*emu has one"):
        opened(photos)


def test_a_source_with_a_test_split_is_not_divided(tmp_path):
    root = image_files.folder(tmp_path)
    for source in (f"imagefolder:{root}", "digits", "synthetic:10"):
        with pytest.raises(UsageError, match=r"data\.val_fraction \(=0\.5\): .* has test images of its own"):
            open_source(source, held_out=HeldOut(0.5))


def test_without_a_fraction_the_option_is_named(photos):
    with pytest.raises(UsageError, match=r"has no folder 'val'.*--data\.val_fraction 0\.1 holds a tenth"):
        open_source(f"imagefolder:{photos}")


def test_the_list_is_written_and_read(tmp_path):
    held_out = HeldOut(0.25, 3, ("a/\udcff.png", "b/ü.png"))
    held_out.write(tmp_path)
    assert HeldOut.read(tmp_path) == held_out
    assert HeldOut.read(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "content",
    [
        '{"fraction": 1}',
        "",
        "[" * 100_000,
        "5",
        '["a"]',
        '{"fraction": 0.1, "seed": 0, "names": "abc"}',
        '{"fraction": 0.1, "seed": 0, "names": {"a": 1}}',
        '{"fraction": 0.1, "seed": 0, "names": [["a"]]}',
        '{"fraction": 0.1, "seed": 1e999, "names": ["a"]}',
        '{"fraction": [], "seed": 0, "names": ["a"]}',
        '{"fraction": 1%s, "seed": 0, "names": ["a"]}' % ("0" * 400),
    ],
    ids=range(11),
)
def test_a_damaged_list_is_named_in_a_line(tmp_path, content):
    (tmp_path / HELD_OUT).write_text(content)
    with pytest.raises(UsageError) as caught:
        HeldOut.read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / HELD_OUT} is damaged: it should hold a fraction, a seed and the names of the images held out"
    )


def test_a_list_in_another_encoding_is_damaged(tmp_path):
    (tmp_path / HELD_OUT).write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is damaged"):
        HeldOut.read(tmp_path)
