"""Images that are not of 8 bits: which values are black and white, that no level is lost, and what is refused."""

import tarfile

import image_files
import numpy as np
import pair_files
import pytest
import tifffile
import torch
from PIL import Image

from normfree import UsageError
from normfree.data import DataConfig, UnreadableImage, decode_image, digits
from normfree.data.mixing import to_uint8
from normfree.data.sources import FolderSplit, Source
from normfree.data.values import BYTES, resolve_value_range
from normfree.recipes import load_recipe
from normfree.tasks import open_images


def scene(top: float, dtype, seed: int = 0, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """Values from 0 to ``top``, both there."""
    values = np.random.default_rng(seed).random(size)
    values.flat[:2] = 0, 1
    return (values * top).astype(dtype)


def write(path, array: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array)
    return path


KINDS = {  # name, highest value, type, the range by "auto"
    "12 bits in 16": ("a.tif", 4095, np.uint16, (0, 4095)),
    "10 bits in png": ("a.png", 1023, np.uint16, (0, 1023)),
    "16 bits": ("a.tif", 65535, np.uint16, (0, 65535)),
    "int32": ("a.tif", 4000, np.int32, (0, 4095)),
    "uint32": ("a.tif", 1e6, np.uint32, (0, 2**20 - 1)),
    "int16 npy": ("a.npy", 3000, np.int16, (0, 4095)),
    "0 to 1": ("a.tif", 1, np.float32, (0, 1)),
    "0 to 1, float64": ("a.npy", 1, np.float64, (0, 1)),
    "0 to 255": ("a.tif", 255, np.float32, (0, 255)),
    "kelvin": ("a.tif", 312.5, np.float32, (0, 312.5)),
    "reflectance": ("a.npy", 0.25, np.float16, (0, 0.25)),
}


def of_files(*paths, channels: int = 1) -> Source:
    split = FolderSplit([(str(path), 0) for path in paths], channels)
    return Source(split, split, ["a", "b"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_range_is_found_and_every_level_kept(tmp_path, kind, channels):
    name, top, dtype, expected = KINDS[kind]
    values = scene(top, dtype)
    source, found = resolve_value_range(of_files(write(tmp_path / name, values), channels=channels), "auto")
    assert found == pytest.approx(expected)
    assert source.notes == (
        f"data.value_range: {found[0]:g} is black and {found[1]:g} is white, "
        f"by the 1 image that was looked at (1 {values.dtype})",
    )
    image = source.train.image(0)
    low, high = found
    exact = (values.astype(np.float64) - low) * 255 / (high - low)
    assert image.shape == (channels, 40, 50)
    np.testing.assert_allclose(image[0].numpy(), exact, rtol=1e-6, atol=1e-4)  # float32
    assert all(torch.equal(image[0], one) for one in image)
    assert len(image.unique()) == len(np.unique(values))


def test_bytes_are_exact_whatever_the_range(tmp_path):
    path = image_files.write(tmp_path / "a.png")
    for value_range in (None, "auto", (0.0, 1.0), (0.0, 65535.0)):
        image = decode_image(path, value_range=value_range)
        assert image.dtype == torch.uint8
        assert np.array_equal(image.permute(1, 2, 0).numpy(), image_files.pixels())
    source, found = resolve_value_range(of_files(path), "auto")
    assert (found, source.notes) == (BYTES, ())


@pytest.mark.parametrize("alpha", [False, True])
def test_colour_of_16_bits_keeps_them(tmp_path, alpha):
    """Pillow reads 8 of them."""
    rgb = np.stack([scene(4095, np.uint16, seed) for seed in range(3 + alpha)], axis=2)
    paths = [write(tmp_path / "a.tif", rgb[:, :, :3])]
    png = tmp_path / "b.png"
    png.write_bytes(png_of_16_bits(rgb))
    for path in [*paths, png]:
        source, found = resolve_value_range(of_files(path, channels=3), "auto")
        assert found == (0, 4095)
        image = source.train.image(0)
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), rgb[:, :, :3] * (255 / 4095), rtol=1e-6, atol=1e-4)
        grey = decode_image(path, 1, value_range=found)
        luminance = (rgb[:, :, :3] @ [0.299, 0.587, 0.114]) * (255 / 4095)
        assert np.abs(grey[0].numpy() - luminance).max() < 0.04  # rounded to a whole one of 4095


def png_of_16_bits(array: np.ndarray) -> bytes:
    """Of RGB or RGBA, which Pillow does not write."""
    import struct
    import zlib

    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("top", "dtype", "value_range", "message"),
    [
        (
            1,
            np.float32,
            None,
            r"its [12],\d+ different values \(0 to 1\) would become 2 of 256 levels; convert it to 8 bits",
        ),
        (1, np.float32, (0.0, 255.0), r"would become 2 of 256 levels"),
        (4095, np.int32, None, r"would become \d of 256 levels|1 of 256"),
        (200, np.uint16, (0.0, 65535.0), r"would become 2 of 256 levels|1 of 256"),
        (1e6, np.float32, (0.0, 1.0), r"would become 2 of 256 levels"),
    ],
)
def test_a_file_that_would_lose_nearly_all_levels_is_refused(tmp_path, top, dtype, value_range, message):
    path = write(tmp_path / "a.tif", scene(top, dtype))
    if dtype is np.int32:
        path = write(tmp_path / "a.tif", scene(top, dtype) + 300)
    with pytest.raises(UnreadableImage, match=message):
        decode_image(path, 1, value_range=value_range)


