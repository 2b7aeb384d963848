"""Data sets of the Hugging Face hub: folders that its library wrote, and what is said where something is missing."""

import importlib.metadata
import sys

import array_files
import image_files
import pytest
import torch

from normfree import UsageError
from normfree.data import UnreadableImage, open_source, open_test
from normfree.data.held_out import HeldOut
from normfree.data.memory import kept
from normfree.data.sources import absolute


@pytest.fixture
def library(monkeypatch):
    """The library, without a network; tables that a test makes are not hashed, which some versions cannot do."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("datasets", minversion="4.0", reason='pip install "normfree[hf]"', exc_type=ImportError)
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda *arguments: "made for a test")
    return found


def table(library, count: int = 6, classes: tuple[str, ...] = ("cat", "dog"), seed: int = 0, **columns):
    features = dict(image=library.Image(), label=library.ClassLabel(names=list(classes)))
    content = dict(image=list(array_files.images(count, seed=seed)), label=[i % len(classes) for i in range(count)])
    for name, (feature, values) in columns.items():
        features[name], content[name] = feature, values
    return library.Dataset.from_dict(content, features=library.Features(features))


def saved(library, path, **parts) -> str:
    library.DatasetDict(parts or dict(train=table(library), test=table(library, 4, seed=1))).save_to_disk(str(path))
    return f"hf:{path}"


def test_a_folder(library, tmp_path, monkeypatch):
    source = open_source(saved(library, tmp_path / "pets"))
    assert (len(source.train), len(source.test), source.classes) == (6, 4, ["cat", "dog"])
    assert torch.equal(source.train.image(3), torch.from_numpy(array_files.images(6)[3]).permute(2, 0, 1))
    assert [source.test.label(i) for i in range(4)] == [0, 1, 0, 1]
    assert source.train.name(3) == f"{tmp_path / 'pets'}/train[3]"
    monkeypatch.chdir(tmp_path)
    assert absolute("hf:pets") == f"hf:{tmp_path / 'pets'}"
    assert absolute("hf:uoft-cs/cifar10") == "hf:uoft-cs/cifar10"
    only = open_test("hf:pets", ["cat", "dog"])
    assert (len(only.train), len(only.test)) == (0, 4)
    with pytest.raises(UsageError, match="has test images of its own"):
        open_source("hf:pets", held_out=HeldOut(0.2))
    held = kept(source, True, pairs=False, passes=2)
    assert torch.equal(held.train.image(5), source.train.image(5))


def test_validation_comes_before_test(library, tmp_path):
    parts = dict(train=table(library), validation=table(library, 3), test=table(library, 4))
    source = open_source(saved(library, tmp_path / "pets", **parts))
    assert len(source.test) == 3
    assert source.notes == (f"test of hf:{tmp_path / 'pets'} not used; validation is what is tested on",)


def test_some_are_held_out(library, tmp_path):
    name = saved(library, tmp_path / "pets", train=table(library, 8))
    with pytest.raises(UsageError, match=r"has no test images; --data\.val_fraction 0\.1"):
        open_source(name)
    source = open_source(name, held_out=HeldOut(0.25))
    assert (len(source.train), len(source.test)) == (6, 2)
    assert source.held_out.names[0].startswith("train[")


def test_several_classes(library, tmp_path):
    feature = library.Sequence(library.ClassLabel(names=["a", "b", "c"]))
    tags = table(library, 3, tags=(feature, [[0, 2], [], [1]]))
    source = open_source(saved(library, tmp_path / "tags", train=tags, test=tags), answers="classes")
    assert source.classes == ["a", "b", "c"]
    assert [source.train.target(i).tolist() for i in range(3)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    with pytest.raises(UsageError, match="numbers need a table"):
        open_source(f"hf:{tmp_path / 'tags'}", answers="numbers")


def test_unreadable_images(library, tmp_path):
    path = image_files.break_file(tmp_path / "broken.png")
    features = library.Features(image=library.Image(), label=library.ClassLabel(names=["a", "b"]))
    content = dict(image=[dict(bytes=path.read_bytes(), path=None), None], label=[0, 1])
    broken = library.Dataset.from_dict(content, features=features)
    split = open_source(saved(library, tmp_path / "set", train=broken, test=table(library, classes=("a", "b")))).train
    for index, reason in ((0, "train\\[0\\]: "), (1, "train\\[1\\]: ")):
        with pytest.raises(UnreadableImage, match=reason):
            split.image(index)


def test_other_columns(library, tmp_path):
    numbers = library.Dataset.from_dict(dict(x=[1, 2], label=[0, 1]))
    with pytest.raises(UsageError, match=r"has no column of images \(Image\), but x \(Value\), label \(Value\)"):
        open_source(saved(library, tmp_path / "a", train=numbers))
    without = table(library).remove_columns("label")
    with pytest.raises(UsageError, match=r"has no column of classes \(ClassLabel\), but image \(Image\)"):
        open_source(saved(library, tmp_path / "b", train=without))
    hidden = table(library, 2, label=(library.ClassLabel(names=["cat", "dog"]), [-1, -1]))
    with pytest.raises(UsageError, match=r"train\[0\] has the class -1; there are 2, from 0"):
        open_source(saved(library, tmp_path / "c", train=hidden))


def test_what_is_not_there(library, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (f"hf:{tmp_path / 'empty'}", "hf:nobody/nothing", "hf:"):
        with pytest.raises(UsageError, match=f"data.source: {name} cannot be had: ") as caught:
            open_source(name)
        assert "\n" not in str(caught.value)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r'data\.source: hf: needs the library datasets; pip install "normfree\[hf\]"'):
        open_source("hf:uoft-cs/cifar10")


def test_versions_that_run_code_are_refused(library, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.6.0" if name == "datasets" else real(name))
    with pytest.raises(UsageError, match=r"needs datasets 4\.0 or later \(3\.6\.0 is installed\)"):
        open_source("hf:uoft-cs/cifar10")


def test_two_epochs(library, tmp_path):
    from tiny_runs import FLAGS

    from normfree.cli import main

    name = saved(library, tmp_path / "pets", train=table(library, 12), test=table(library, 4))
    sizes = ["--data.image_size", "8", "--data.test_size", "8", "--train.batch_size", "6", "--epochs", "2"]
    assert main(["train", *FLAGS, *sizes, "--data", name, "--out", str(tmp_path / "run")]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
