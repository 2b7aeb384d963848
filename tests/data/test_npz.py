"""Arrays in a .npz file: the layouts people have, what images and labels become, and every way a file can be wrong."""

import io
import pickle
import zipfile

import array_files
import numpy as np
import pytest
import torch
from PIL import Image

from normfree import UsageError
from normfree.data import UnreadableImage, decode_image, npz, open_source, open_test
from normfree.data.held_out import HeldOut
from normfree.data.layouts import with_kind
from normfree.data.sources import absolute
from normfree.data.values import resolve_value_range
from normfree.data.workers import workers_for


@pytest.mark.parametrize(
    "style", ["{}_images {}_labels", "x_{} y_{}", "X_{} Y_{}", "{}_x {}_y"], ids=lambda style: style.split()[0]
)
def test_names_of_arrays(tmp_path, style):
    file = array_files.write(tmp_path / "a.npz", style=style)
    source = open_source(f"arrays:{file}")
    assert (len(source.train), len(source.test), source.classes) == (12, 6, ["0", "1", "2"])
    assert torch.equal(source.train.image(4), torch.from_numpy(array_files.images()[4]).permute(2, 0, 1))
    assert [source.test.label(i) for i in range(6)] == [0, 1, 2, 0, 1, 2]
    assert source.notes == ()


def test_val_comes_before_test_and_a_part_can_be_named(tmp_path):
    file = array_files.write(tmp_path / "a.npz", dict(train=12, val=3, test=6))
    source = open_source(f"arrays:{file}")
    assert len(source.test) == 3
    assert source.notes == (f"test of {file} not used; val is what is tested on (arrays:{file}:test tests on test)",)
    assert len(open_source(f"arrays:{file}:test").test) == 6
    assert len(open_test(f"arrays:{file}:test", ["0", "1", "2"]).test) == 6
    assert len(open_test(f"arrays:{file}:train", ["0", "1", "2"]).test) == 12
    with pytest.raises(UsageError, match="has no validation images with labels"):
        open_source(f"arrays:{file}:validation")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", ["grey", "grey 1", "rgb", "rgb first"])
def test_images_are_as_those_of_files(tmp_path, layout, channels):
    pixels = array_files.images(channels=None if layout == "grey" else 1 if layout == "grey 1" else 3)
    stored = np.moveaxis(pixels, -1, 1) if layout == "rgb first" else pixels
    file = array_files.write(tmp_path / "a.npz", train_images=stored)
    split = open_source(f"arrays:{file}", channels).train
    for index in (0, 7):
        Image.fromarray(pixels[index].squeeze()).save(tmp_path / "one.png")
        expected = decode_image(tmp_path / "one.png", channels)
        assert split.image(index).dtype == torch.uint8
        # PIL rounds the luminance of RGB in another way
        tolerance = 1 if channels == 1 and "rgb" in layout else 0
        assert (split.image(index).int() - expected.int()).abs().max() <= tolerance


def test_four_channels(tmp_path):
    pixels = array_files.images(channels=4)
    file = array_files.write(tmp_path / "a.npz", train_images=np.moveaxis(pixels, -1, 1), test_images=pixels[:6])
    source = open_source(f"arrays:{file}", 4)
    assert torch.equal(source.train.image(0), source.test.image(0))
    with pytest.raises(UsageError, match=r"a\.npz/train_images have 4 channels; data\.channels is 3"):
        open_source(f"arrays:{file}")


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32", "float32", "float64"])
def test_other_numbers_than_bytes(tmp_path, dtype):
    most = 1.0 if "float" in dtype else 4095
    values = (np.linspace(0, most, 12 * 64).reshape(12, 8, 8)).astype(dtype)
    file = array_files.write(tmp_path / "a.npz", train_images=values, test_images=values[:6])
    source, value_range = resolve_value_range(open_source(f"arrays:{file}", 1), "auto")
    assert value_range == (0, most)
    assert source.train.image(11).max() == 255
    expected = values[5].astype(np.float64) / most * 255
    assert np.allclose(source.train.image(5)[0].numpy(), expected, atol=1e-4)
    assert "12 images that were looked at" in source.notes[0]


