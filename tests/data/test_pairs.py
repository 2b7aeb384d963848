"""Files that say what each pixel is, in each real layout; every mistake is one line that names the file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_files import depth_folder, masks_folder, nyu_file, sbd_folder, voc_folder
from PIL import Image
from scipy.io import savemat

from normfree import UsageError
from normfree.data import UnreadableImage
from normfree.data.masks import MaskValues
from normfree.data.nyu import NYUSplit
from normfree.data.pairs import open_pairs, read_depth


def test_masks(tmp_path):
    source = open_pairs(f"masks:{masks_folder(tmp_path)}", "segmentation")
    assert (len(source.train), len(source.test), source.classes) == (6, 6, ["ground", "thing"])
    image, mask = source.train.pair(1)
    assert image.shape == (3, 24, 24)
    assert mask.unique().tolist() == [0, 1, 255]
    assert torch.equal(mask[1:] == 1, image[0, 1:] > 100)
    assert source.train.name(1).endswith("train/images/1.png")


@pytest.mark.parametrize("text", ["ground\nthing\n\n \n", "\ufeffground\r\nthing", " ground \n\tthing\n"])
def test_names_of_classes(tmp_path, text):
    root = masks_folder(tmp_path, 1)
    (root / "classes.txt").write_text(text, encoding="utf-8", newline="")
    assert open_pairs(f"masks:{root}", "segmentation").classes == ["ground", "thing"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("ground\n\nthing\n", r"line 2 of .*classes\.txt is blank; it must name class 1$"),
        ("\nground\nthing\n", r"line 1 of .*classes\.txt is blank; it must name class 0$"),
        ("ground\nthing\nsky\nthing \n", r"lines 2 and 4 of .*classes\.txt are both 'thing'; each class must have"),
    ],
)
def test_names_that_shift_or_repeat_are_refused(tmp_path, names, told):
    root = masks_folder(tmp_path, 1, names)
    with pytest.raises(UsageError, match=told) as caught:
        open_pairs(f"masks:{root}", "segmentation")
    assert str(root) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_masks_without_names(tmp_path):
    root = masks_folder(tmp_path, names=None)
    assert open_pairs(f"masks:{root}", "segmentation").classes == ["class0", "class1"]


@pytest.mark.parametrize("augmented", [False, True])
def test_voc(tmp_path, augmented):
    root = voc_folder(tmp_path, augmented=augmented)
    for path in (root, root / "VOCdevkit", root / "VOCdevkit" / "VOC2012"):
        source = open_pairs(f"voc:{path}", "segmentation")
        assert (len(source.train), len(source.test)) == (4 + augmented, 4)
    assert len(source.classes) == 21
    assert source.test.pair(0)[1].unique().tolist() == [0, 15, 255]  # the numbers, not the palette's colours
    assert source.classes[15] == "person"
    if augmented:
        assert source.train.pair(4)[1].max() == 20


def test_lists_of_voc_with_a_byte_order_mark(tmp_path):
    names = voc_folder(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    names.write_text(names.read_text(), encoding="utf-8-sig")
    assert len(open_pairs(f"voc:{tmp_path}", "segmentation").test) == 4


VOC_TRAIN, VOC_VAL = ([f"{year}_{i:06}" for i in range(4)] for year in (2007, 2008))


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_with_the_masks_of_sbd(tmp_path, place):
    """As the papers' 10,582 training images: SBD without VOC's test images, and VOC's own masks where it has some."""
    root = voc_folder(tmp_path)
    sbd_folder(root / place, ["2009_000002", VOC_TRAIN[0], VOC_VAL[1]], ["2009_000001", VOC_VAL[0], VOC_TRAIN[3]])
    source = open_pairs(f"voc:{root}", "segmentation")
    names = [Path(source.train.name(i)).stem for i in range(len(source.train))]
    assert names == [*VOC_TRAIN, "2009_000001", "2009_000002"]
    assert [Path(source.test.name(i)).stem for i in range(len(source.test))] == VOC_VAL
    for index, present in ((0, [0, 15, 255]), (3, [0, 15, 255]), (4, [0, 7]), (5, [0, 7])):
        image, mask = source.train.pair(index)
        assert mask.unique().tolist() == present
        seen = mask != 255
        # the image's two colours, through JPEG
        assert ((image[0] > 128) == (mask > 0))[seen].float().mean() > 0.9


def test_the_merged_list_is_preferred(tmp_path):
    root = voc_folder(tmp_path, augmented=True)
    sbd_folder(root, ["2010_000001"], [])
    assert len(open_pairs(f"voc:{root}", "segmentation").train) == 5


