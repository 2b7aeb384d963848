"""The steps of a recipe's augmentation as a picture: ``normfree augment``."""

import itertools
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..data import AutoAugment, Source, TrainTransform, UnreadableImage
from ..data.autoaugment import POLICY_V0, step
from ..data.mixing import Mixing, to_uint8
from ..data.randaugment import NAMES, RandAugment, apply, arguments
from ..data.sources import FolderSplit
from ..data.transforms import cutout_window
from ..data.values import ValueRange, resolve_value_range
from ..errors import UsageError
from ..pictures.drawing import rgb_picture
from ..words import tell

MAGNITUDES = (5, 10, 15)  # of --ops: those of the paper, from NFNet-F0 to F6
MAX_TILE, MIN_TILE, GAP, TEXT = 192, 96, 8, 12  # pixels: side of a tile, space between tiles, size of letters
PAPER, INK, PALE = "white", "black", "#555555"
Tile = tuple[Tensor, str]  # an image (C, H, W) uint8, and its caption
Group = tuple[str, list[Tile]]  # a title, and images side by side


@dataclass(frozen=True)
class Augmentation:
    """The steps of a recipe's augmentation, in order.

    Attributes:
        policy: what changes images after mixing.
        cutout: side of the square that is cut out; 0: none. ``mean``: what it shows, on the 0..1 scale.
    """

    crop: TrainTransform
    mixing: Mixing
    policy: RandAugment | AutoAugment | None
    cutout: int
    mean: tuple[float, ...]
    channels: int
    value_range: ValueRange


def steps_in_words(augmentation: Augmentation) -> str:
    """The steps in words, in order."""
    crop, mixing = augmentation.crop, augmentation.mixing
    how = f" ({crop.reach} px, {crop.padding_mode})" if crop.crop == "shift" else ""
    parts = [f"crop {crop.crop}{how}" + (" and flip" if crop.flip else "")]
    parts += [
        f"{name} (alpha {value:g})" for name, value in (("MixUp", mixing.mixup), ("CutMix", mixing.cutmix)) if value
    ]
    if augmentation.policy is not None:
        parts.append(str(augmentation.policy))
    if augmentation.cutout:
        parts.append(f"cutout ({augmentation.cutout} px)")
    return "; ".join(parts)


def in_turns(paths: list[Path]) -> list[Path]:
    """The files in another order: the first of each folder, then the second of each, and so on."""
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    turns = itertools.zip_longest(*folders.values())
    return [path for turn in turns for path in turn if path is not None]


def read(paths: list[Path], augmentation: Augmentation) -> tuple[list[Tensor], int]:
    """The images, and how many files could not be read."""
    images, files = [], FolderSplit([(str(path), 0) for path in paths], augmentation.channels)
    source, _ = resolve_value_range(Source(files, files, []), augmentation.value_range)
    tell(*source.notes, file=sys.stderr)
    for index in range(len(paths)):
        try:
            images.append(to_uint8(source.train.image(index)))
        except UnreadableImage as error:
            tell(f"skipped unreadable image {error}", file=sys.stderr)
    if not images:
        raise UsageError(f"none of the {len(paths)} images could be read")
    return images, len(paths) - len(images)


def pipeline(images: list[Tensor], count: int, seed: int, augmentation: Augmentation) -> list[list[Group]]:
    """A row for each step; each column is an image of a batch."""
    crop, policy = augmentation.crop, augmentation.policy
    whole, cropped, mixed, augmented, cut = [], [], [], [], []
    for i in range(count):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + i) % 2**63)
        first, second = images[i % len(images)], images[(i + 1) % len(images)]
        view, partner = crop(first, generator), crop(second, generator)
        mix, ratio = augmentation.mixing(view, partner, i, count, generator)
        steps = policy.draw(crop.size, crop.size, generator) if policy is not None else []
        kind = dict(mixup="MixUp", cutmix="CutMix").get(augmentation.mixing.kind(i, count) or "", "not mixed")
        whole.append((_fitted(first, crop.size), ""))
        cropped.append((to_uint8(view), ""))
        mixed.append((to_uint8(mix), f"{kind}: {100 * ratio:.0f} % from above"))
        changed = apply(to_uint8(mix), steps)
        augmented.append((changed, ", ".join(name for name, _ in steps) or "as it was"))
        cut.append((_cut_out(changed, augmentation, generator), ""))
    rows = [("images, cut square", whole), ("cropped and flipped" if crop.flip else "cropped", cropped)]
    if augmentation.mixing.kind(0, count):
        rows.append(("mixed with another crop, of the next image", mixed))
    if policy is not None:
        rows.append((str(policy), augmented))
    if augmentation.cutout:
        rows.append((f"cutout: a square of {augmentation.cutout} px", cut))
    return [[row] for row in rows]


def _cut_out(image: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """A copy in which a square shows the mean, as in training."""
    top, left, height, width = cutout_window(image.shape[-2], image.shape[-1], augmentation.cutout, generator)
    cut, grey = image.clone(), torch.tensor(augmentation.mean) * 255
    cut[:, top : top + height, left : left + width] = to_uint8(grey)[:, None, None]
    return cut


def operations(image: Tensor, size: int, policy: RandAugment | AutoAugment) -> list[list[Group]]:
    """Each operation of RandAugment at three magnitudes, or each sub-policy of AutoAugment; two in each row."""
    image = _fitted(image, size)
    groups = _subpolicies(image) if isinstance(policy, AutoAugment) else _magnitudes(image, policy.ops)
    return [groups[i : i + 2] for i in range(0, len(groups), 2)]


def _subpolicies(image: Tensor) -> list[Group]:
    """The two operations of a sub-policy, one by one and after each other, as if both had been drawn."""
    size, groups = image.shape[-1], []
    for number, subpolicy in enumerate(POLICY_V0):
        steps = [step(operation, size, size, place=(size // 2, size // 2)) for operation in subpolicy]
        tiles = [
            (apply(image, [one]), f"{name} {level}, {chance:.0%}")
            for one, (name, chance, level) in zip(steps, subpolicy, strict=True)
        ]
        groups.append((f"sub-policy {number + 1} of {len(POLICY_V0)}", [*tiles, (apply(image, steps), "both")]))
    return groups


def _magnitudes(image: Tensor, ops: Literal["released", "sane"]) -> list[Group]:
    """Each operation at three magnitudes."""
    size, groups = image.shape[-1], []
    for name in NAMES:
        tiles = []
        for magnitude in MAGNITUDES:
            how = arguments(name, magnitude, size, size, place=(size // 2, size // 2), ops=ops)
            shown = {key: value for key, value in how.items() if key not in ("y", "x", "centred")}
            note = ", ".join(f"{key} {value:.3g}" for key, value in shown.items())
            tiles.append((apply(image, [(name, how)]), note))
        groups.append((f"{name} at magnitudes {', '.join(map(str, MAGNITUDES))}", tiles))
    return groups


def _fitted(image: Tensor, size: int) -> Tensor:
    """The centre square of an image, resized with antialiasing for display."""
    picture = ImageOps.fit(rgb_picture(image), (size, size), Image.Resampling.LANCZOS)
    if len(image) == 1:
        picture = picture.convert("L")
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, -1).permute(2, 0, 1)


def sheet(rows: list[list[Group]], size: int) -> Image.Image:
    """One picture of rows of groups of images of side ``size``, with titles and captions."""
    side = MAX_TILE if size > MAX_TILE else size * -(-MIN_TILE // size)
    font = ImageFont.load_default(TEXT)
    letters = max(8, int(side / font.getlength("n")))  # of a line below an image
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
