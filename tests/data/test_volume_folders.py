"""Folders of volumes: what is found, counted and resampled; every mistake is one line that names the file."""

import shutil

import nibabel
import numpy as np
import pytest
import torch
import volume_sets

from normfree import UsageError
from normfree.data import HeldOut, NoTestImages
from normfree.data.layouts import with_kind
from normfree.data.memory import kept
from normfree.data.sources import absolute
from normfree.data.volume_folders import volume_folder
from normfree.data.workers import workers_for


@pytest.mark.parametrize("kind", [".npy", ".npz", ".nii", ".nii.gz"])
def test_train_and_val(tmp_path, kind):
    root = volume_sets.volumes_folder(tmp_path / "volumes", kind)
    source = volume_folder(str(root))
    assert (len(source.train), len(source.test), source.classes) == (4, 4, ["class0", "class1"])
    image, mask = source.train.pair(1)
    assert image.dtype == torch.int16
    assert image.shape[1:] == mask.shape
    assert mask.unique().tolist() == [0, 1, 255]
    assert bool((image[0][mask == 1] > 100).all())
    assert bool((image[0][mask == 0] < 100).all())
    assert source.train.name(1).endswith(f"train/images/v1{kind}")
    assert source.train.target_hash(0) != source.train.target_hash(1)
    shapes, size = source.train.size(0)
    assert shapes == mask.shape
    assert size == image.numel() * image.element_size()
    assert with_kind(str(root)) == f"volumes:{root}"


def test_what_is_told(tmp_path):
    root = volume_sets.volumes_folder(tmp_path, ".nii.gz")
    (root / "train/images/readme.txt").touch()
    (root / "classes.txt").write_text("ground\nthing\n")
    source = volume_folder(str(root))
    assert source.classes == ["ground", "thing"]
    skipped, geometry, train, val = source.notes
    assert "skipped 1 file" in skipped
    told = "8 volumes of 8 x 10 x 12 voxels; spacing 2 x 1 x 1 mm: it differs between axes, and voxels are used as they"
    assert geometry.startswith(told)
    assert "train: voxels of its masks are ground" in train
    assert "10.00% of the voxels are ignored" in train
    assert "val: voxels of its masks are ground" in val


def test_a_folder_without_test_volumes_is_divided(tmp_path):
    root = volume_sets.volumes_folder(tmp_path, parts=(".",), count=6)
    with pytest.raises(NoTestImages, match=r"has no test volumes .*; --data\.val_fraction 0\.2 holds a fifth"):
        volume_folder(str(root))
    source = volume_folder(str(root), held_out=HeldOut(0.3))
    assert (len(source.train), len(source.test)) == (4, 2)
    assert source.held_out is not None
    again = volume_folder(str(root), held_out=source.held_out)
    assert [again.test.name(i) for i in range(2)] == [source.test.name(i) for i in range(2)]
    alone = volume_folder(str(root), known=source.classes)
    assert (len(alone.train), len(alone.test)) == (0, 6)
    with pytest.raises(UsageError, match=r"data\.val_fraction \(=0\.3\): .* has test volumes of its own"):
        volume_folder(str(volume_sets.volumes_folder(tmp_path / "both")), held_out=HeldOut(0.3))


def test_a_network_needs_no_training_volumes(tmp_path):
    root = volume_sets.volumes_folder(tmp_path)
    shutil.rmtree(root / "train")
    assert len(volume_folder(str(root), known=["a", "b"]).test) == 4
    assert len(volume_folder(str(root / "val"), known=["a", "b"]).test) == 4


def test_values_of_masks(tmp_path):
    root = volume_sets.volumes_folder(tmp_path)
    for path in root.glob("*/masks/*.npy"):
        np.save(path, np.load(path).astype(np.float32).clip(0, 9) * 50)
    source = volume_folder(str(root), values=[0, 50], ignored=450)
    assert source.train.target(0).unique().tolist() == [0, 1, 255]
    with pytest.raises(UsageError, match=r"data\.mask_values \(=\[\[0, 0, 0\], \[9, 9, 9\]\]\) must be numbers"):
        volume_folder(str(root), values=[(0, 0, 0), (9, 9, 9)])