def test_what_sbd_lacks(tmp_path, monkeypatch):
    base = sbd_folder(voc_folder(tmp_path), ["2009_000001"], ["2009_000002"])
    mask = base / "cls" / "2009_000002.mat"
    source = open_pairs(f"voc:{tmp_path}", "segmentation")
    mask.write_bytes(b"no matlab file")
    with pytest.raises(UnreadableImage, match=rf"{mask}: no mask of SBD \(GTcls\.Segmentation\): ") as caught:
        source.train.pair(5)
    assert len(str(caught.value).splitlines()) == 1
    savemat(mask, dict(GTcls=dict(Segmentation=np.zeros((2, 2)))))
    with pytest.raises(UnreadableImage, match=r"an array of shape \(2, 2\) of float64; a mask is \(H, W\) uint8"):
        source.train.pair(5)
    savemat(mask, dict(GTcls=dict(Segmentation=np.zeros((2, 2), np.uint8))))
    with pytest.raises(UnreadableImage, match="2 x 2 pixels, its image"):
        source.train.pair(5)
    savemat(mask, dict(other=1))
    with pytest.raises(UnreadableImage, match="no mask of SBD"):
        source.train.pair(5)
    mask.unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source.train.pair(5)
    with pytest.raises(UsageError, match=rf"{mask} is missing; the lists in {base} name it"):
        open_pairs(f"voc:{tmp_path}", "segmentation")
    (base / "val.txt").unlink()
    with pytest.raises(UsageError, match=r"val\.txt is missing"):
        open_pairs(f"voc:{tmp_path}", "segmentation")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageError, match=r"\.mat files need scipy; pip install scipy"):
        source.train.pair(4)


def test_scipy_is_missed_before_a_run_starts(tmp_path, monkeypatch):
    sbd_folder(voc_folder(tmp_path), ["2009_000001"], [])
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageError, match=r"\.mat files need scipy; pip install scipy"):
        open_pairs(f"voc:{tmp_path}", "segmentation")


def test_depths(tmp_path):
    source = open_pairs(f"depth:{depth_folder(tmp_path)}", "depth")
    for index in range(6):
        image, depth = source.train.pair(index)
        assert depth.dtype == torch.float32
        assert depth.unique().tolist() == [0, 1.5, 2.5]
        assert torch.equal(depth[1:] == 2.5, image[0, 1:] > 100)


def test_nyu(tmp_path):
    import h5py

    path = nyu_file(tmp_path)
    source = open_pairs(f"nyu:{path}", "depth")
    assert (len(source.train), len(source.test)) == (4, 2)
    image, depth = source.test.pair(1)
    with h5py.File(path) as file:  # (N, C, W, H)
        assert np.array_equal(image.numpy(), file["images"][5].transpose(0, 2, 1))
        assert np.array_equal(depth.numpy(), file["depths"][5].T)
    assert image.shape == (3, 12, 16)
    assert open_pairs(f"nyu:{path}", "depth", 1).train.image(0).shape == (1, 12, 16)


def test_unmeasured_depth_is_0(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.5, np.nan, np.inf, -1, 0]]))
    assert read_depth(str(tmp_path / "a.npy")).tolist() == [[1.5, 0, 0, 0, 0]]


def test_absurd_depth_was_not_measured(tmp_path):
    for kind in (np.float32, np.float64):
        np.save(tmp_path / "a.npy", np.array([[999_999, 1e6, 1.1e6, 1e10, np.finfo(kind).max]], kind))
        assert read_depth(str(tmp_path / "a.npy")).tolist() == [[999_999, 1e6, 0, 0, 0]]
    np.save(tmp_path / "a.npy", np.array([[1.5, 60_000, np.inf, np.nan]], np.float16))
    assert read_depth(str(tmp_path / "a.npy")).tolist() == [[1.5, np.float16(60_000), 0, 0]]


@pytest.mark.parametrize("kind", [np.uint16, np.int64])
def test_integers_are_no_metres(tmp_path, kind):
    place = depth_folder(tmp_path) / "val" / "depths" / "5.npy"
    np.save(place, np.full((24, 24), 1500, kind))
    told = rf"{place}: an array of shape \(24, 24\) of {np.dtype(kind)}; it must be \(H, W\) metres as floating-point"
    with pytest.raises(UsageError, match=told):
        open_pairs(f"depth:{tmp_path}", "depth")


def test_unmeasured_depth_of_nyu_is_0(tmp_path):
    import h5py

    path = nyu_file(tmp_path)
    with h5py.File(path, "r+") as file:
        file["depths"][0, 2, :5] = [np.nan, np.inf, -np.inf, -1, 1e30]
        expected = np.array(file["depths"][0].T)
    expected[:5, 2] = 0
    assert np.array_equal(open_pairs(f"nyu:{path}", "depth").train.pair(0)[1].numpy(), expected)


