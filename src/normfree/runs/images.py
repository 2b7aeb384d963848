"""The image files among the arguments of a command."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..data import find_images
from ..data.walk import Walk
from ..words import tell


def given_images(paths: Sequence[str], endings: tuple[str, ...] | None = None) -> list[Path]:
    """The paths of :func:`normfree.data.find_images`; messages about skipped files go to standard error.

    Args:
        endings: of the files that are taken from folders; None: those of image files.

    Raises:
        UsageError: as there.
    """
    walk = Walk()
    images = find_images(list(paths), walk, endings)
    tell(*walk.notes(", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")), file=sys.stderr)
    return images
