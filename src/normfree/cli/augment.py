"""``normfree augment``."""

import argparse
import itertools
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..data import Source, TrainTransform, UnreadableImage
from ..data.mixing import Mixing, to_uint8
from ..data.randaugment import NAMES, RandAugment, apply, arguments
from ..data.sources import FolderSplit
from ..data.values import ValueRange, fitted
from ..errors import UsageError
from ..models.registry import default_cfg
from ..recipes import is_dense, load_recipe
from ..report.drawing import rgb_picture
from ..words import tell
from .images import given_images
from .main import Parser
from .outputs import check_output

MAGNITUDES = (5, 10, 15)  # of --ops: the paper's, from NFNet-F0 to F6
LARGEST, SMALLEST, GAP, TEXT = 192, 96, 8, 12  # pixels: tiles in the picture, space between them, size of letters
PAPER, INK, PALE = "white", "black", "#555555"
Tile = tuple[Tensor, str]  # an image (C, H, W) uint8, and what is written below it
Group = tuple[str, list[Tile]]  # what is written above, and images side by side


@dataclass(frozen=True)
class Augmentation:
    """What happens to the images of a recipe, in this order."""

    crop: TrainTransform
    mixing: Mixing
    randaugment: RandAugment
    channels: int
    value_range: ValueRange


def run(argv: Sequence[str]) -> int:
    """Draw images before, between and after the steps of augmentation."""
    options = _parser().parse_args(list(argv))
    for name, least, most in (("count", 1, 64), ("size", 1, 2048)):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} (={value}) must be {least}..{most}")
    if options.layers is not None and options.layers > 100:
        raise UsageError(f"--layers (={options.layers}) must be at most 100")
    augmentation, path = _augmentation(options), _writable(Path(options.out))
    paths = given_images(options.images)
    check_output("--out", path, (path.suffix.lower(),), [*paths, options.recipe])
    images, unreadable = _read(_spread(paths)[: 1 if options.ops else options.count], augmentation)
    if options.ops:
        rows, what = _operations(images[0], augmentation), f"operations as {augmentation.randaugment.ops}"
    else:
        rows, what = _pipeline(images, options.count, options.seed, augmentation), _steps(augmentation)
    _sheet(rows, augmentation.crop.size).save(path)
    tell(f"{augmentation.crop.size} px; {what}", f"picture {path}")
    return 1 if unreadable else 0


def _parser() -> Parser:
    parser = Parser(
        "augment",
        description="Draw what augmentation makes of images: as they are, cropped and flipped, mixed, and after "
        "RandAugment; or, with --ops, each operation of RandAugment by itself.",
        epilog="examples:\n"
        "  normfree augment photos\n"
        "  normfree augment --recipe nfnet_f3 --count 6 photos\n"
        "  normfree augment --ops photo.jpg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--recipe", default="nfnet_f0", metavar="NAME", help="name or YAML file; default: nfnet_f0")
    parser.add_argument("--layers", type=int, metavar="N", help="operations per image, instead of the recipe's")
    parser.add_argument("--magnitude", type=float, metavar="M", help="of every operation, instead of the recipe's")
    parser.add_argument("--sane", action="store_true", help="operations that grow with the magnitude, not as released")
    parser.add_argument("--size", type=int, metavar="PX", help="side of the images, instead of the recipe's")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="images side by side; default: 8")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is random; default: 0")
    parser.add_argument("--ops", action="store_true", help="each operation at magnitudes 5, 10, 15 on the first image")
    parser.add_argument("--out", default="augment.png", metavar="FILE", help="default: augment.png")
    return parser


def _augmentation(options: argparse.Namespace) -> Augmentation:
    recipe = load_recipe(options.recipe)
    if is_dense(recipe):
        raise UsageError(
            f"recipe {options.recipe} is for {recipe.task.name}; this draws the augmentation of classification"
        )
    data, name = recipe.data, recipe.model.name
    size = options.size or data.image_size or (default_cfg(name)["input_size"][-1] if name else 224)
    layers = data.randaugment_layers if options.layers is None else options.layers
    magnitude = data.randaugment_magnitude if options.magnitude is None else options.magnitude
    # this mean and standard deviation leave values on the 0..255 scale
    crop = TrainTransform(size, data.crop, data.flip, (0.0,) * data.channels, (1 / 255,) * data.channels)
    if (layers or options.ops) and data.channels not in (1, 3):
        raise UsageError(f"RandAugment is for 1 or 3 channels; images of {options.recipe} have {data.channels}")
    how = RandAugment(layers, magnitude, "sane" if options.sane else "released")
    return Augmentation(crop, Mixing(data.mixup, data.cutmix), how, data.channels, data.value_range)


def _steps(augmentation: Augmentation) -> str:
    crop, mixing, randaugment = augmentation.crop, augmentation.mixing, augmentation.randaugment
    parts = [f"crop {crop.crop}" + (" and flip" if crop.flip else "")]
    parts += [
        f"{name} (alpha {value:g})" for name, value in (("MixUp", mixing.mixup), ("CutMix", mixing.cutmix)) if value
    ]
    if randaugment.layers:
        parts.append(
            f"RandAugment ({randaugment.layers} layers, magnitude {randaugment.magnitude:g}, {randaugment.ops})"
        )
    return "; ".join(parts)


