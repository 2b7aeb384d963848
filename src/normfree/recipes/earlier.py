"""Recipes of runs of earlier versions: fields that did not exist then get the values that those versions used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN_FILES = ("recipe.yaml", "metrics.jsonl")  # files in a run folder


def is_run_recipe(path: str) -> bool:
    """Whether a recipe file lies in a run folder."""
    recipe, metrics = RUN_FILES
    return Path(path).name == recipe and Path(path).with_name(metrics).is_file()


def with_earlier_defaults(content: Any) -> Any:
    """The nested dicts of a stored recipe; missing fields of the data section get what its version did.

    Earlier versions evaluated all classifiers with test_crop "squash" and reduced images of 16 bits to 8.
    """
    if not isinstance(content, Mapping) or not isinstance(data := content.get("data"), Mapping):
        return content
    task = content.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    defaults: dict[str, Any] = {"value_range": None}
    if name in (None, "classification"):
        defaults["test_crop"] = "squash"
    return {**content, "data": {**defaults, **data}}
