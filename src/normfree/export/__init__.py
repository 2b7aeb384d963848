"""Networks as they are deployed: folded, prepacked for the CPU."""

from .fold import fold
from .prepack import prepack

__all__ = ["fold", "prepack"]
