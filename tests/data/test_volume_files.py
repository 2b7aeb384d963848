"""Files of volumes: what is read is what was written, along the axes of nibabel's closest canonical image."""

import itertools
import sys

import nibabel
import numpy as np
import pytest
import torch
import volume_sets

from normfree import UsageError
from normfree.data import UnreadableImage
from normfree.data.masks import MaskValues
from normfree.data.volume_files import base_name, read_header, read_mask, read_volume, write_mask

KINDS = [".npy", ".npz", ".nii", ".nii.gz"]
TURNS = list(itertools.product(itertools.permutations(range(3)), itertools.product([1, -1], repeat=3)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_is_written_as_it_is_read(tmp_path, kind):
    values, mask = volume_sets.volume(0)
    image = volume_sets.save(tmp_path / "a.b", values, kind)
    stored = str(volume_sets.save(tmp_path / "m", mask, kind))
    classes = read_mask(stored, MaskValues(2))
    assert classes.shape == read_volume(str(image)).shape[1:] == read_header(str(image)).places(1, "")
    assert classes.unique().tolist() == [0, 1, 255]
    again = str(tmp_path / f"again{kind}")
    write_mask(again, classes.numpy().astype(np.uint8), str(image))
    assert torch.equal(read_mask(again, MaskValues(2)), classes)
    assert read_header(again).spacing == read_header(str(image)).spacing
    assert base_name(image) == "a.b"


def test_nifti_keeps_its_affine_and_axes_however_it_is_stored(tmp_path):
    rng = np.random.default_rng(0)
    for number, (order, signs) in enumerate(TURNS):
        affine = np.eye(4)
        affine[:3, :3] = np.diag(np.array(signs) * [1.0, 2.0, 3.0])[:, order]
        affine[:3, 3] = 5, 6, 7
        values = rng.integers(-100, 100, (3, 4, 5)).astype(np.int16)
        path = str(volume_sets.save(tmp_path / str(number), values, ".nii", affine))
        expected, header = nibabel.as_closest_canonical(nibabel.load(path)), read_header(path)
        assert header.shape == expected.shape
        assert header.affine is not None
        np.testing.assert_allclose(header.affine, expected.affine)
        np.testing.assert_allclose(header.spacing, expected.header.get_zooms())
        np.testing.assert_array_equal(read_volume(path)[0].numpy(), np.asarray(expected.dataobj))
        mask = (read_volume(path)[0].numpy() > 0).astype(np.uint8)
        write_mask(tmp_path / "mask.nii.gz", mask, path)
        written = nibabel.load(tmp_path / "mask.nii.gz")
        assert written.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(written.affine, nibabel.load(path).affine)
        np.testing.assert_array_equal(np.asarray(written.dataobj), values > 0)


def test_values_keep_their_bits(tmp_path):
    rng = np.random.default_rng(0)
    for dtype in (np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.float32):
        values = rng.integers(0, 100, (2, 3, 4)).astype(dtype)
        values.flat[0] = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
        got = read_volume(str(volume_sets.save(tmp_path / "a", values, ".npy")))
        assert got.tolist() == values[None].astype(object).tolist()
        assert read_header(str(tmp_path / "a.npy")).width == got.element_size()


def test_scaled_nifti_and_its_units(tmp_path):
    values = np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([2e-3, 1e-3, 1e-3, 1]))
    image.header.set_slope_inter(0.5, -3)
    image.header.set_xyzt_units("meter")
    (tmp_path / "a.nii").write_bytes(b"".join([image.to_bytes()]))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()  # slope and intercept of the header, as scanners write them
    (tmp_path / "a.nii").write_bytes(raw)
    assert read_header(str(tmp_path / "a.nii")).spacing == pytest.approx((2, 1, 1))
    got, stored = read_volume(str(tmp_path / "a.nii"))[0], np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj)
    np.testing.assert_allclose(got.numpy(), stored, rtol=1e-6)
    assert got.dtype == torch.float32


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_channels(tmp_path, first):
    values = np.random.default_rng(0).normal(size=(6, 5, 4, 2)).astype(np.float32)
    path = str(volume_sets.save(tmp_path / "a", np.moveaxis(values, -1, 0) if first else values, ".npy"))
    np.testing.assert_array_equal(read_volume(path, 2).numpy(), np.moveaxis(values, -1, 0))
    with pytest.raises(UnreadableImage, match=r"a\.npy: shape \(.*\), so 2 channels; 1 needed here"):
        read_volume(path, 1)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.npy", np.zeros((3, 4)), r"an array of shape \(3, 4\) of float64; a volume is \(D, H, W\)"),
        ("a.npy", np.zeros((3, 0, 4)), r"an array of shape \(3, 0, 4\)"),
        ("a.npy", np.zeros((3, 4, 5), complex), "of complex128; a volume is"),
        ("a.npy", np.full((3, 4, 5), np.nan), "60 of its 60 values are not finite"),
        ("a.npy", b"nothing", "magic string"),
        ("a.npz", dict(one=np.zeros((3, 4, 5)), two=np.zeros(3)), "it holds one, two; it must hold one volume or mask"),
        ("a.npz", dict(one=np.zeros((3, 4, 5)), spacing=[1, 2]), r"its spacing \(=\[1, 2\]\) must be three numbers"),
        ("a.npz", dict(one=np.zeros((3, 4, 5)), spacing=[1, 2, 0]), "must be three numbers above 0"),
        ("a.nii", b"nothing", "file"),
        ("a.png", b"nothing", "not a volume; its name must end in .npy, .npz, .nii, .nii.gz"),
        ("gone.npy", None, "No such file"),
    ],
)
def test_other_files_are_named(tmp_path, name, content, told):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif content is not None:
        np.save(tmp_path / name, content)
    with pytest.raises(UnreadableImage, match=f"{name}: .*{told}") as caught:
        read_volume(str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1


def test_a_size_that_is_claimed_alone_is_not_made(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, dict(descr="<f8", fortran_order=False, shape=(900, 900, 900)))
    with pytest.raises(UnreadableImage, match="truncated: it ends within its 5,832,000,000 bytes"):
        read_header(str(tmp_path / "a.npy"))
    with (tmp_path / "b.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, dict(descr="|u1", fortran_order=False, shape=(9000, 9000, 9000)))
    with pytest.raises(UnreadableImage, match="729,000,000,000 values, more than the limit"):
        read_header(str(tmp_path / "b.npy"))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.0, 0.5], "values from 0 to 0.5, not all integers; a mask holds the number of the class at each voxel"),
        ([0, -1], "a value of -1; a mask"),
        ([0, 2], "class 2 is unknown; there are 0 to 1, and 255 to ignore"),
        ([0, 70_000], "not all integers|0 to 65,535"),
        ([0, np.nan], "a mask holds"),
    ],
)
def test_masks_of_no_classes_are_named(tmp_path, values, told):
    path = str(volume_sets.save(tmp_path / "m", np.array(values)[:, None, None], ".npy"))
    with pytest.raises(UnreadableImage, match=rf"m\.npy: .*({told})"):
        read_mask(path, MaskValues(2))


def test_masks_of_other_values_and_of_whole_numbers_with_a_point(tmp_path):
    path = str(volume_sets.save(tmp_path / "m", np.array([0.0, 4.0, 9.0])[:, None, None], ".npy"))
    values = MaskValues(2, (0, 4), 9)
    classes = read_mask(path, values)
    assert classes.flatten().tolist() == [0, 1, 255]
    assert values.values_of(classes[:2]).flatten().tolist() == [0, 4]


def test_nibabel_is_an_extra(tmp_path, monkeypatch):
    path = str(volume_sets.save(tmp_path / "a", np.zeros((2, 3, 4), np.uint8), ".nii"))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    told = r'a\.nii is a NIfTI file, which needs nibabel; pip install "normfree\[volumes\]"'
    with pytest.raises(UsageError, match=told):
        read_volume(path)
