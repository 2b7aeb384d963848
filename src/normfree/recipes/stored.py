"""Recipes that runs of earlier versions left: fields that there were not yet mean what those versions did."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN_FILES = ("recipe.yaml", "metrics.jsonl")  # what a run folder holds


def is_of_run(path: str) -> bool:
    """Whether a recipe file is that of a run folder."""
    recipe, metrics = RUN_FILES
    return Path(path).name == recipe and Path(path).with_name(metrics).is_file()


def as_it_was(content: Any) -> Any:
    """The nested dicts of a stored recipe, with what its version did for fields of the data section that it lacks.

    All networks were evaluated with the squash, and images of 16 bits became 8.
    """
    if not isinstance(content, Mapping) or not isinstance(data := content.get("data"), Mapping):
        return content
    task = content.get("task")
    named = task.get("name") if isinstance(task, Mapping) else None
    then: dict[str, Any] = {"value_range": None}
    if named in (None, "classification"):
        then["test_crop"] = "squash"
    return {**content, "data": {**then, **data}}
