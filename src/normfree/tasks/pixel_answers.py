"""What a network for segmentation or depth says about images: pictures, label images, depth maps."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.masks import MaskValues
from ..data.pairs import MILLIMETRES
from ..data.pixels import PixelTransform
from ..data.resize import pixels_of
from ..pictures.sheets import LEGEND_CLASSES, depth_sheet, mask_sheet
from ..training import pick_device
from .answers import Answers, Asked, PredictOptions, make_folder, writing
from .trained import ReadyNetwork, Trained, view_of

NEAREST = 1e-3  # metres: what an answer counts as at least, in the metrics
FARTHEST = 65_535 / MILLIMETRES  # metres that a depth map of 16 bits can hold


@dataclass(frozen=True)
class Pixels:
    """What answers for each pixel.

    Attributes:
        task: "segmentation" or "depth"; names: of its classes, or none.
        channels, value_range: of the images.
        view: what the network sees of an image (C, H, W) uint8.
        look: from a batch of views and their images to what is drawn of each, (C, H, W) uint8, and maps (outputs, H, W)
            of that.
    """

    task: str
    names: list[str]
    channels: int
    view: Callable[[Tensor], Tensor]
    look: Callable[[Tensor, Sequence[Tensor]], list[tuple[Tensor, Tensor]]]
    value_range: tuple[float, ...] | None = None


def pixels_of_network(network: ReadyNetwork, options: PredictOptions) -> Pixels:
    """A trained network, which sees whole images, or an exported file, which sees the centre of images at its size."""
    if network.trained is None:
        return _exported(network)
    if options.size is not None:
        network.trained.recipe.data.short_side = options.size
    return _trained(network.trained, options.device)


def _trained(trained: Trained, device: str) -> Pixels:
    place, view = pick_device(device), trained.transform
    model = trained.model.to(place)

    def look(seen: Tensor, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        with torch.inference_mode():
            outputs = model(seen.to(place)).float().cpu()
        sizes = [image.shape[-2:] for image in images]
        pairs = zip(images, outputs.split(1), sizes, strict=True)
        return [
            (image, F.interpolate(one, size, mode="bilinear", align_corners=False)[0]) for image, one, size in pairs
        ]

    data = trained.recipe.data
    return Pixels(
        trained.task.kind,
        trained.names,
        data.channels,
        view.whole,
        look,
        None if data.value_range == "auto" else data.value_range,
    )


def _exported(file: ReadyNetwork) -> Pixels:
    about = file.preprocessing
    assert about is not None  # every exported file says it
    view = view_of(about)
    assert isinstance(view, PixelTransform)

    def look(seen: Tensor, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        centres = [pixels_of(one, about.mean, about.std) for one in seen]
        return list(zip(centres, file.run(seen), strict=True))

    return Pixels(file.task.kind, list(file.classes or ()), about.channels, view.view, look, about.value_range)


class Pictures:
    """Pictures of what is said about images, in --out or where the network is.

    Not drawn where another option says where answers go, and --out does not.
    """

    def __init__(self, task: str, options: PredictOptions):
        network, self.task, self.folder = Path(options.network), task, None
        if options.out or not (options.masks or options.depths or options.boxes):
            self.folder = make_folder("out", options.out or (network if network.is_dir() else Path()) / "predictions")

    def save(self, asked: Asked, draw: Callable[[], Image.Image]) -> dict[str, str]:
        """Draw and save one; where it is."""
        if self.folder is None:
            return {}
        place = self.folder / f"{asked.name}_{self.task}.png"
        save(draw(), place)
        return dict(picture=str(place))

    def finish(self) -> list[str]:
        return [] if self.folder is None else [f"  pictures in {self.folder}"]


def save(image: Image.Image, place: Path) -> None:
    """Write an image file.

    Raises:
        RunFailed: it cannot be written.
    """
    try:
        image.save(place)
    except OSError as error:  # of a full disk Pillow does not say whose
        raise writing(place, error) from error


class MaskAnswers(Answers):
    """The class of each pixel.

    Args:
        values: that label images are written with.
        options: of the command line: where files go.
    """

    def __init__(self, network: Pixels, values: MaskValues, options: PredictOptions):
        self.network, self.values, self.channels = network, values, network.channels
        self.value_range, self.names, self.counts = network.value_range, network.names, Counter()
        self.pictures, self.picture_ending = Pictures(network.task, options), f"_{network.task}.png"
        self.folder = make_folder("masks", options.masks) if options.masks else None

    def view(self, image: Tensor) -> Tensor:
        return self.network.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        found = self.network.look(seen, images)
        self.names = self.names or [str(number) for number in range(len(found[0][1]))]
        self.columns = self.names
        return [(image, said.argmax(0)) for image, said in found]

    def tell(self, asked: Asked, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        image, mask = answer
        counts = torch.bincount(mask.flatten(), minlength=len(self.names))
        there = [i for i in counts.argsort(descending=True, stable=True).tolist() if counts[i]]
        shares = {self.names[i]: round(int(counts[i]) / mask.numel(), 6) for i in there}
        self.counts.update(shares)
        told = self.pictures.save(asked, lambda: mask_sheet(image, mask, self.names, counts, there))
        if self.folder:
            place = self.folder / f"{asked.name}.png"
            save(self.values.image(mask), place)
            told["mask"] = str(place)
        return told | dict(classes=shares)

    def lines(self, told: dict[str, Any]) -> list[str]:
        shares = [f"  {share:7.2%}  {name}" for name, share in told["classes"].items()]
        return [told["path"], *shares, *_files(told)]

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [told["classes"].get(name, 0) for name in self.names]

    def finish(self) -> list[str]:
        every = sum(self.counts.values())  # the mean of images, each of which adds up to 1
        lines = [f"  {share / every:7.2%}  {name}" for name, share in self.counts.most_common(LEGEND_CLASSES)]
        masks = [f"  masks in {self.folder}"] if self.folder else []
        return [*lines, *self.pictures.finish(), *masks]


class DepthAnswers(Answers):
    """The distance of each pixel in metres."""

    columns = ("nearest", "farthest", "median")

    def __init__(self, network: Pixels, options: PredictOptions):
        self.network, self.channels, self.range = network, network.channels, (float("inf"), 0.0)
        self.value_range, self.pictures = network.value_range, Pictures(network.task, options)
        self.picture_ending = f"_{network.task}.png"
        self.folder = make_folder("depths", options.depths) if options.depths else None

    def view(self, image: Tensor) -> Tensor:
        return self.network.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        return [(image, said[0].clamp(min=NEAREST)) for image, said in self.network.look(seen, images)]

    def tell(self, asked: Asked, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        image, depth = answer
        low, high = depth.min().item(), depth.max().item()
        self.range = min(low, self.range[0]), max(high, self.range[1])
        told = self.pictures.save(asked, lambda: depth_sheet(image, depth))
        if self.folder:
            told["depth"] = str(save_depth(depth, self.folder / asked.name))
        metres = dict(nearest=round(low, 4), farthest=round(high, 4), median=round(depth.median().item(), 4))
        return told | dict(metres=metres)

    def lines(self, told: dict[str, Any]) -> list[str]:
        metres = "  {nearest:.2f} to {farthest:.2f} m, median {median:.2f} m".format(**told["metres"])
        return [told["path"], metres, *_files(told)]

    def rows(self, told: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [told["metres"][name] for name in self.columns]

    def finish(self) -> list[str]:
        depths = [f"  depths in {self.folder}"] if self.folder else []
        return ["  {:.2f} to {:.2f} m".format(*self.range), *self.pictures.finish(), *depths]


def save_depth(depth: Tensor, place: Path) -> Path:
    """Write metres (H, W) as "depth:PATH" reads them, and say where: PLACE.png, 16 bits of millimetres.

    Where a pixel is too far for 16 bits, PLACE.npy, metres.
    """
    if depth.max() <= FARTHEST:
        place = place.with_name(f"{place.name}.png")
        save(Image.fromarray((depth * MILLIMETRES).round().numpy().astype(np.uint16)), place)
        return place
    place = place.with_name(f"{place.name}.npy")
    try:
        np.save(place, depth.numpy())
    except OSError as error:
        raise writing(place, error) from error
    return place


def _files(told: dict[str, Any]) -> list[str]:
    """Lines about what was written about an image."""
    return [f"  {kind} {told[kind]}" for kind in ("picture", "mask", "depth") if kind in told]
