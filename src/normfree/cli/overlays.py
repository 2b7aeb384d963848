"""Pictures of what a network for segmentation or depth makes of images."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import UnreadableImage, decode_image
from ..data.resize import pixels_of
from ..errors import RunFailed, UsageError
from ..report.drawing import class_colors, depth_colors, draw_depth, draw_mask, rgb_picture
from ..tasks.depth import NEAREST
from ..training import pick_device
from .classifier import Classifier, view_of
from .images import given_images
from .trained import Trained, evaluation_transform

LEAST, GAP, TEXT, MARGIN = 320, 8, 13, 10  # pixels: longer side of a panel, space, size of letters, space around
PAPER, INK = "white", "black"
MOST_NAMED = 24  # classes in a legend
BAR = 18  # pixels: width of the bar of depths


@dataclass(frozen=True)
class Pixels:
    """What answers for each pixel.

    Attributes:
        task: "segmentation" or "depth"; names: of its classes, or none.
        channels: of the images.
        look: from an image (C, H, W) uint8 to what is drawn of it, of the same form, and maps (outputs, H, W) of that.
    """

    task: str
    names: list[str]
    channels: int
    look: Callable[[Tensor], tuple[Tensor, Tensor]]


def trained_pixels(trained: Trained, device: str) -> Pixels:
    """A trained network, which sees whole images."""
    place, view = pick_device(device), evaluation_transform(trained)
    model = trained.model.to(place)

    def look(image: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            said = model(view.whole(image)[None].to(place)).float().cpu()
        return image, F.interpolate(said, image.shape[-2:], mode="bilinear", align_corners=False)[0]

    return Pixels(trained.recipe.task.name, trained.names, trained.recipe.data.channels, look)


def exported_pixels(file: Classifier) -> Pixels:
    """An exported file, which sees the centre of images at its size."""
    about, view = file.preprocessing, view_of(file.preprocessing)

    def look(image: Tensor) -> tuple[Tensor, Tensor]:
        seen = view.view(image)
        return pixels_of(seen, about.mean, about.std), file.run(seen[None])[0]

    return Pixels(file.task, list(file.classes or ()), about.channels, look)


def predict_pixels(network: Pixels, options: argparse.Namespace) -> int:
    """Draw and list what the network says about each image; the exit code.

    Raises:
        UsageError: no image, or a folder that cannot be made.
    """

    def draw(image: Tensor) -> tuple[Image.Image, dict]:
        image, said = network.look(image)
        names = network.names or [str(number) for number in range(len(said))]
        return _depth(image, said[0]) if network.task == "depth" else _mask(image, said.argmax(0), names)

    return predict_pictures(draw, _lines, network.task, network.channels, options)


def predict_pictures(
    draw: Callable[[Tensor], tuple[Image.Image, dict]],
    lines: Callable[[dict], str],
    task: str,
    channels: int,
    options: argparse.Namespace,
) -> int:
    """Draw and list what is made of each image; the exit code.

    Args:
        draw: from an image (C, H, W) uint8 to a picture and what is told about it.
        lines: what is told, for people.
        task: names the pictures.

    Raises:
        UsageError: no image, or a folder that cannot be made.
    """
    for name, value in dict(top=options.top, antialias=options.antialias or None).items():
        if value is not None:
            raise UsageError(f"--{name} is for networks that classify images; {options.network} is for {task}")
    if options.score is not None and task != "detection":
        raise UsageError(f"--score is for networks for detection; {options.network} is for {task}")
    paths = list(dict.fromkeys(given_images(options.images)))
    folder, unreadable = _folder(options), 0
    names = _names(paths)
    for path in paths:
        try:
            drawn, told = draw(decode_image(path, channels))
        except UnreadableImage as error:
            print(f"skipped unreadable image {error}", file=sys.stderr)
            unreadable += 1
            continue
        place = folder / f"{names[path]}_{task}.png"
        try:
            drawn.save(place)
        except OSError as error:  # of a full disk Pillow does not say whose
            raise RunFailed(f"{place} cannot be written: {error.strerror or error}") from error
        told = dict(path=str(path), picture=str(place)) | told
        print(json.dumps(told, ensure_ascii=False) if options.json else lines(told), flush=options.json)
    if unreadable == len(paths):
        raise UsageError(f"none of the {len(paths)} images could be read")
    return 1 if unreadable else 0


def _folder(options: argparse.Namespace) -> Path:
    network = Path(options.network)
    folder = Path(options.out) if options.out else (network if network.is_dir() else Path()) / "predictions"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    return folder


def _names(paths: list[Path]) -> dict[Path, str]:
    """A name for each image's picture; images of one name in several folders are numbered."""
    taken: set[str] = set()
    names = {}
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name)
        names[path] = name
    return names


def _lines(told: dict) -> str:
    lines = [str(told["path"])]
    if "metres" in told:
        lines.append("  {nearest:.2f} to {farthest:.2f} m, median {median:.2f} m".format(**told["metres"]))
    else:
        lines += [f"  {share:7.2%}  {name}" for name, share in told["classes"].items()]
    return "\n".join([*lines, f"  picture {told['picture']}"])


def _mask(image: Tensor, mask: Tensor, names: list[str]) -> tuple[Image.Image, dict]:
    """The image, the same under its classes' colours, and a legend; the share of each class, the largest first."""
    counts = torch.bincount(mask.flatten(), minlength=len(names))
    there = [i for i in counts.argsort(descending=True, stable=True).tolist() if counts[i]]
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
    shares = {names[i]: round(int(counts[i]) / mask.numel(), 6) for i in there}
    return sheet, dict(classes=shares)


def _depth(image: Tensor, depth: Tensor) -> tuple[Image.Image, dict]:
    """The image, its depth in colours, and a bar that says the metres; nearest, farthest and median depth."""
    depth = depth.clamp(min=NEAREST)
    low, high = depth.min().item(), depth.max().item()
    picture = beside(image, draw_depth(depth, low, high))
    sheet, top = _below(picture, BAR + TEXT + 2 * GAP)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    width = sheet.width - 2 * MARGIN
    sheet.paste(Image.fromarray(depth_colors()[None]).resize((width, BAR)), (MARGIN, top))
    for part, anchor in ((0, "la"), (0.25, "ma"), (0.5, "ma"), (0.75, "ma"), (1, "ra")):
        text = f"{low + part * (high - low):.2f} m"
        draw.text((MARGIN + part * width, top + BAR + 4), text, INK, font, anchor=anchor)
    return sheet, dict(
        metres=dict(nearest=round(low, 4), farthest=round(high, 4), median=round(depth.median().item(), 4))
    )


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
