"""Recipes of runs of earlier versions: fields that did not exist then get the values those versions worked with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN_FILES = ("recipe.yaml", "metrics.jsonl")  # what a run folder holds


def is_run_recipe(path: str) -> bool:
    """Whether a recipe file is that of a run folder."""
    recipe, metrics = RUN_FILES
    return Path(path).name == recipe and Path(path).with_name(metrics).is_file()


def with_earlier_defaults(content: Any) -> Any:
    """A stored recipe's nested dicts, with what its version did for missing fields of the data section.

    Then all classifiers were evaluated with test_crop "squash", and images of 16 bits were reduced to 8.
    """
    if not isinstance(content, Mapping) or not isinstance(data := content.get("data"), Mapping):
        return content
    task = content.get("task")
    named = task.get("name") if isinstance(task, Mapping) else None
    then: dict[str, Any] = {"value_range": None}
    if named in (None, "classification"):
        then["test_crop"] = "squash"
    return {**content, "data": {**then, **data}}
