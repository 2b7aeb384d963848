"""Training on a part of the training images."""

import dataclasses
import random
from typing import Any

from .held_out import Part
from .sources import Source


def fewer_images(source: Source[Any], fraction: float, seed: int) -> Source[Any]:
    """The source with a fraction of the training images of each class, at least one of each.

    The choice depends on the seed, on how many images each class has, and on their order. With the same seed, a smaller
    fraction is a part of a larger one.

    Example:
        >>> from normfree.data import digits
        >>> len(digits().train), len(fewer_images(digits(), 0.1, seed=0).train)
        (1437, 142)
    """
    split = source.train
    members: dict[int, list[int]] = {}
    for index in range(len(split)):
        members.setdefault(split.label(index), []).append(index)
    chosen: list[int] = []
    for label, indices in sorted(members.items()):
        random.Random(f"{seed} {label}").shuffle(indices)
        chosen += indices[: max(1, round(fraction * len(indices)))]
    note = f"{len(chosen):,} of {len(split):,} training images are used (data.train_fraction, seed {seed})"
    return dataclasses.replace(source, train=Part(split, sorted(chosen)), notes=(*source.notes, note))
