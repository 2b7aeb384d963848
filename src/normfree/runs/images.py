"""The image files that a command is given."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..data import find_images
from ..data.walk import Walk
from ..words import tell


def given_images(paths: Sequence[str]) -> list[Path]:
    """What :func:`normfree.data.find_images` finds; says on standard error what it left out.

    Raises:
        UsageError: as there.
    """
    walk = Walk()
    found = find_images(list(paths), walk)
    tell(*walk.notes(", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")), file=sys.stderr)
    return found
