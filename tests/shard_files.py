"""Shards made up for a test."""

import io
import tarfile
from pathlib import Path

from image_files import pixels
from PIL import Image


def png(number: int) -> bytes:
    """An image of 12 x 12 pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels(12, 12, number)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, members: dict[str, bytes], **options) -> Path:
    """A tar of members by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def numbered(first: int, last: int) -> dict[str, bytes]:
    """Images first..last-1 of label number % 3."""
    return {
        f"{n:05}.{ending}": content
        for n in range(first, last)
        for ending, content in (("png", png(n)), ("cls", str(n % 3).encode()))
    }


def folder(root: Path, shards: int = 3, each: int = 4) -> Path:
    """Images 0, 1, ... to train, 100 to 102 to test."""
    for i in range(shards):
        shard(root / f"set-train-{i:04}.tar", numbered(i * each, (i + 1) * each))
    shard(root / "set-val-00.tar", numbered(100, 103))
    return root
