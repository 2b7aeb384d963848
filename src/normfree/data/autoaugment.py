"""AutoAugment with policy v0, as EfficientNets were trained with (Cubuk et al., arXiv:1805.09501).

The policy has 25 sub-policies of two operations, each with a probability and a level. An image draws one sub-policy,
and each of its operations happens with its probability. The operations are RandAugment's as released
(:mod:`.randaugment`), a level means what a magnitude means there, but for two constants: translations are 25 pixels
per level, not 10, and Cutout's half side is 10 pixels per level, not 4. (v0 has no Cutout.)

What follows from the levels of v0, as in the released code: Posterize at level 2 would keep 0 bits and keeps 1;
Solarize at level 10 has the threshold 256, which a uint8 wraps to 0, so that it inverts every pixel; Rotate and ShearY
at level 0, and two operations of probability 0, change nothing.

NF-RegNets are less accurate and less stable with it (NF-ResNets, section 5.2).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import UsageError
from .randaugment import Constants, Step, apply, arguments, check_bytes

CONSTANTS = Constants(translate=250, cutout=100)
Operation = tuple[str, float, int]  # name, probability, level 0..10

POLICY_V0: tuple[tuple[Operation, Operation], ...] = (
    (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
    (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
    (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
    (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)


@dataclass(frozen=True)
class AutoAugment:
    """(C, H, W) uint8 -> the same, changed by a random sub-policy; the generator alone decides.

    Args:
        policy: "v0", the released policy for ImageNet.

    Raises:
        UsageError: another policy; images that are not uint8.

    Example:
        >>> image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
        >>> changed = AutoAugment()(image, torch.Generator().manual_seed(3))
        >>> [name for name, _ in AutoAugment().draw(32, 32, torch.Generator().manual_seed(3))]
        ['Equalize', 'ShearY']
    """

    policy: Literal["v0"] = "v0"

    def __post_init__(self) -> None:
        if self.policy != "v0":
            raise UsageError(f'policy of AutoAugment (={self.policy!r}) must be "v0"')

    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        check_bytes(image, "AutoAugment")
        height, width = image.shape[-2:]
        return apply(image, self.draw(height, width, generator))

    def __str__(self) -> str:
        return f"AutoAugment (policy {self.policy})"

    def draw(self, height: int, width: int, generator: torch.Generator | None = None) -> list[Step]:
        """The operations for one image of that size, in their order, with their arguments: none, one or two."""
        which, *drawn = torch.rand(9, generator=generator).tolist()
        steps = []
        for operation, (chance, sign, y, x) in zip(
            POLICY_V0[int(which * len(POLICY_V0))], (drawn[:4], drawn[4:]), strict=True
        ):
            if chance < operation[1]:
                place = int(y * height), int(x * width)
                steps.append(step(operation, height, width, sign=1 if sign < 0.5 else -1, place=place))
        return steps


def step(operation: Operation, height: int, width: int, *, sign: int = 1, place: tuple[int, int] = (0, 0)) -> Step:
    """An operation of a policy with its arguments for an image of height x width pixels, whatever its probability.

    Args:
        sign: 1 or -1: the direction of a geometric operation.
        place: (y, x) of Cutout's centre.

    Example:
        >>> step(("TranslateY", 0.8, 9), 224, 224, sign=-1)
        ('TranslateY', {'pixels': -225.0})
    """
    name, _, level = operation
    return name, arguments(name, level, height, width, sign=sign, place=place, constants=CONSTANTS)
