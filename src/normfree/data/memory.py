"""Decoded images kept in memory, so that processors train instead of decoding: ``data.cache``.

What an image is, and why it is unreadable, is as without it, to the last bit.
"""

import io
import math
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..errors import RunFailed, UsageError
from ..words import counted
from .arrays import is_deep
from .decode import UnreadableImage, named, threads_decode
from .detection import Objects
from .machine import cores, memory
from .sources import Source
from .volume_folders import VolumePairs
from .workers import COMPUTED, MAX_WORKERS, innermost, workers_for

AUTOMATIC = 2**30  # bytes of images that are kept where nobody says; of one machine
SMALL = 96  # pixels a side, up to which a decoded image needs no process of its own
SAMPLE = 32  # images of a split that are looked at
CHUNK = 2**26  # bytes that are taken from the system at once
ALIGNED = 16  # bytes: places in a chunk are multiples
TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64, torch.bool)
SMALLER = ((torch.uint8, 0, 255), (torch.int16, -(2**15), 2**15 - 1), (torch.int32, -(2**31), 2**31 - 1))


class Kept:
    """Tensors of up to four axes packed into few, so that processes that share them copy nothing."""

    def __init__(self, length: int):
        self.chunks: list[Tensor] = []
        self.free = 0  # where the last chunk goes on
        self.places = np.zeros((length, 2), np.int64)  # chunk and place
        self.shapes = np.zeros((length, 4), np.int32)
        self.kinds = np.full((length, 3), -1, np.int8)  # stored type, own type, order of the axes

    def put(self, index: int, values: Tensor) -> None:
        """Keep a tensor: integers as the smallest type that holds them, (C, H, W) in the order that it has."""
        own, shape = values.dtype, values.shape
        channels_last = values.ndim == 3 and values.stride() == (1, shape[2] * shape[0], shape[0])
        flat = (values.permute(1, 2, 0) if channels_last else values).reshape(-1)
        if own == torch.int64 and len(flat):
            low, high = int(flat.min()), int(flat.max())
            flat = flat.to(next((one for one, least, most in SMALLER if least <= low and high <= most), own))
        content = flat.view(torch.uint8) if flat.dtype != torch.bool else flat.to(torch.uint8)
        if not self.chunks or self.free + len(content) > len(self.chunks[-1]):
            self.chunks.append(torch.empty(max(CHUNK, len(content)), dtype=torch.uint8))
            self.free = 0
        self.chunks[-1][self.free : self.free + len(content)] = content
        self.places[index] = len(self.chunks) - 1, self.free
        self.shapes[index, : len(shape)] = shape
        self.kinds[index] = TYPES.index(flat.dtype), TYPES.index(own), values.ndim + 8 * channels_last
        self.free += -(-len(content) // ALIGNED) * ALIGNED

    def get(self, index: int) -> Tensor:
        """What was put there, which is not to be changed in place."""
        stored, own, order = self.kinds[index].tolist()
        chunk, start = self.places[index].tolist()
        shape: list[int] = self.shapes[index, : order % 8].tolist()
        size = TYPES[stored].itemsize
        for side in shape:
            size *= side
        flat = self.chunks[chunk][start : start + size].view(TYPES[stored])
        if order > 8:
            flat = flat.view(shape[1], shape[2], shape[0]).permute(2, 0, 1)
            return flat.to(TYPES[own])
        return flat.view(shape).to(TYPES[own])

    def __contains__(self, index: int) -> bool:
        return bool(self.kinds[index, 0] >= 0)

    @property
    def bytes(self) -> int:
        """Of what is kept."""
        return sum(map(len, self.chunks[:-1])) + self.free


@dataclass(frozen=True)
class MemorySplit:
    """The images of another split, kept in memory; with ``targets`` its masks or depth maps, too."""

    split: Any
    images: Kept
    targets: Kept | None
    unreadable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.split)

    def image(self, index: int) -> Tensor:
        if index in self.unreadable:
            raise UnreadableImage(self.unreadable[index])
        return self.images.get(index)

    def pair(self, index: int) -> tuple[Tensor, Any]:
        image = self.image(index)
        return image, self.split.objects(index) if self.targets is None else self.targets.get(index)

    def label(self, index: int) -> int:
        return self.split.label(index)

    def target(self, index: int) -> Tensor:
        return self.split.target(index)

    def name(self, index: int) -> str:
        return self.split.name(index)


@dataclass(frozen=True)
class Memory:
    """The splits of a source as they are kept, and what to tell."""

    train: MemorySplit
    test: MemorySplit
    told: str
    workers: int  # that are of use