def _writable(path: Path) -> Path:
    if path.suffix.lower() not in Image.registered_extensions():
        raise UsageError(f"--out {path} must end like an image file, for example in .png")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: folder {path.parent} does not exist")
    return path


def _spread(paths: list[Path]) -> list[Path]:
    """The same files with folders taking turns: the first of each, the second of each, and so on."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    turns = itertools.zip_longest(*folders.values())
    return [path for turn in turns for path in turn if path is not None]


def _read(paths: list[Path], augmentation: Augmentation) -> tuple[list[Tensor], int]:
    """Images, and how many files were none."""
    images, files = [], FolderSplit([(str(path), 0) for path in paths], augmentation.channels)
    source, _ = fitted(Source(files, files, []), augmentation.value_range)
    tell(*source.told, file=sys.stderr)
    for index in range(len(paths)):
        try:
            images.append(to_uint8(source.train.image(index)))
        except UnreadableImage as error:
            tell(f"skipped unreadable image {error}", file=sys.stderr)
    if not images:
        raise UsageError(f"none of the {len(paths)} images could be read")
    return images, len(paths) - len(images)


def _pipeline(images: list[Tensor], count: int, seed: int, augmentation: Augmentation) -> list[list[Group]]:
    """One row per step; each column is an image of a batch."""
    crop, randaugment = augmentation.crop, augmentation.randaugment
    whole, cropped, mixed, augmented = [], [], [], []
    for i in range(count):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63)
        first, second = images[i % len(images)], images[(i + 1) % len(images)]
        view, partner = crop(first, generator), crop(second, generator)
        mix, ratio = augmentation.mixing(view, partner, i, count, generator)
        steps = randaugment.draw(crop.size, crop.size, generator)
        kind = dict(mixup="MixUp", cutmix="CutMix").get(augmentation.mixing.kind(i, count), "not mixed")
        whole.append((_fitted(first, crop.size), ""))
        cropped.append((to_uint8(view), ""))
        mixed.append((to_uint8(mix), f"{kind}: {100 * ratio:.0f} % from above"))
        augmented.append((apply(to_uint8(mix), steps), ", ".join(name for name, _ in steps)))
    rows = [("images, cut square", whole), ("cropped and flipped" if crop.flip else "cropped", cropped)]
    if augmentation.mixing.kind(0, count):
        rows.append(("mixed with another crop, of the next image", mixed))
    if randaugment.layers:
        rows.append((f"RandAugment: {randaugment.layers} layers of magnitude {randaugment.magnitude:g}", augmented))
    return [[row] for row in rows]


def _operations(image: Tensor, augmentation: Augmentation) -> list[list[Group]]:
    """Two operations per row, each at three magnitudes."""
    size, ops = augmentation.crop.size, augmentation.randaugment.ops
    image, groups = _fitted(image, size), []
    for name in NAMES:
        tiles = []
        for magnitude in MAGNITUDES:
            how = arguments(name, magnitude, size, size, place=(size // 2, size // 2), ops=ops)
            shown = {key: value for key, value in how.items() if key not in ("y", "x", "centred")}
            note = ", ".join(f"{key} {value:.3g}" for key, value in shown.items())
            tiles.append((apply(image, [(name, how)]), note))
        groups.append((f"{name} at magnitudes {', '.join(map(str, MAGNITUDES))}", tiles))
    return [groups[i : i + 2] for i in range(0, len(groups), 2)]


def _fitted(image: Tensor, size: int) -> Tensor:
    """The middle square of an image, shrunk with antialiasing: for looking at."""
    picture = ImageOps.fit(rgb_picture(image), (size, size), Image.Resampling.LANCZOS)
    if len(image) == 1:
        picture = picture.convert("L")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, -1).permute(2, 0, 1)


def _sheet(rows: list[list[Group]], size: int) -> Image.Image:
    """Rows of groups of images of side ``size``, with their words, as one picture."""
    side = LARGEST if size > LARGEST else size * -(-SMALLEST // size)
    font = ImageFont.load_default(TEXT)
    letters = max(8, int(side / font.getlength("n")))  # that fit below an image
    words = [[[textwrap.wrap(note, letters) for _, note in tiles] for _, tiles in row] for row in rows]
    lines = [max(len(note) for group in row for note in group) for row in words]
    line, heading = TEXT + 3, TEXT + 8
    heights = [heading + side + count * line + 2 * GAP for count in lines]
    width = max(sum(len(tiles) * (side + GAP) + 2 * GAP for _, tiles in row) for row in rows)
    sheet = Image.new("RGB", (width, sum(heights) + GAP), PAPER)
    draw, top = ImageDraw.Draw(sheet), GAP
    for row, notes, height in zip(rows, words, heights, strict=True):
        left = 2 * GAP
        for (title, tiles), below in zip(row, notes, strict=True):
            draw.text((left, top), title, INK, font)
            for (image, _), note in zip(tiles, below, strict=True):
                how = Image.Resampling.LANCZOS if size > side else Image.Resampling.NEAREST
                sheet.paste(rgb_picture(image).resize((side, side), how), (left, top + heading))
                for i, text in enumerate(note):
                    draw.text((left, top + heading + side + 2 + i * line), text, PALE, font)
                left += side + GAP
            left += 2 * GAP
        top += height
    return sheet