def test_an_image_that_is_not_finite_is_unreadable(tmp_path):
    values = np.random.default_rng(0).random((12, 8, 8), dtype=np.float32)
    values[3, 2, 2] = np.nan
    file = array_files.write(tmp_path / "a.npz", train_images=values)
    source, _ = resolve_value_range(open_source(f"arrays:{file}"), "auto")
    with pytest.raises(UnreadableImage, match=r"a\.npz/train_images\[3\]: 3 of its 192 values are not finite"):
        source.train.image(3)


def test_black_and_white(tmp_path):
    masks = array_files.images(channels=None) > 100
    split = open_source(f"arrays:{array_files.write(tmp_path / 'a.npz', train_images=masks)}", 1).train
    assert set(split.image(1).unique().tolist()) <= {0, 255}


def test_labels_in_a_column_and_names_of_classes(tmp_path):
    names = np.array(["a", "b", "c", "d"])
    file = array_files.write(tmp_path / "a.npz", train_labels=array_files.labels()[:, None], classes=names)
    source = open_source(f"arrays:{file}")
    assert source.classes == list(names)
    assert source.train.label(4) == 1
    assert source.notes == ("there are no test images of d: scores are over the 3 of 4 classes that have test images",)


def test_several_classes_and_numbers(tmp_path):
    several = np.eye(3, dtype=np.int64)[array_files.labels()] | np.eye(3, dtype=np.int64)[0]
    file = array_files.write(tmp_path / "a.npz", train_labels=several, test_labels=several[:6])
    source = open_source(f"arrays:{file}", answers="classes")
    assert source.train.target(1).tolist() == [1, 1, 0]
    assert source.train.target(1).dtype == torch.float32
    with pytest.raises(
        UsageError, match=r"labels are \(N,\) or \(N, 1\) integers; for several classes per image: --task"
    ):
        open_source(f"arrays:{file}")
    numbers = np.linspace(0, 3, 12)
    file = array_files.write(tmp_path / "b.npz", train_labels=numbers, test_labels=numbers[:6])
    source = open_source(f"arrays:{file}", answers="numbers")
    assert source.classes == ["number0"]
    assert source.test.target(5).tolist() == pytest.approx([numbers[5]])
    with pytest.raises(UsageError, match=r"labels are integers from 0; --task\.name regression learns numbers"):
        open_source(f"arrays:{file}")


def test_some_are_held_out_where_there_is_no_test(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, images=array_files.images(), labels=array_files.labels())
    with pytest.raises(UsageError, match=r"has no test images; --data\.val_fraction 0.1"):
        open_source(f"arrays:{file}")
    source = open_source(f"arrays:{file}", held_out=HeldOut(0.25))
    assert (len(source.train), len(source.test)) == (9, 3)
    assert sorted(source.test.label(i) for i in range(3)) == [0, 1, 2]
    assert all(name.startswith("images[") for name in source.held_out.names)
    again = open_source(f"arrays:{file}", held_out=source.held_out)
    assert [again.test.name(i) for i in range(3)] == [source.test.name(i) for i in range(3)]
    # a network is measured on all of them
    assert len(open_test(f"arrays:{file}", ["0", "1", "2"]).test) == 12
    file = array_files.write(tmp_path / "b.npz")
    with pytest.raises(UsageError, match="has test images of its own"):
        open_source(f"arrays:{file}", held_out=HeldOut(0.25))


def test_nothing_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    file = array_files.write(tmp_path / "a.npz", dict(train=120, test=6))
    assert workers_for(open_source(f"arrays:{file}")) == 0


def test_the_description(tmp_path, monkeypatch):
    file = array_files.write(tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    assert with_kind("a.npz") == "arrays:a.npz"
    assert absolute("arrays:a.npz") == f"arrays:{file}"
    assert absolute("arrays:a.npz:test") == f"arrays:{file}:test"
    with pytest.raises(UsageError, match=r"did you mean arrays:a\.npz"):
        open_source("array:a.npz")


def damaged(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(("change", "reason"), [(damaged, "is no .npz file: "), (flipped, "cannot be read: ")])
def test_a_damaged_file(tmp_path, change, reason):
    file = array_files.write(tmp_path / "a.npz")
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UsageError) as caught:
        open_source(f"arrays:{file}")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, dict(shape=shape, fortran_order=False, descr=dtype))
    return content.getvalue()


