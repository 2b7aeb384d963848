"""What a network says about images, whatever its task: the parts that every task fills in."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import RunFailed, UsageError


@dataclass(frozen=True)
class PredictOptions:
    """How a network answers, and where files about its answers go.

    Attributes:
        network: the text that named it.
        images: files and folders.
        top: classes per image; None: 5.
        size: side in pixels of what the network sees; None: the recipe's test size.
        antialias: shrink images with antialiasing, instead of as the network was evaluated.
        csv: a table of all answers; as_json: a line of JSON per image.
        out, masks, depths: folders for pictures, label images and depth maps.
        boxes: a file of COCO's results; annotations: where the numbers of images and categories are from.
        score: least score of objects.
    """

    network: str
    images: Sequence[str]
    top: int | None = None
    size: int | None = None
    device: str = "auto"
    batch_size: int = 1
    antialias: bool = False
    as_json: bool = False
    csv: str | None = None
    out: str | None = None
    masks: str | None = None
    depths: str | None = None
    boxes: str | None = None
    annotations: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Asked:
    """An image that was read: its file, a name for files about it, and its pixels (C, H, W) uint8."""

    path: Path
    name: str
    image: Tensor


class Answers:
    """What a network says about images, and the files that are written about it; a subclass per task.

    Attributes:
        channels, value_range: that images are decoded to, see :func:`normfree.data.decode_image`.
        columns: of the CSV file, after the image's path; known when the first image was asked about.
        picture_ending: of pictures that are drawn, after the image's name.
    """

    channels: int = 3
    value_range: tuple[float, ...] | None = None
    columns: Sequence[str] = ()
    picture_ending: str = ".png"

    def begin(self, paths: Sequence[Path]) -> None:
        """The start: all images that are asked about."""

    def placed(self, path: Path, image: Tensor) -> Tensor:
        """An upright image as answers are to be about it.

        Raises:
            UnreadableImage: it is not the image that they are to be about.
        """
        return image

    def view(self, image: Tensor) -> Tensor:
        """What the network sees of an image (C, H, W) uint8: (C, H', W') float32."""
        raise NotImplementedError

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Iterable[Any]:
        """An answer for each of a batch: ``seen`` is (N, C, H', W'), ``images`` are as they were decoded."""
        raise NotImplementedError

    def tell(self, asked: Asked, answer: Any) -> dict[str, Any]:
        """What is said about an image, as plain data; writes the files about it."""
        raise NotImplementedError

    def lines(self, told: dict[str, Any]) -> list[str]:
        """The same for people."""
        raise NotImplementedError

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        """The same as rows of the CSV file."""
        raise NotImplementedError

    def finish(self) -> list[str]:
        """The end: write what is about all images; what was found in all, in lines."""
        return []


def writing(place: str | Path, error: OSError) -> RunFailed:
    """Of a file that cannot be written."""
    return RunFailed(f"{place} cannot be written: {error.strerror or error}")


def make_folder(flag: str, folder: str | Path) -> Path:
    """A folder for files about images.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--{flag} {folder} cannot be made: {error.strerror or error}") from error
    return Path(folder)