@pytest.mark.parametrize(
    ("images", "depths"),
    [
        ((6, 3, 16, 12), (6, 8, 6)),
        ((6, 3, 16, 12), (6, 12, 16)),
        ((6, 1, 16, 12), (6, 16, 12)),
        ((6, 3, 16, 12), (5, 16, 12)),
        ((6, 3, 16), (6, 16)),
        ((), ()),
    ],
)
def test_nyu_of_other_shapes(tmp_path, images, depths):
    import h5py

    path = nyu_file(tmp_path)
    with h5py.File(path, "w") as file:
        file["images"], file["depths"] = np.zeros(images, np.uint8), np.ones(depths, np.float32)
    with pytest.raises(UsageError) as caught:
        open_pairs(f"nyu:{path}", "depth")
    told = f"images of shape {images}, depths of shape {depths}; they must be (N, 3, W, H) and (N, W, H)"
    assert str(caught.value) == f"data.source: {path}: {told}"


def test_nyu_of_other_contents(tmp_path):
    import h5py

    path = nyu_file(tmp_path)
    with h5py.File(path, "w") as file:
        file.create_group("images")
    with pytest.raises(UsageError, match="is no labelled set of NYU Depth v2: ") as caught:
        open_pairs(f"nyu:{path}", "depth")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("images", "depths", "told"),
    [
        (np.float32, np.float32, "images of float32, depths of float32; they must be uint8"),
        (np.uint16, np.float32, "images of uint16, depths of float32; they must be uint8"),
        ("S4", np.float32, r"images of \|S4, depths of float32; they must be uint8"),
        ([("a", "i4"), ("b", "f8")], np.float32, r"images of \[.*, depths of float32; they must be uint8"),
        (np.uint8, np.uint16, "images of uint8, depths of uint16; they must be uint8 and floating-point"),
    ],
    ids=["floats", "16 bits", "text", "records", "depth in integers"],
)
def test_nyu_of_other_types(tmp_path, images, depths, told):
    import h5py

    path = nyu_file(tmp_path)
    with h5py.File(path, "w") as file:
        file["images"], file["depths"] = np.zeros((6, 3, 16, 12), images), np.ones((6, 16, 12), depths)
    with pytest.raises(UsageError, match=f"{path}: {told}") as caught:
        open_pairs(f"nyu:{path}", "depth")
    assert len(str(caught.value).splitlines()) == 1


def test_nyu_of_absurd_sizes(tmp_path):
    """Terabytes that are in no file: nothing is made for them."""
    import h5py

    path = nyu_file(tmp_path)
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (6, 3, 2**20, 2**20), np.uint8, chunks=(1, 3, 64, 64))
        file.create_dataset("depths", (6, 2**20, 2**20), np.float32, chunks=(1, 64, 64))
    with pytest.raises(UsageError, match="images of 1048576 x 1048576; at most 8192 pixels a side"):
        open_pairs(f"nyu:{path}", "depth")


def test_damaged_images_of_nyu_are_unreadable(tmp_path):
    """Whatever HDF5 raises: here a filter that is not there."""
    import h5py

    path = nyu_file(tmp_path)
    with h5py.File(path, "r+") as file:
        pixels = file["images"][:]
        del file["images"]
        file.create_dataset("images", data=pixels, chunks=(1, 3, 16, 12), compression="gzip")
        chunk = file["images"].id.get_chunk_info(1)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    split = NYUSplit(str(path), [0, 1], 3)
    assert split.image(0).shape == (3, 12, 16)
    with pytest.raises(UnreadableImage, match=rf"^{path}\[1\]: ") as caught:
        split.image(1)
    assert len(str(caught.value).splitlines()) == 1


def test_images_of_nyu_in_both_splits_are_refused(tmp_path):
    path = nyu_file(tmp_path)
    split = path.with_name("splits.mat")
    savemat(split, dict(trainNdxs=np.array([[2], [4], [5]]), testNdxs=np.array([[5], [6], [2]])))
    with pytest.raises(UsageError, match=f"{split} has 2 images, such as 2, in both trainNdxs and testNdxs; each must"):
        open_pairs(f"nyu:{path}", "depth")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (1.5, r"is no list of NYU Depth v2: trainNdxs holds 1\.5; it must hold integers"),
        (np.nan, "is no list of NYU Depth v2: .*NaN"),
        (0, "names images that"),
        (7, "names images that"),
    ],
)
def test_numbers_of_images_in_the_split_of_nyu(tmp_path, number, told):
    path = nyu_file(tmp_path)
    split = path.with_name("splits.mat")
    savemat(split, dict(trainNdxs=np.array([[2.0], [number]]), testNdxs=np.array([[5.0]])))  # MATLAB's are doubles
    with pytest.raises(UsageError, match=f"{split} {told}"):
        open_pairs(f"nyu:{path}", "depth")
    savemat(split, dict(trainNdxs=np.array([[2.0], [4.0]]), testNdxs=np.array([[5.0]])))
    assert open_pairs(f"nyu:{path}", "depth").train.places == [1, 3]


