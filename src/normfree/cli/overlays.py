"""What a network for segmentation or depth says about images: pictures, label images, depth maps."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.masks import MaskValues
from ..data.pairs import MILLIMETRES
from ..data.resize import pixels_of
from ..report.drawing import class_colors, depth_colors, draw_depth, draw_mask, rgb_picture
from ..tasks.depth import NEAREST
from ..training import pick_device
from .answers import Answers, Asked, make_folder, writing
from .classifier import Classifier, view_of
from .trained import Trained, evaluation_transform

LEAST, GAP, TEXT, MARGIN = 320, 8, 13, 10  # pixels: longer side of a panel, space, size of letters, space around
PAPER, INK = "white", "black"
MOST_NAMED = 24  # classes in a legend
BAR = 18  # pixels: width of the bar of depths
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


def trained_pixels(trained: Trained, device: str) -> Pixels:
    """A trained network, which sees whole images."""
    place, view = pick_device(device), evaluation_transform(trained)
    model = trained.model.to(place)

    def look(seen: Tensor, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        with torch.inference_mode():
            said = model(seen.to(place)).float().cpu()
        sizes = [image.shape[-2:] for image in images]
        pairs = zip(images, said.split(1), sizes, strict=True)
        return [
            (image, F.interpolate(one, size, mode="bilinear", align_corners=False)[0]) for image, one, size in pairs
        ]

    data = trained.recipe.data
    return Pixels(trained.recipe.task.name, trained.names, data.channels, view.whole, look, data.value_range)


def exported_pixels(file: Classifier) -> Pixels:
    """An exported file, which sees the centre of images at its size."""
    about, view = file.preprocessing, view_of(file.preprocessing)

    def look(seen: Tensor, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        drawn = [pixels_of(one, about.mean, about.std) for one in seen]
        return list(zip(drawn, file.run(seen), strict=True))

    return Pixels(file.task, list(file.classes or ()), about.channels, view.view, look, about.value_range)


class Pictures:
    """Pictures of what is said about images, in --out or where the network is.

    Not drawn where another option says where answers go, and --out does not.
    """

    def __init__(self, task: str, options: argparse.Namespace):
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

    def __init__(self, network: Pixels, values: MaskValues, options: argparse.Namespace):
        self.network, self.values, self.channels = network, values, network.channels
        self.value_range, self.names, self.counts = network.value_range, network.names, Counter()
        self.pictures = Pictures(network.task, options)
        self.folder = options.masks and make_folder("masks", options.masks)

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
        told = self.pictures.save(asked, lambda: _mask(image, mask, self.names, counts, there))
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
        lines = [f"  {share / every:7.2%}  {name}" for name, share in self.counts.most_common(MOST_NAMED)]
        masks = [f"  masks in {self.folder}"] if self.folder else []
        return [*lines, *self.pictures.finish(), *masks]


class DepthAnswers(Answers):
    """The distance of each pixel in metres."""

    columns = ("nearest", "farthest", "median")

    def __init__(self, network: Pixels, options: argparse.Namespace):
        self.network, self.channels, self.range = network, network.channels, (float("inf"), 0.0)
        self.value_range, self.pictures = network.value_range, Pictures(network.task, options)
        self.folder = options.depths and make_folder("depths", options.depths)

    def view(self, image: Tensor) -> Tensor:
        return self.network.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        return [(image, said[0].clamp(min=NEAREST)) for image, said in self.network.look(seen, images)]

    def tell(self, asked: Asked, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        image, depth = answer
        low, high = depth.min().item(), depth.max().item()
        self.range = min(low, self.range[0]), max(high, self.range[1])
        told = self.pictures.save(asked, lambda: _depth(image, depth))
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


def answers_for(network: Pixels, values: MaskValues, options: argparse.Namespace) -> Answers:
    """Those of its task."""
    if network.task == "depth":
        return DepthAnswers(network, options)
    return MaskAnswers(network, values, options)


def _files(told: dict[str, Any]) -> list[str]:
    """Lines about what was written about an image."""
    return [f"  {kind} {told[kind]}" for kind in ("picture", "mask", "depth") if kind in told]


def _mask(image: Tensor, mask: Tensor, names: Sequence[str], counts: Tensor, there: Sequence[int]) -> Image.Image:
    """The image, the same under its classes' colours, and a legend of the classes that are there."""
    palette = class_colors(len(names))
    picture, legend = beside(image, draw_mask(image, mask, palette)), there[:MOST_NAMED]
    line = TEXT + 7
    sheet, top = _below(picture, -(-len(legend) // 2) * line + GAP)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for number, index in enumerate(legend):
        left, row = MARGIN + (number % 2) * (sheet.width // 2), top + (number // 2) * line
        draw.rectangle((left, row, left + TEXT, row + TEXT), fill=tuple(palette[index].tolist()), outline=INK)
        share = f"{counts[index] / mask.numel():.1%}"
        draw.text((left + TEXT + 6, row - 1), f"{names[index][:28]}  {share}", INK, font)
    return sheet


def _depth(image: Tensor, depth: Tensor) -> Image.Image:
    """The image, its depth in colours, and a bar that says the metres."""
    low, high = depth.min().item(), depth.max().item()
    picture = beside(image, draw_depth(depth, low, high))
    sheet, top = _below(picture, BAR + TEXT + 2 * GAP)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    width = sheet.width - 2 * MARGIN
    sheet.paste(Image.fromarray(depth_colors()[None]).resize((width, BAR)), (MARGIN, top))
    for part, anchor in ((0, "la"), (0.25, "ma"), (0.5, "ma"), (0.75, "ma"), (1, "ra")):
        text = f"{low + part * (high - low):.2f} m"
        draw.text((MARGIN + part * width, top + BAR + 4), text, INK, font, anchor=anchor)
    return sheet


def beside(image: Tensor, drawn: Image.Image) -> Image.Image:
    """An image and a picture of its size side by side, enlarged by a whole number where they are small."""
    width, height = drawn.size
    times, right = enlarged(width, height)
    sheet = Image.new("RGB", (right + width * times + MARGIN, height * times + 2 * MARGIN), PAPER)
    for whole, place in ((rgb_picture(image), MARGIN), (drawn, right)):
        sheet.paste(whole.resize((width * times, height * times), Image.Resampling.NEAREST), (place, MARGIN))
    return sheet


def enlarged(width: int, height: int) -> tuple[int, int]:
    """How many times :func:`beside` enlarges pictures of that size, and where the right one begins."""
    times = max(1, -(-LEAST // max(height, width)))
    return times, MARGIN + width * times + GAP


def _below(picture: Image.Image, height: int) -> tuple[Image.Image, int]:
    """The picture with room below it, and where that begins."""
    sheet = Image.new("RGB", (picture.width, picture.height + height), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet, picture.height
