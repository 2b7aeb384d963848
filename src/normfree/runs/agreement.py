"""Whether all processes of a run were started alike, compared before anything is written or trained.

A difference would show late or never: as gradients of other images, as other steps, or as a wait without an end.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from ..errors import RunFailed, UsageError
from ..recipes import Recipe, field_paths
from ..training import Replicas
from ..training.environment import software
from .started import SPLITS, as_asked

# fields that may differ: a machine may have its images elsewhere; the number of threads is compared by itself
MAY_DIFFER = ("data.source", "data.workers", "train.threads")
MAX_DIFFERENCES, MAX_LETTERS = 8, 60  # that a message names, and of a value in it
T = TypeVar("T")


def settings(recipe: Recipe) -> dict[str, Any]:
    """What must be the same in all processes, by name: the recipe, the versions and the number of threads."""
    content = as_asked(recipe)
    pairs = (path.split(".") for path in field_paths() if path not in MAY_DIFFER)
    fields = {f"{section}.{field}": content[section][field] for section, field in pairs}
    threads = recipe.train.threads or torch.get_num_threads()
    return fields | software() | {"the number of threads (--train.threads)": threads}


def contents(images: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same about the images, by name.

    Args:
        images: of :func:`.started.describe_images`.
    """
    values = dict(classes=images["classes"])
    for name, word in SPLITS.items():
        split = images[name]
        values[f"the number of {word} images"] = split["images"]
        values[f"the hash of names and labels of {word} images"] = split["names_and_labels"][:12]
        if "targets" in split:
            values[f"the hash of boxes, masks or depths of {word} images"] = split["targets"][:12]
    return values


def compare_processes(replicas: Replicas, values: Mapping[str, Any]) -> None:
    """Refuse processes that were not started alike, in each of them.

    Args:
        values: of this process, by name.

    Raises:
        UsageError: a difference; the message names the process, its value and the usual one.
    """
    everyone = replicas.gather(dict(values))
    differences = []
    for name in dict.fromkeys(name for one in everyone for name in one):
        shown = [json.dumps(one.get(name)) for one in everyone]
        usual = Counter(shown).most_common(1)[0][0]  # of several the one of the lowest number
        first = shown.index(usual)
        differences += [
            f"process {rank} has {name} {value:.{MAX_LETTERS}} where process {first} has {usual:.{MAX_LETTERS}}"
            for rank, value in enumerate(shown)
            if value != usual
        ]
    if differences:
        more = f", and {len(differences) - MAX_DIFFERENCES} more" if len(differences) > MAX_DIFFERENCES else ""
        raise UsageError(
            f"{', '.join(differences[:MAX_DIFFERENCES])}{more}; start all processes of a run by the same command, "
            "with the same files and versions"
        )


def on_all(replicas: Replicas, do: Callable[[], T]) -> T:
    """The result of ``do`` in each process; an error in one of them is raised in all."""
    results: list[T] = []
    failed = None
    try:
        results.append(do())
    except (UsageError, RunFailed) as error:
        failed = error
    for rank, error in enumerate(replicas.gather(failed)):
        if error is not None:
            raise error if replicas.world == 1 else type(error)(f"process {rank}: {error}")
    return results[0]
