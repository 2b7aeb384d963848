"""RandAugment as the NFNets were trained with (NFNets, appendix A.3; Cubuk et al., arXiv:1909.13719).

Each of ``layers`` layers draws one of 16 operations, and always applies it. What a magnitude m means:

| operation | released | sane |
|---|---|---|
| AutoContrast, Equalize, Invert | the same at any m | |
| Rotate | 3m degrees, sign at random | |
| ShearX, ShearY | 0.03m, sign at random, about the top left corner | about the centre |
| TranslateX, TranslateY | 10m pixels, sign at random, whatever the image's size | |
| Cutout | a square of side 2 * int(4m) pixels around a random pixel | |
| SolarizeAdd | int(11m) added to values below 128 | |
| Color, Brightness, Sharpness | factor 0.1 + 0.18m: fades below m = 5, nothing at 5 | 1 +- 0.09m, at least 0.1 |
| Contrast | the same about the grey value (pixels / 256), at most 255 | 1 +- 0.09m about the image's mean |
| Posterize | int(0.4m) bits are kept, 1 to 8: weaker as m grows | 8 - int(0.4m) bits, 1 to 8 |
| Solarize | inverts from int(25.6m) mod 256 on: everything at m = 10, half at 5 and 15 | from 256 - int(25.6m) on |

"released" is what the published networks saw, oddities included: the grey value of Contrast is the sum of a histogram
divided by 256 where the mean of the image was meant (144 at 192 px, white from 256 px on), and the threshold of
Solarize is a uint8 that wraps. "sane" is the same wherever its column is empty; elsewhere more magnitude is more
change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UsageError
from . import operations

Step = tuple[str, dict[str, Any]]  # the name of an operation and its arguments


@dataclass(frozen=True)
class Constants:
    """Pixels at magnitude 10: of translations, and of half of Cutout's side."""

    translate: float = 100
    cutout: float = 40


# In the released order: a draw decides by place.
OPERATIONS: dict[str, Callable[..., Tensor]] = dict(
    AutoContrast=operations.autocontrast,
    Equalize=operations.equalize,
    Invert=operations.invert,
    Rotate=operations.rotate,
    Posterize=operations.posterize,
    Solarize=operations.solarize,
    Color=operations.color,
    Contrast=operations.contrast,
    Brightness=operations.brightness,
    Sharpness=operations.sharpness,
    ShearX=operations.shear_x,
    ShearY=operations.shear_y,
    TranslateX=operations.translate_x,
    TranslateY=operations.translate_y,
    Cutout=operations.cutout,
    SolarizeAdd=operations.solarize_add,
)
NAMES = tuple(OPERATIONS)


@dataclass(frozen=True)
class RandAugment:
    """(C, H, W) uint8 -> the same, changed by ``layers`` random operations; the generator alone decides.

    Args:
        layers: operations per image; 2 by default in the released code, 4 in the second paper.
        magnitude: of every operation; 5 to 15 in the paper, the more the larger the images. 0..30.
        ops: "released" or "sane".

    Example:
        >>> image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
        >>> changed = RandAugment()(image, torch.Generator().manual_seed(0))
        >>> [name for name, _ in RandAugment().draw(32, 32, torch.Generator().manual_seed(0))]
        ['Contrast', 'Posterize']
    """

    layers: int = 2
    magnitude: float = 5.0
    ops: Literal["released", "sane"] = "released"

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise UsageError(f"layers of RandAugment (={self.layers}) must be at least 0")
        if not 0 <= self.magnitude <= 30:
            raise UsageError(f"magnitude of RandAugment (={self.magnitude}) must be 0..30")
        if self.ops not in ("released", "sane"):
            raise UsageError(f'ops of RandAugment (={self.ops!r}) must be "released" or "sane"')

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        check_bytes(image, "RandAugment")
        height, width = image.shape[-2:]
        return apply(image, self.draw(height, width, generator))

    def __str__(self) -> str:
        return f"RandAugment ({self.layers} layers, magnitude {self.magnitude:g}, {self.ops})"

    def draw(self, height: int, width: int, generator: torch.Generator | None = None) -> list[Step]:
        """The operations for one image of that size, in their order, with their arguments."""
        steps = []
        for which, sign, y, x in torch.rand(self.layers, 4, generator=generator).tolist():
            name = NAMES[int(which * len(NAMES))]
            place = int(y * height), int(x * width)
            sign = 1 if sign < 0.5 else -1
            steps.append((name, arguments(name, self.magnitude, height, width, sign=sign, place=place, ops=self.ops)))
        return steps


def check_bytes(image: Tensor, name: str) -> None:
    """Refuse images that are not uint8."""
    if image.dtype != torch.uint8:
        raise UsageError(f"{name} takes images of uint8, not {image.dtype}; see normfree.data.mixing.to_uint8")


def apply(image: Tensor, steps: list[Step]) -> Tensor:
    """Operations by name and arguments, one after the other."""
    for name, how in steps:
        image = OPERATIONS[name](image, **how)
    return image


def arguments(
    name: str,
    magnitude: float,
    height: int,
    width: int,
    *,
    sign: int = 1,
    place: tuple[int, int] = (0, 0),
    ops: Literal["released", "sane"] = "released",
    constants: Constants = Constants(),
) -> dict[str, Any]:
    """Arguments of an operation at a magnitude, for an image of height x width pixels.

    Args:
        sign: 1 or -1: the direction of a geometric operation; of "sane" blends, too.
        place: (y, x) of Cutout's centre.
        constants: RandAugment's, or AutoAugment's.
    """
    sane, tenth = ops == "sane", magnitude / 10
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        how: dict[str, Any] = dict(factor=max(0.1, 1 + sign * 0.9 * tenth) if sane else tenth * 1.8 + 0.1)
        if name == "Contrast" and not sane:
            how["level"] = min(255, height * width // 256)
        return how
    if name in ("ShearX", "ShearY"):
        return dict(level=sign * tenth * 0.3, centred=sane)
    if name in ("TranslateX", "TranslateY"):
        return dict(pixels=sign * tenth * constants.translate)
    bits, threshold = int(tenth * 4), int(tenth * 256)
    others = dict(
        Rotate=dict(degrees=sign * tenth * 30),
        Posterize=dict(bits=min(max(1, 8 - bits if sane else bits), 8)),
        Solarize=dict(threshold=max(0, 256 - threshold) if sane else threshold % 256),
        SolarizeAdd=dict(addition=int(tenth * 110)),
        Cutout=dict(half=int(tenth * constants.cutout), y=place[0], x=place[1]),
    )
    return others.get(name, {})