def broken(root, kind):
    """Break the first training pair of a folder; the file's name."""
    place = root / "train" / ("depths" if kind.startswith("depth") else "masks") / "0.png"
    if kind.endswith("size"):
        Image.fromarray(np.zeros((5, 7), np.uint16 if kind.startswith("depth") else np.uint8)).save(place)
    elif kind.endswith("label"):
        Image.fromarray(np.full((24, 24), 7, np.uint8)).save(place)
    elif kind.endswith("mode"):
        Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(place)
    elif kind.endswith("missing"):
        place.unlink()
    else:
        place.write_bytes(b"no picture")
    return place


REASONS = {
    "size": r"7 x 5 pixels, its image .*images/0\.png has 24 x 24",
    "label": r"class 7 is unknown; there are 0 to 1, and 255 to ignore",
    "mode": r"a RGB image; (a mask|depth) holds",
    "missing": r"is missing; .*images/0\.png needs it",
    "bytes": r"not a PNG file",
}


@pytest.mark.parametrize("kind", ["mask size", "mask label", "mask mode", "mask missing", "mask bytes"])
def test_broken_masks_are_named(tmp_path, kind):
    place = broken(masks_folder(tmp_path), kind)
    with pytest.raises(UsageError, match=f"{place}.*{REASONS[kind.split()[1]]}") as caught:
        open_pairs(f"masks:{tmp_path}", "segmentation")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["depth size", "depth mode", "depth missing", "depth bytes"])
def test_broken_depths_are_named(tmp_path, kind):
    place = broken(depth_folder(tmp_path), kind)
    with pytest.raises(UsageError, match=f"{place}.*{REASONS[kind.split()[1]]}"):
        open_pairs(f"depth:{tmp_path}", "depth")


def test_a_later_broken_mask_is_an_unreadable_image(tmp_path):
    source = open_pairs(f"masks:{masks_folder(tmp_path)}", "segmentation")
    broken(tmp_path, "mask size")
    with pytest.raises(UnreadableImage, match=r"masks/0\.png: 7 x 5 pixels"):
        source.train.pair(0)
    with pytest.raises(UnreadableImage, match=r"none\.png: No such file"):
        MaskValues(2).read(str(tmp_path / "none.png"))
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    with pytest.raises(UnreadableImage, match=r"array of shape \(2, 2, 2\)"):
        read_depth(str(tmp_path / "cube.npy"))


@pytest.mark.parametrize(
    ("source", "task", "match"),
    [
        (
            "digits",
            "segmentation",
            r"='digits'\) must be \"scenes:N\", \"voc:PATH\", \"masks:PATH\" or \"torchvision:NAME\" for segm",
        ),
        ("masks:x", "depth", r"must be \"scenes:N\", \"nyu:FILE.mat\" or \"depth:PATH\" for depth"),
        ("masks:nowhere", "segmentation", "nowhere is not a folder; it must hold train/images"),
        ("masks:", "segmentation", "masks: is not a folder"),
        ("depth:nowhere", "depth", "nowhere is not a folder"),
        ("voc:nowhere", "segmentation", "nowhere is not a folder; it must hold JPEGImages"),
        ("nyu:nowhere.mat", "depth", r"nowhere\.mat is not a file"),
    ],
)
def test_refusals(source, task, match):
    with pytest.raises(UsageError, match=match):
        open_pairs(source, task)


def test_what_a_layout_lacks(tmp_path):
    root = voc_folder(tmp_path / "voc")
    (root / "VOCdevkit/VOC2012/SegmentationClass/2008_000001.png").unlink()
    with pytest.raises(UsageError, match=r"SegmentationClass/2008_000001\.png is missing; .*val\.txt names it"):
        open_pairs(f"voc:{root}", "segmentation")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").unlink()
    with pytest.raises(UsageError, match=r"train\.txt is missing"):
        open_pairs(f"voc:{root}", "segmentation")
    (tmp_path / "nyu").mkdir()
    path = nyu_file(tmp_path / "nyu")
    path.with_name("splits.mat").unlink()
    with pytest.raises(UsageError, match=r"splits\.mat is missing"):
        open_pairs(f"nyu:{path}", "depth")
    path.write_bytes(b"no hdf5")
    path.with_name("splits.mat").write_bytes(b"")
    with pytest.raises(UsageError, match="is no labelled set of NYU Depth v2"):
        open_pairs(f"nyu:{path}", "depth")
    (tmp_path / "masks" / "train" / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match="train/masks is missing"):
        open_pairs(f"masks:{tmp_path / 'masks'}", "segmentation")
    root = masks_folder(tmp_path / "one", names="only\n")
    with pytest.raises(UsageError, match=r"classes\.txt holds 1 names"):
        open_pairs(f"masks:{root}", "segmentation")
