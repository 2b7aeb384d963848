"""What tests leave in the root of the repository, which they should not write into."""

import fnmatch
from collections.abc import Set
from pathlib import Path

# what pytest, hypothesis, ruff, coverage and builds, and editors while they save, put there
OF_TOOLS = (
    "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", ".coverage*", ".venv*",
    "build", "dist", "site", "*.egg-info", ".*.sw?", "*~",
)  # fmt: skip


def names(root: Path) -> set[str]:
    """Files and folders at the top of a folder, without those of tools."""
    found = {path.name for path in root.iterdir()}
    return {name for name in found if not any(fnmatch.fnmatch(name, pattern) for pattern in OF_TOOLS)}


def appeared(root: Path, before: Set[str]) -> list[str]:
    """What is there now, and was not there before."""
    return sorted(names(root) - before)