def kept(
    source: Source[Any], cache: bool | None, *, pairs: bool, passes: float, timeout: float | None = None
) -> Memory | None:
    """The images of a run in memory; None: they are decoded each time.

    Args:
        cache: ``data.cache``; None: where images take a GiB at most and are seen more than once.
        pairs: with their targets, except objects, which are made of little.
        passes: epochs of the run.
        timeout: seconds for an image; None or 0: no limit.

    Raises:
        UsageError: more than the memory of this machine is asked for.
        RunFailed: an image takes longer.
    """
    if cache is False or isinstance(innermost(source.train), COMPUTED) or (cache is None and passes <= 1):
        return None
    seen = [looked_at(split, pairs) for split in (source.train, source.test)]
    if cache is None and not any(side for _, side in seen):  # none can be read, which training says
        return None
    size = round(sum(mean * len(split) for (mean, _), split in zip(seen, (source.train, source.test), strict=True)))
    largest = max(side for _, side in seen)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if cache is None and (size * here > min(AUTOMATIC, memory() // 4) or not (_shared() or largest <= SMALL)):
        return None
    if size * here > memory():
        each = f" in each of {here} processes" if here > 1 else ""
        what = f"decoded images take about {_amount(size)}{each}, and this machine has {_amount(memory())}"
        raise UsageError(f"data.cache (=True): {what}; leave it out, or give --data.cache false")
    start = time.monotonic()
    train, test = (_filled(split, pairs, timeout) for split in (source.train, source.test))
    took = time.monotonic() - start
    size = sum(part.bytes for split in (train, test) for part in (split.images, split.targets) if part is not None)
    told = f"{counted(len(train) + len(test), 'image')} are kept in memory: {_amount(size)}, decoded in {took:.0f} s"
    sides = [int(split.images.shapes[:, 1:].max(initial=0)) for split in (train, test)]
    return Memory(train, test, told, 0 if max(sides) <= SMALL else workers_for(source))


def looked_at(split: Any, pairs: bool) -> tuple[float, int]:
    """How many bytes images of a split take in the mean, by a sample of them, and the longest side seen."""
    sizes, side = [], 0
    order = sorted(random.Random(0).sample(range(len(split)), min(SAMPLE, len(split))))
    per_pixel: float | None = None
    for index in order:
        try:
            if pairs and per_pixel is None:  # masks are bytes, depth is not
                per_pixel = _per_pixel(split, index)
            shape, size = _image_size(split, index)
        except UnreadableImage:
            continue
        sizes.append(size + (per_pixel or 0) * math.prod(shape))
        side = max(side, *shape)
    return (sum(sizes) / len(sizes) if sizes else 0.0), side


def _per_pixel(split: Any, index: int) -> float:
    """Bytes that the target of a pixel takes."""
    target = split.pair(index)[1]
    if isinstance(target, Objects):
        return 0
    one = Kept(1)
    one.put(0, target)
    return one.bytes / max(1, target.numel())


def _image_size(split: Any, index: int) -> tuple[tuple[int, ...], int]:
    """Sides and bytes of an image, by the head of its file where that is known."""
    inner, place = split, index
    while inner is not innermost(split):
        inner, place = (inner.split, inner.indices[place]) if hasattr(inner, "indices") else (inner.images, place)
    if isinstance(inner, VolumePairs):
        return inner.size(place)
    file = getattr(inner, "file", None)
    if file is not None:
        content = file(place)
        try:
            with named(content), Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
                if not is_deep(image) and inner.channels in (1, 3):
                    return (image.height, image.width), image.height * image.width * inner.channels
        except UnreadableImage:  # of another kind, or none: decoding says it
            pass
    image = inner.image(place)
    return tuple(image.shape[1:]), image.numel() * image.element_size()


def _filled(split: Any, pairs: bool, timeout: float | None) -> MemorySplit:
    """Decode all images of a split."""
    objects = pairs and hasattr(split, "objects")
    targets = Kept(len(split)) if pairs and not objects else None
    found = MemorySplit(split, Kept(len(split)), targets)
    read = split.image if targets is None else split.pair
    for index, got in enumerate(_decoded(read, split, timeout)):
        if isinstance(got, UnreadableImage):
            found.unreadable[index] = str(got)
        elif targets is None:
            found.images.put(index, got)
        else:
            found.images.put(index, got[0])
            targets.put(index, got[1])
    return found


def _decoded(read: Callable[[int], Any], split: Any, timeout: float | None) -> Iterator[Any]:
    """What ``read`` gives for each image, or its UnreadableImage, in their order, by several threads."""

    def one(index: int) -> Any:
        try:
            return read(index)
        except UnreadableImage as error:
            return error

    bar = tqdm(total=len(split), desc="decoding", unit="image", delay=2, leave=False, disable=None)
    with threads_decode(), ThreadPool(min(MAX_WORKERS, cores())) as pool, bar:
        every = pool.imap(one, range(len(split)))
        for index in range(len(split)):
            try:
                yield every.next(timeout or None)
            except multiprocessing.TimeoutError:
                raise RunFailed(
                    f"image {split.name(index)} is not decoded after {timeout:g} s (data.timeout)"
                ) from None
            bar.update()


def _shared() -> bool:
    """Whether processes that are started share the memory of this one."""
    return (multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]) == "fork"


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
