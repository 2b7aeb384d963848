"""Runs of ``normfree train``: making one, going on with one."""

from .lock import RunLock
from .prepare import prepare
from .resume import resumed_recipe, run_to_go_on_with

__all__ = ["RunLock", "prepare", "resumed_recipe", "run_to_go_on_with"]