def replaced(file, name: str, content: bytes) -> None:
    with zipfile.ZipFile(file) as old:
        kept = {one: old.read(one) for one in old.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for one, stored in (kept | {name: content}).items():
            new.writestr(one, stored)


def test_what_a_file_claims_is_looked_at_before_it_is_held(tmp_path, monkeypatch):
    file = array_files.write(tmp_path / "a.npz")
    replaced(file, "train_images.npy", header((12, 1000, 1000, 3)) + bytes(100))
    with pytest.raises(UsageError, match="truncated: its 36,000,000 bytes of numbers are not all there"):
        open_source(f"arrays:{file}")
    replaced(file, "train_images.npy", header((10**12, 8, 8)))
    with pytest.raises(UsageError, match="64,000,000,000,000 bytes, more than this machine can hold in memory"):
        open_source(f"arrays:{file}")
    replaced(file, "train_images.npy", header((12, 8, 8)) + bytes(12 * 64))
    monkeypatch.setattr(npz, "memory", lambda: 500)
    with pytest.raises(UsageError, match="768 bytes, more than this machine can hold"):
        open_source(f"arrays:{file}")


class Harm:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_not_loaded(tmp_path):
    file = array_files.write(tmp_path / "a.npz", classes=np.array([None, "b", "c"], dtype=object))
    replaced(file, "train_labels.npy", header((1,), "|O") + pickle.dumps(np.array([Harm()], dtype=object)))
    with pytest.raises(
        UsageError, match=r"a\.npz/classes cannot be read: it holds Python objects, which are not loaded"
    ):
        open_source(f"arrays:{file}")
    replaced(file, "classes.npy", header((3,), "<U1") + np.array(list("abc")).tobytes())
    with pytest.raises(UsageError, match="train_labels cannot be read: it holds Python objects"):
        open_source(f"arrays:{file}")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (dict(train_images=np.zeros((12, 8))), r"an array of shape \(12, 8\) of float64; images are"),
        (dict(train_images=np.zeros((12, 8, 8), complex)), "of complex128; images are"),
        (dict(train_images=np.zeros((0, 8, 8), np.uint8)), "images are"),
        (dict(train_images=np.zeros((11, 8, 8), np.uint8)), "train_images are 11 images with 12 labels"),
        (dict(train_labels=np.full(12, -1)), "holds -1 to -1; labels are integers from 0 to 999,999"),
        (dict(train_labels=np.full(12, 10**7)), "labels are integers from 0 to 999,999"),
        (dict(train_labels=np.zeros(12, int)), "has one class; a classifier needs two or more"),
        (dict(test_labels=np.full(6, 3)), "test_labels has a label 3; 3 classes end at 2"),
        (dict(train_labels=np.array(["a"] * 12)), "of <U1; labels are integers from 0"),
        (dict(classes=np.array(["a", "b"])), "train_labels has a label 2; 2 classes end at 1"),
        (dict(classes=np.array(["a", "a", "b"])), "each only once"),
        (dict(classes=np.arange(3)), "names of classes are"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        open_source(f"arrays:{array_files.write(tmp_path / 'a.npz', **arrays)}")
    assert len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_other_files(tmp_path):
    with pytest.raises(UsageError, match=r"is not a file; it must be arrays in a \.npz file"):
        open_source(f"arrays:{tmp_path / 'none.npz'}")
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(UsageError, match=r"is no \.npz file"):
        open_source(f"arrays:{tmp_path / 'a.npz'}")
    np.savez(tmp_path / "b.npz", train_image=array_files.images(), train_labels=array_files.labels())
    with pytest.raises(UsageError, match="but train_image, train_labels; did you mean train_image"):
        open_source(f"arrays:{tmp_path / 'b.npz'}")


def test_a_network_is_measured_without_training_images(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, test_images=array_files.images(), test_labels=array_files.labels())
    source = open_test(f"arrays:{file}", ["ape", "bee", "cow"])
    assert (len(source.train), len(source.test), source.classes) == (0, 12, ["ape", "bee", "cow"])
    with pytest.raises(UsageError, match="test_labels has a label 2; 2 classes end at 1"):
        open_test(f"arrays:{file}", ["ape", "bee"])