def test_spacing_is_made_the_same(tmp_path):
    root = volume_sets.volumes_folder(tmp_path, ".npz", count=2)  # 2 x 1 x 1 mm
    plain, source = (volume_folder(str(root), spacing=spacing) for spacing in (None, (1.0, 2.0, 1.0)))
    assert "resampled to 1 x 2 x 1 mm" in " ".join(source.notes)
    image, mask = source.train.pair(0)
    stored, classes = plain.train.pair(0)
    assert image.shape == (1, 20, 6, 8)
    assert mask.shape == (20, 6, 8)
    assert source.train.size(0) == ((20, 6, 8), 4 * image.numel())
    assert set(mask.unique().tolist()) <= set(classes.unique().tolist())
    assert image.mean().item() == pytest.approx(stored.float().mean().item(), abs=3)
    with pytest.raises(UsageError, match=r"v0\.npy: it has no spacing; data\.spacing \(=\[1\.0, 1\.0, 1\.0\]\)"):
        volume_folder(str(volume_sets.volumes_folder(tmp_path / "npy")), spacing=(1.0, 1.0, 1.0))


def test_in_memory_volumes_are_the_same(tmp_path):
    source = volume_folder(str(volume_sets.volumes_folder(tmp_path)))
    memory = kept(source, None, pairs=True, passes=2)
    assert memory is not None
    for index in range(len(source.train)):
        for got, expected in zip(memory.train.pair(index), source.train.pair(index), strict=True):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)
    assert memory.train.images.bytes == 4 * 2 * 10 * 12 * 8
    assert kept(source, None, pairs=True, passes=1) is None


def test_few_volumes_are_worth_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("normfree.data.workers.cores", lambda: 2)
    source = volume_folder(str(volume_sets.volumes_folder(tmp_path)))
    assert workers_for(source) == 2


def test_sources_by_numbers_have_no_path(tmp_path):
    assert absolute("volumes:100,16") == "volumes:100,16"
    assert absolute(f"volumes:{tmp_path}/../{tmp_path.name}") == f"volumes:{tmp_path.resolve()}"


def mask_of(root, values, part="train"):
    np.save(root / part / "masks" / "v1.npy", values)


WRONG = {
    "no folder": (lambda root: shutil.rmtree(root), "is not a folder; it must hold images/NAME and masks/NAME"),
    "no masks": (lambda root: shutil.rmtree(root / "train/masks"), "folder .*train/masks is missing; volumes need"),
    "no images": (lambda root: shutil.rmtree(root / "val/images"), "folder .*val/images is missing"),
    "empty": (lambda root: [p.unlink() for p in root.glob("val/images/*")], r"val/images holds no volume \(\.npy"),
    "no mask": (lambda root: (root / "val/masks/v2.npy").unlink(), r"val/masks/v2\.npy is missing; .*v2\.npy needs it"),
    "other shape": (
        lambda root: mask_of(root, np.zeros((10, 12, 9), np.uint8)),
        r"masks/v1\.npy: 10 x 12 x 9 voxels, its volume .*images/v1\.npy has 10 x 12 x 8",
    ),
    "fraction": (lambda root: mask_of(root, np.full((10, 12, 8), 0.5)), r"masks/v1\.npy: values from 0\.5 to 0\.5"),
    "unknown class": (
        lambda root: mask_of(root, np.full((10, 12, 8), 3, np.uint8), "val"),
        r"val/masks/v1\.npy: class 3 is unknown; there are 0 to 1, and 255 to ignore",
    ),
    "channels": (
        lambda root: np.save(root / "train/images/v1.npy", np.zeros((10, 12, 8, 2))),
        r"train/images/v1\.npy: shape \(10, 12, 8, 2\), so 2 channels; 1 needed here",
    ),
    "names": (lambda root: (root / "classes.txt").write_text("a\n\nb\n"), r"line 2 of .*classes\.txt is blank"),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_one_line(tmp_path, case):
    root = volume_sets.volumes_folder(tmp_path / "volumes")
    change, told = WRONG[case]
    change(root)
    with pytest.raises(UsageError, match=told) as caught:
        volume_folder(str(root))
    assert len(str(caught.value).splitlines()) == 1


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path):
    root = volume_sets.volumes_folder(tmp_path, ".nii")
    file = root / "val/masks/v2.nii"
    image = nibabel.load(file)
    affine = image.affine.copy()
    affine[0, 3] += 0.4  # mm, of voxels of 1 mm
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), file)
    assert len(volume_folder(str(root)).test) == 4
    affine[0, 3] += 0.2
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(file).dataobj), affine), file)
    with pytest.raises(UsageError, match=r"masks/v2\.nii: by its affine it lies 0\.6 mm from its volume .*v2\.nii"):
        volume_folder(str(root))
