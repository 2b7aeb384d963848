"""The median side of a split's images, and whether they are grey."""

import numpy as np
from PIL import Image

from normfree.data import open_source
from normfree.data.sides import Sides, sides
from normfree.data.sources import FolderSplit


def split_of(folder, shapes, mode="RGB"):
    for index, shape in enumerate(shapes):
        Image.new(mode, shape).save(folder / f"{index}.png")
    return FolderSplit([(str(folder / f"{index}.png"), 0) for index in range(len(shapes))], 3)


def test_the_median_of_the_shorter_sides(tmp_path):
    assert sides(split_of(tmp_path, [(40, 30), (20, 500), (64, 64)])) == Sides(30, grey=False)


def test_grey_is_what_all_files_are(tmp_path):
    split = split_of(tmp_path, [(28, 28)] * 3, "L")
    assert sides(split) == Sides(28, grey=True)
    Image.new("RGB", (28, 28)).save(tmp_path / "1.png")
    assert sides(split) == Sides(28, grey=False)


def test_only_headers_of_files_are_read(tmp_path):
    split = split_of(tmp_path, [(400, 300)])
    path = tmp_path / "0.png"
    path.write_bytes(path.read_bytes()[:60])  # the header, and nothing of the pixels
    assert sides(split) == Sides(300, grey=False)


def test_what_cannot_be_read_does_not_count(tmp_path):
    split = split_of(tmp_path, [(40, 30), (50, 50)])
    (tmp_path / "1.png").write_bytes(b"nothing")
    assert sides(split) == Sides(30, grey=False)
    (tmp_path / "0.png").unlink()
    assert sides(split) is None


def test_numpy_files_and_arrays(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros((12, 20), np.uint8))
    assert sides(FolderSplit([(str(tmp_path / "0.npy"), 0)], 1)) == Sides(12, grey=True)
    assert sides(open_source("digits", 1).train) == Sides(8, grey=True)