@pytest.mark.parametrize("value_range", [(0.0, 65535.0), (0.0, 1.0)])
def test_a_range_in_which_images_lose_their_levels_is_refused_at_the_start(tmp_path, value_range):
    paths = [write(tmp_path / f"{i}.tif", scene(4095, np.uint16, i)) for i in range(3)]
    with pytest.raises(UsageError, match=r"data\.value_range .* leaves (17|2) of 256 levels .* which are 0 to 4095"):
        resolve_value_range(of_files(*paths), value_range)
    resolve_value_range(of_files(*paths), (0.0, 4095.0))


def test_a_dark_image_among_bright_ones_is_no_mistake(tmp_path):
    paths = [write(tmp_path / f"{i}.tif", scene(top, np.uint16, i)) for i, top in enumerate((65535, 1500))]
    source, found = resolve_value_range(of_files(*paths), "auto")
    assert found == (0, 65535)
    assert len(source.train.image(1).unique()) > 1000


def test_mixed_types(tmp_path):
    grey, deep = image_files.write(tmp_path / "a.png"), write(tmp_path / "b.tif", scene(4095, np.uint16))
    source, found = resolve_value_range(of_files(grey, deep), "auto")
    assert found == (0, 4095)
    assert source.notes[0].endswith(
        "by the 2 images that were looked at (1 uint16, 1 uint8); images of 8 bits stay as they are"
    )
    real = write(tmp_path / "c.tif", scene(1, np.float32))
    with pytest.raises(UsageError, match=r"fits no mix of types \(1 float32, 1 uint16, of the 2 images"):
        resolve_value_range(of_files(deep, real), "auto")


def test_values_that_are_not_finite_are_named(tmp_path):
    values = scene(1, np.float32)
    values[3, 4:6] = np.nan
    with pytest.raises(UnreadableImage, match=r"a\.tif: 2 of its 2,000 values are not finite"):
        decode_image(write(tmp_path / "a.tif", values), 1, value_range=(0.0, 1.0))


def test_one_value_alone(tmp_path):
    with pytest.raises(UsageError, match="cannot be found: the 1 image that was looked at hold nothing but 7"):
        resolve_value_range(of_files(write(tmp_path / "a.tif", np.full((9, 9), 7, np.float32))), "auto")


