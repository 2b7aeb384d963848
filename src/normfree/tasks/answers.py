"""Predictions for images: the interface that every task implements."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import decode_image
from ..errors import RunFailed, UsageError


@dataclass(frozen=True)
class PredictOptions:
    """Options of ``normfree predict``.

    Attributes:
        network: its name or path, as it was given.
        images: files and folders.
        top: classes per image; None: 5.
        size: side of the network's input in pixels; None: the test size of the recipe.
        antialias: resize images with antialiasing, instead of as in evaluation.
        csv: a file for a table of all predictions; as_json: print a line of JSON per image.
        out, masks, depths: folders for pictures, label images and depth maps.
        boxes: a file for results in COCO's format; annotations: a file with the ids of images and categories.
        score: minimum score of objects.
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
    """An image that was read: its file, a name for output files, and its pixels (C, H, W) uint8."""

    path: Path
    name: str
    image: Tensor


class Answers:
    """The predictions of a network, as text, as data and as files; each task has a subclass.

    Attributes:
        channels, value_range: for decoding images, see :func:`normfree.data.decode_image`.
        columns: of the CSV file, after the image's path; set after the first :meth:`ask`.
        picture_ending: end of the file names of pictures, after the image's name.
        endings: of the files that are read, among those of a folder; None: those of image files.
        mask_endings: of the files that ``--masks`` writes, after the image's name.
        default_masks: the folder of masks where ``--masks`` is not given; None: none are written.
    """

    channels: int = 3
    value_range: tuple[float, ...] | None = None
    columns: Sequence[str] = ()
    picture_ending: str = ".png"
    endings: tuple[str, ...] | None = None
    mask_endings: tuple[str, ...] = (".png",)
    default_masks: Path | None = None

    def begin(self, paths: Sequence[Path]) -> None:
        """Called once before all else, with the paths of all images."""

    def name(self, path: Path) -> str:
        """What files about an image are called, without their ending."""
        return path.stem

    def read(self, path: Path) -> Tensor:
        """An image file as (C, H, W), upright; of volumes (C, D, H, W).

        Raises:
            UnreadableImage: it cannot be read.
        """
        return decode_image(path, self.channels, value_range=self.value_range)

    def placed(self, path: Path, image: Tensor) -> Tensor:
        """An upright image in the orientation that predictions are for.

        Raises:
            UnreadableImage: its size is not the expected one.
        """
        return image

    def view(self, image: Tensor) -> Tensor:
        """The network's input for an image (C, H, W) uint8: (C, H', W') float32."""
        raise NotImplementedError

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Iterable[Any]:
        """A prediction for each image of a batch: ``seen`` is (N, C, H', W'), ``images`` are as they were decoded."""
        raise NotImplementedError

    def tell(self, item: Asked, answer: Any) -> dict[str, Any]:
        """The prediction for an image as plain data; writes its files."""
        raise NotImplementedError

    def lines(self, result: dict[str, Any]) -> list[str]:
        """The same as lines of text."""
        raise NotImplementedError

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        """The same as rows of the CSV file."""
        raise NotImplementedError

    def finish(self) -> list[str]:
        """Called once at the end: write the files about all images; returns the lines of a summary."""
        return []


def writing(place: str | Path, error: OSError) -> RunFailed:
    """The error of a file that cannot be written."""
    return RunFailed(f"{place} cannot be written: {error.strerror or error}")


def make_folder(flag: str, folder: str | Path) -> Path:
    """Make a folder for output files.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--{flag} {folder} cannot be made: {error.strerror or error}") from error
    return Path(folder)
