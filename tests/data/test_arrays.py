"""Images of any number of channels: NumPy files, TIFF files of several bands or pages, transparency."""

import image_files
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from normfree import UsageError
from normfree.data import DataConfig, EvalTransform, TrainTransform, UnreadableImage, decode_image, open_source
from normfree.data.mixing import Mixing
from normfree.recipes import load_recipe
from normfree.tasks.statistics import image_statistics


def bands(count: int, dtype=np.uint8, size=(9, 13)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (*size, count)).astype(dtype)


def shapes(array: np.ndarray) -> dict[str, np.ndarray]:
    return {"hwc": array, "chw": np.ascontiguousarray(np.moveaxis(array, -1, 0))}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("suffix", [".npy", ".tif", "pages.tif"])
def test_any_number_of_channels(tmp_path, count, layout, suffix):
    array, path = bands(count), tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, shapes(array)[layout])
    elif suffix == ".tif":
        how = dict(photometric="minisblack", planarconfig="contig" if layout == "hwc" else "separate")
        tifffile.imwrite(path, shapes(array)[layout], **(how if count > 1 else {}))
    else:
        tifffile.imwrite(path, shapes(array)["chw"], photometric="minisblack")
    if suffix == "pages.tif" and count in (1, 3):  # the first frame, as of an animation
        assert decode_image(path, 1).shape == (1, 9, 13)
        return
    image = decode_image(path, count, value_range=(0.0, 255.0))
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), array)


def test_deep_bands(tmp_path):
    array = (bands(5) * np.uint16(16)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig")
    image = decode_image(tmp_path / "a.tif", 5, value_range=(0.0, 4095.0))
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), array * (255 / 4095), rtol=1e-6)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_transparency_is_a_channel_where_it_is_asked_for(tmp_path, mode, channels):
    array = bands(channels)
    Image.fromarray(array, mode=None).save(tmp_path / "a.png")
    assert np.array_equal(decode_image(tmp_path / "a.png", channels).permute(1, 2, 0).numpy(), array)
    assert decode_image(tmp_path / "a.png", 3).shape == (3, 9, 13)


@pytest.mark.parametrize(
    ("name", "count", "channels", "message"),
    [
        ("a.npy", 4, 3, "4 channels; 3 are needed"),
        ("a.npy", 3, 4, "3 channels; 4 are needed"),
        ("a.tif", 5, 4, "5 channels; 4 are needed"),
        ("a.png", 3, 4, "3 channels; 4 are needed"),
        ("a.png", 3, 2, "3 channels; 2 are needed"),
    ],
)
def test_other_channels_are_refused(tmp_path, name, count, channels, message):
    path, array = tmp_path / name, bands(count)
    if name.endswith("npy"):
        np.save(path, array)
    elif name.endswith("tif"):
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    else:
        image_files.write(path, array)
    with pytest.raises(UnreadableImage, match=message):
        decode_image(path, channels)


def test_grey_and_colour_of_arrays_become_each_other(tmp_path):
    np.save(tmp_path / "rgb.npy", bands(3))
    np.save(tmp_path / "grey.npy", bands(1)[:, :, 0])
    grey = decode_image(tmp_path / "rgb.npy", 1)[0].numpy()
    assert np.abs(grey - bands(3) @ [0.299, 0.587, 0.114]).max() <= 0.5
    assert torch.equal(decode_image(tmp_path / "grey.npy", 3)[2], torch.from_numpy(bands(1)[:, :, 0]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(512), r"an array of shape \(512,\) of float64; an image is"),
        (np.zeros((2, 3, 4, 5)), r"an array of shape \(2, 3, 4, 5\)"),
        (np.array([["a"]]), "of <U1"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array([[None]]), "of object"),
        (np.zeros((3, 3), complex), "of complex128"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UnreadableImage, match=message):
        decode_image(tmp_path / "a.npy", 1)


def test_a_header_that_claims_terabytes(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((100, 100), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content.replace(b"(100, 100)", b"(10**9, 9)"))
    with pytest.raises(UnreadableImage):
        decode_image(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(
        content.replace(b"(100, 100), }", b"(1000000, 1000000), }").replace(b"        \n", b"\n", 1)
    )
    with pytest.raises(UnreadableImage):
        decode_image(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(UnreadableImage):
        decode_image(tmp_path / "a.npy")


@pytest.mark.parametrize("channels", [2, 4])
def test_transforms_of_any_number_of_channels(channels):
    image = torch.from_numpy(bands(channels, size=(30, 40))).permute(2, 0, 1)
    data = DataConfig(channels=channels)
    mean, std = image_statistics(data)
    assert (mean, std) == ((0.5,) * channels, (0.5,) * channels)
    generator = torch.Generator().manual_seed(0)
    train = TrainTransform(8, "distorted", True, mean, std)
    views = [train.view(image, generator) for _ in range(2)]
    mixed, _ = Mixing(0.2, 1.0)(*views, 0, 4, generator)
    assert train.finish(mixed, generator).shape == (channels, 8, 8)
    assert EvalTransform(8, 4, mean, std)(image).shape == (channels, 8, 8)


@pytest.mark.parametrize(("field", "value"), [("randaugment_layers", 4), ("color", True)])
def test_augmentation_of_colours_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=rf"data\.{field} \(={value}\) is for images of 1 or 3 channels .*, not for 4"):
        load_recipe("folder", {"data.channels": 4, f"data.{field}": value})


@pytest.mark.parametrize("source", ["digits", "scenes:4"])
def test_embedded_images_are_grey_or_rgb(source):
    from normfree.data.objects import open_objects
    from normfree.data.pairs import open_pairs

    openers = [open_source] if source == "digits" else [open_objects, lambda s, c: open_pairs(s, "depth", c)]
    for opener in openers:
        with pytest.raises(UsageError, match=r"data\.channels \(=4\) must be 1 or 3 for"):
            opener(source, 4)
