"""Thousands of damaged image files: read or named, never a crash, a warning, or another image in their place."""

import itertools
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from image_files import pixels, write
from PIL import Image, features
from selection import share

from normfree.data import EvalTransform, Loader, Mixing, Share, TrainTransform, UnreadableImage, decode_image
from normfree.data.sources import FolderSplit

VIEW = EvalTransform(12, 0, (0.0, 0.0, 0.0), (1 / 255,) * 3)
MIXED = TrainTransform(12, "none", False, (0.0, 0.0, 0.0), (1 / 255,) * 3)
# of forks beside threads, from Python 3.12 on, which is how torch starts workers; of more workers than cores
WARNED = ["This process .* is multi-threaded:DeprecationWarning", "This DataLoader will create .* worker:UserWarning"]
FORKS = pytest.mark.filterwarnings(*(f"ignore:{warned}" for warned in WARNED))


def exif(orientation: int = 6) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "a description"
    return tags


def sixteen_bits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (20, 24), dtype=np.uint16)


# name -> (ending, mode, how it is saved)
KINDS = {
    "jpeg": (".jpg", None, {}),
    "jpeg progressive": (".jpg", None, dict(progressive=True, exif=exif(), icc_profile=b"no profile" * 9)),
    "jpeg cmyk": (".jpg", "CMYK", {}),
    "jpeg grey": (".jpg", "L", {}),
    "png": (".png", None, dict(exif=exif())),
    "png palette": (".png", "P", dict(transparency=0)),
    "png alpha": (".png", "RGBA", {}),
    "png bits": (".png", "1", {}),
    "png 16 bits": (".png", "I;16", {}),
    "webp": (".webp", None, dict(exif=exif())),
    "webp lossless": (".webp", "RGBA", dict(lossless=True)),
    "tiff": (".tif", None, dict(exif=exif())),
    "tiff lzw": (".tif", None, dict(compression="tiff_lzw")),
    "tiff deflate": (".tif", "CMYK", dict(compression="tiff_adobe_deflate")),
    "tiff jpeg": (".tif", None, dict(compression="jpeg")),
    "tiff fax": (".tif", "1", dict(compression="group4")),
    "tiff 16 bits": (".tif", "I;16", {}),
    "tiff float": (".tif", "F", {}),
    "bmp": (".bmp", None, {}),
    "bmp palette": (".bmp", "P", {}),
    "gif": (".gif", "P", dict(transparency=3)),
    "ppm": (".ppm", None, {}),
    "pgm 16 bits": (".pgm", "I;16", {}),
    "jpeg 2000": (".jpg", None, dict(format="JPEG2000")),  # a file is what it holds, not what it is called
    "avif": (".jpg", None, dict(format="AVIF")),
}
if tuple(map(int, PIL.__version__.split(".")[:2])) < (13, 0):
    del KINDS["tiff fax"]  # its libtiff leaves rows behind a damaged one as they were in memory
KINDS = {
    kind: how for kind, how in KINDS.items() if dict(avif="avif").get(kind, "jpg_2000") in features.get_supported()
}


def image_file(folder: Path, kind: str, seed: int = 0) -> Path:
    ending, mode, options = KINDS[kind]
    path = folder / f"{kind} {seed}{ending}"
    return write(path, sixteen_bits(seed)) if mode == "I;16" else write(path, pixels(20, 24, seed), mode, **options)


def flip_bits(content: bytearray, draw: np.random.Generator, other: bytes) -> None:
    for place in draw.integers(len(content), size=draw.integers(1, 20)):
        content[place] ^= 1 << draw.integers(8)


def truncate(content: bytearray, draw: np.random.Generator, other: bytes) -> None:
    del content[draw.integers(len(content)) :]


def change_header(content: bytearray, draw: np.random.Generator, other: bytes) -> None:
    for place in draw.integers(min(len(content), 120), size=3):
        content[place] = draw.integers(256)


