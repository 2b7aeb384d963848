"""Pictures of what a network for segmentation or depth makes of images."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import UnreadableImage, decode_image, find_images
from ..errors import UsageError
from ..training import pick_device
from .trained import Trained, evaluation_transform

LEAST, GAP, TEXT, MARGIN = 320, 8, 13, 10  # pixels: longer side of a panel, space, size of letters, space around
BLEND = 0.6  # of the class's colour over the image
PAPER, INK = "white", "black"
MOST_NAMED = 24  # classes in a legend
BAR = 18  # pixels: width of the bar of depths


def predict_pixels(trained: Trained, options: argparse.Namespace) -> int:
    """Draw and list what the network says about each image; the exit code.

    Raises:
        UsageError: no image, or a folder that cannot be made.
    """
    device, view = pick_device(options.device), evaluation_transform(trained)
    model, paths = trained.model.to(device), find_images(options.images)
    folder, unreadable = _folder(trained, options), 0
    names = _names(paths)
    for path in paths:
        try:
            image = decode_image(path, trained.recipe.data.channels)
        except UnreadableImage as error:
            print(f"skipped unreadable image {error}", file=sys.stderr)
            unreadable += 1
            continue
        with torch.inference_mode():
            said = model(view.whole(image)[None].to(device)).float().cpu()
        said = torch.nn.functional.interpolate(said, image.shape[-2:], mode="bilinear", align_corners=False)[0]
        drawn, told = _depth(image, said[0]) if len(said) == 1 else _mask(image, said.argmax(0), trained.names)
        place = folder / f"{names[path]}_{trained.recipe.task.name}.png"
        drawn.save(place)
        told = dict(path=str(path), picture=str(place)) | told
        print(json.dumps(told, ensure_ascii=False) if options.json else _lines(told), flush=options.json)
    if unreadable == len(paths):
        raise UsageError(f"none of the {len(paths)} images could be read")
    return 1 if unreadable else 0


def _folder(trained: Trained, options: argparse.Namespace) -> Path:
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
    base = _rgb(image).astype(np.float32)
    colored = (base + (palette[mask.numpy()] - base) * BLEND).astype(np.uint8)
    picture, legend = _beside(_rgb(image), colored), there[:MOST_NAMED]
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
    from matplotlib import colormaps  # slow to import, needed here only

    depth = depth.clamp(min=0)
    low, high = depth.min().item(), depth.max().item()
    colors = (colormaps["viridis_r"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    steps = ((depth - low) / max(high - low, 1e-6) * 255).round().to(torch.uint8).numpy()
    picture = _beside(_rgb(image), colors[steps])
    sheet, top = _below(picture, BAR + TEXT + 2 * GAP)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    width = sheet.width - 2 * MARGIN
    sheet.paste(Image.fromarray(colors[None]).resize((width, BAR)), (MARGIN, top))
    for part, anchor in ((0, "la"), (0.25, "ma"), (0.5, "ma"), (0.75, "ma"), (1, "ra")):
        text = f"{low + part * (high - low):.2f} m"
        draw.text((MARGIN + part * width, top + BAR + 4), text, INK, font, anchor=anchor)
    return sheet, dict(
        metres=dict(nearest=round(low, 4), farthest=round(high, 4), median=round(depth.median().item(), 4))
    )


def class_colors(count: int) -> np.ndarray:
    """(count, 3) uint8: black first, then hues that are far apart, as of neighbours in the legend."""
    hues = (np.arange(count) * 0.381966) % 1  # of the golden angle
    wheel = np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    light = np.where(np.arange(count) % 2 == 0, 0.95, 0.75)[:, None]
    colors = (255 * light * (1 - 0.85 * (1 - np.clip(wheel, 0, 1)))).astype(np.uint8)
    colors[0] = 0
    return colors


def _rgb(image: Tensor) -> np.ndarray:
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def _beside(left: np.ndarray, right: np.ndarray) -> Image.Image:
    """Two pictures of one size side by side, enlarged by a whole number where they are small."""
    height, width = left.shape[:2]
    times = max(1, -(-LEAST // max(height, width)))
    sheet = Image.new("RGB", (2 * width * times + GAP + 2 * MARGIN, height * times + 2 * MARGIN), PAPER)
    for pixels, place in ((left, MARGIN), (right, MARGIN + width * times + GAP)):
        whole = Image.fromarray(np.ascontiguousarray(pixels))
        sheet.paste(whole.resize((width * times, height * times), Image.Resampling.NEAREST), (place, MARGIN))
    return sheet


def _below(picture: Image.Image, height: int) -> tuple[Image.Image, int]:
    """The picture with room below it, and where that begins."""
    sheet = Image.new("RGB", (picture.width, picture.height + height), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet, picture.height
