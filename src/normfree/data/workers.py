"""How many processes decode images where nobody says."""

from typing import Any

from .held_out import Part
from .machine import cores
from .scenes import SceneSplit
from .sources import ArraySplit, NoiseSplit, Source, TargetSplit
from .splits import ImageSplit
from .volume_folders import VolumePairs
from .volumes import VolumeSplit

MAX_WORKERS, MIN_IMAGES = 8, 100  # processes; images, below which it is not worth starting them
COMPUTED = ArraySplit, NoiseSplit, SceneSplit, VolumeSplit  # nothing is decoded


def workers_for(source: Source[ImageSplit]) -> int:
    """One for each core, see :func:`cores`, up to 8; none for few images, or where nothing is decoded.

    Volumes in files are large, so they are never few.
    """
    few = len(source.train) < MIN_IMAGES and not isinstance(source.train, VolumePairs)
    if isinstance(innermost(source.train), COMPUTED) or few:
        return 0
    return min(cores(), MAX_WORKERS) if cores() > 1 else 0


def innermost(split: Any) -> Any:
    """The split whose images another one has, or a part of one."""
    while isinstance(split, Part | TargetSplit):
        split = split.split if isinstance(split, Part) else split.images
    return split
