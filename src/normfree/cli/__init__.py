"""The ``normfree`` command: thin verbs over the rooms."""

from .main import main

__all__ = ["main"]