def test_versions_before_are_kept(tmp_path):
    """Null: 16 bits become 8 by their upper half, numbers with a point are taken for 0..255."""
    values = scene(65535, np.uint16)
    for name in ("a.png", "a.tif"):
        read = decode_image(write(tmp_path / name, values), 1)
        assert read.dtype == torch.uint8
        assert np.array_equal(read[0].numpy(), values >> 8)
    real = scene(300, np.float32)
    with Image.open(write(tmp_path / "b.tif", real)) as image:
        before = np.array(image.convert("L"))
    assert np.array_equal(decode_image(tmp_path / "b.tif", 1)[0].numpy(), before)


@pytest.mark.parametrize("value_range", ["[1, 0]", "[0]", "[0, .inf]", "[3, 3]", "[0, 1, 2]"])
def test_a_range_is_checked(value_range):
    import yaml

    with pytest.raises(UsageError, match=r"data\.value_range .* must be auto or two finite numbers, the smaller first"):
        load_recipe("folder", {"data.value_range": yaml.safe_load(value_range)})


def test_every_source_of_files_has_the_range(tmp_path):
    """Folders, shards, masks, depth, objects: the first image of each is of 12 bits."""
    recipes = {}
    deep = scene(4095, np.uint16)
    for part in ("train", "val"):
        for label in ("a", "b"):
            write(tmp_path / "folder" / part / label / "0.tif", deep)
    recipes[f"imagefolder:{tmp_path / 'folder'}"] = "folder"
    for kind, make, recipe in (
        ("masks", pair_files.masks_folder, "demo_segmentation"),
        ("depth", pair_files.depth_folder, "demo_depth"),
    ):
        root = make(tmp_path / kind)
        for path in root.glob("*/images/*"):
            with Image.open(path) as image:
                height, width = image.height, image.width
            path.unlink()
            write(path.with_suffix(".tif"), scene(4095, np.uint16, size=(height, width)))
        recipes[f"{kind}:{root}"] = recipe
    for name, base in recipes.items():
        recipe = load_recipe(base, {"data.source": name})
        source = open_images(recipe)
        assert recipe.data.value_range == (0, 4095), name
        assert len(source.train.image(0).unique()) > 256, name
        assert len(source.test.image(0).unique()) > 256, name
        again = load_recipe(base, {"data.source": name, "data.value_range": [0, 65535]})
        with pytest.raises(UsageError, match=r"leaves 17 of 256 levels"):
            open_images(again)


def test_images_held_out_and_shards_have_the_range_too(tmp_path):
    for label in ("a", "b"):
        for i in range(3):
            write(tmp_path / "folder" / label / f"{i}.tif", scene(4095, np.uint16, i))
    recipes = {f"imagefolder:{tmp_path / 'folder'}": {"data.val_fraction": 0.3}}
    for part in ("train", "val"):
        with tarfile.open(tmp_path / f"{part}-0.tar", "w") as tar:
            for i in range(2):
                (tmp_path / "label").write_text(str(i))
                tar.add(tmp_path / "folder" / "a" / f"{i}.tif", f"{i}.tif")
                tar.add(tmp_path / "label", f"{i}.cls")
    recipes[f"wds:{tmp_path}"] = {}
    for name, fields in recipes.items():
        recipe = load_recipe("folder", {"data.source": name, **fields})
        source = open_images(recipe)
        assert recipe.data.value_range == (0, 4095), name
        assert len(source.train.image(0).unique()) > 256, name
        assert len(source.test.image(0).unique()) > 256, name


def test_embedded_images_are_bytes():
    recipe = load_recipe("digits")
    open_images(recipe)
    assert recipe.data.value_range == BYTES


def test_randaugment_sees_bytes(tmp_path):
    image = decode_image(write(tmp_path / "a.tif", scene(1, np.float32)), 3, value_range=(0.0, 1.0))
    assert to_uint8(image).dtype == torch.uint8
    assert DataConfig().value_range == "auto"
    assert digits().train.image(0).dtype == torch.uint8