def huge_numbers(content: bytearray, draw: np.random.Generator, other: bytes) -> None:
    place, length = draw.integers(min(len(content), 120)), draw.integers(2, 5)
    content[place : place + length] = b"\xff" * length


def blank(content: bytearray, draw: np.random.Generator, other: bytes) -> None:
    place, length = draw.integers(len(content)), draw.integers(1, 64)
    content[place : place + length] = bytes(int(length))


def swap_header(content: bytearray, draw: np.random.Generator, other: bytes) -> None:
    length = draw.integers(4, 60)
    content[:length] = other[:length]


MUTATIONS = [flip_bits, truncate, change_header, huge_numbers, blank, swap_header]


def mutants(folder: Path, kind: str, each: int) -> list[tuple[Path, bytes]]:
    """Damaged files of a kind: ``each`` of every mutation, written into the folder."""
    draw = np.random.default_rng(zlib.crc32(kind.encode()))
    whole = image_file(folder, kind).read_bytes()
    others = [image_file(folder, other).read_bytes() for other in KINDS if other != kind]
    made = []
    for mutation in MUTATIONS:
        for i in range(each):
            content = bytearray(whole)
            mutation(content, draw, others[draw.integers(len(others))])
            path = folder / f"{mutation.__name__}{i:02}{KINDS[kind][0]}"
            path.write_bytes(content)
            made.append((path, bytes(content)))
    return made


@pytest.mark.scaled
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_named(tmp_path, kind):
    """Twenty of every mutation: 3,000 files in all; a fifth of them by default."""
    unreadable, each = 0, share(20)
    for path, content in mutants(tmp_path, kind, each):
        try:
            image = decode_image(path)
        except UnreadableImage as error:
            unreadable += 1
            message = str(error)
            assert message.startswith(f"{path}: ")
            assert message.count(str(path)) == 1
            assert len(message.splitlines()) == 1
            assert len(message) < len(str(path)) + 200
            with pytest.raises(UnreadableImage, match=r"^a\.tar:1: "):
                decode_image(content, name="a.tar:1")
        else:
            assert image.dtype == torch.uint8
            assert image.ndim == 3
            assert image.shape[0] == 3
            assert torch.equal(image, decode_image(content))
    # all of the truncated at the very least, nearly; not all, but of PNG, whose parts have checksums
    files = each * len(MUTATIONS)
    assert each <= unreadable < files + kind.startswith("png")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_files_of_these_kinds_are_read(tmp_path, kind, channels):
    size = (24, 20) if "exif" in KINDS[kind][2] else (20, 24)  # upright
    assert decode_image(image_file(tmp_path, kind), channels).shape == (channels, *size)


@pytest.mark.parametrize("kind", ["png 16 bits", "tiff 16 bits", "pgm 16 bits"])
def test_sixteen_bits_of_every_format_are_scaled_not_clipped(tmp_path, kind):
    read = decode_image(image_file(tmp_path, kind), 1)[0].numpy()
    assert np.abs(read.astype(int) - (sixteen_bits(0) >> 8)).max() <= 1


@pytest.mark.parametrize(
    "tags", [b"Exif\0\0" + b"rubbish" * 4, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"]
)
def test_broken_metadata_is_no_reason_to_lose_an_image(tmp_path, tags):
    path = write(tmp_path / "a.jpg", pixels(20, 24), exif=tags)
    assert decode_image(path).shape == (3, 20, 24)


def test_filters_of_warnings_are_left_as_they_were(tmp_path):
    before = list(warnings.filters)
    decode_image(image_file(tmp_path, "png palette"))
    assert warnings.filters == before


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory) -> FolderSplit:
    """Whole and damaged files of every kind, in turns."""
    root, samples = tmp_path_factory.mktemp("mixed"), []
    for number, kind in enumerate(KINDS):
        for i, (path, _) in enumerate(mutants(root / kind, kind, 3)):
            samples += [(str(path), number), (str(image_file(root / kind / "whole", kind, i)), number)]
    return FolderSplit(samples, 3)


