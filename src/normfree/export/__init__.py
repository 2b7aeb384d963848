"""Networks as others run them: folded into plain convolutions."""

from .fold import fold

__all__ = ["fold"]