@pytest.fixture(scope="module")
def expected(mixed_folder) -> dict[int, torch.Tensor | str]:
    """By index: what the network would see, or the message."""
    results = {}
    for index in range(len(mixed_folder)):
        try:
            results[index] = VIEW(mixed_folder.image(index))
        except UnreadableImage as error:
            results[index] = str(error)
    return results


@FORKS
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_leaves_out_the_unreadable_and_nothing_else(mixed_folder, expected, workers):
    loader = Loader(mixed_folder, VIEW, 37, shape=(3, 12, 12), seed=4, shuffle=True, workers=workers)
    order = [key.index for keys in loader.batches for key in keys]
    assert sorted(order) == list(range(len(mixed_folder)))
    batches = list(loader)
    seen = [index for batch in batches for index in batch.indices.tolist()]
    assert seen == [index for index in order if not isinstance(expected[index], str)]
    named = [str(one) for batch in batches for one in batch.unreadable]
    assert named == [expected[index] for index in order if isinstance(expected[index], str)]
    assert len(named) > 200
    for batch in batches:
        for image, label, index in zip(batch.images, batch.labels.tolist(), batch.indices.tolist(), strict=True):
            assert torch.equal(image, expected[index])
            assert label == mixed_folder.label(index)


@FORKS
@pytest.mark.parametrize("workers", [0, 2])
def test_with_mixing_a_pair_is_left_out_with_either_image(mixed_folder, expected, workers):
    mixing = Mixing(0.2, 1.0)
    loader = Loader(mixed_folder, MIXED, 37, shape=(3, 12, 12), shuffle=True, workers=workers, mixing=mixing)
    keys = [key for batch in loader.batches for key in batch]
    broken = {index for index, result in expected.items() if isinstance(result, str)}
    batches = list(loader)
    seen = [index for batch in batches for index in batch.indices.tolist()]
    kept = [key for key in keys if not {key.index, key.partner} & broken]
    assert seen == [key.index for key in kept]
    partners = [label for batch in batches for label in batch.partners.tolist()]
    assert partners == [mixed_folder.label(key.partner) for key in kept]
    named = [str(one) for batch in batches for one in batch.unreadable]
    firsts = [key.index if key.index in broken else key.partner for key in keys if {key.index, key.partner} & broken]
    assert named == [expected[index] for index in firsts]
    assert set(named) == {expected[index] for index in broken}


class Small:
    """Image i is the number i."""

    def __len__(self) -> int:
        return 103

    def image(self, index: int) -> torch.Tensor:
        return torch.full((1, 2, 2), index, dtype=torch.uint8)

    def label(self, index: int) -> int:
        return index


@FORKS
@pytest.mark.parametrize("mixing", [None, Mixing()])
def test_samples_do_not_depend_on_workers_and_are_divided_over_processes(mixing):
    transform = TrainTransform(2, "none", False, (0.0,), (1 / 255,))

    def epoch(workers: int = 0, share: Share = Share(), number: int = 3) -> list[list[tuple[int, int]]]:  # noqa: B008
        loader = Loader(Small(), transform, 10, seed=2, shuffle=True, workers=workers, share=share, mixing=mixing)
        loader.set_epoch(number)
        pairs = []
        for batch in loader:
            partners = batch.labels if batch.partners is None else batch.partners
            pairs.append(list(zip(batch.indices.tolist(), partners.tolist(), strict=True)))
        return pairs

    whole = epoch()
    for column in (0, 1):  # each index once as first, and once as partner
        assert sorted(pair[column] for batch in whole for pair in batch) == list(range(103))
    assert epoch(number=4) != whole
    for workers in (1, 2, 4):
        assert epoch(workers) == whole
    for world in (2, 3, 16):  # of 16, some have no part in a batch of 10
        shares = [epoch(share=Share(rank, world)) for rank in range(world)]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == whole
        assert epoch(2, Share(1, world)) == shares[1]
