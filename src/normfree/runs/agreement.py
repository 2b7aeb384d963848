"""Whether the processes of a run were started alike: compared before anything is written or trained.

What differs would be found late or never: gradients of other images, other steps, or a wait without an end.
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
from .record import SPLITS, as_asked

OWN = ("data.source", "data.workers", "train.threads")  # a machine may have its images elsewhere; threads are counted
MOST, LONGEST = 8, 60  # differences that are named; letters of a value
T = TypeVar("T")


def settings(recipe: Recipe) -> dict[str, Any]:
    """What has to be the same in all processes: the recipe, versions and the number of threads, by name."""
    content = as_asked(recipe)
    pairs = (path.split(".") for path in field_paths() if path not in OWN)
    fields = {f"{section}.{field}": content[section][field] for section, field in pairs}
    threads = recipe.train.threads or torch.get_num_threads()
    return fields | software() | {"the number of threads (--train.threads)": threads}


def contents(images: Mapping[str, Any]) -> dict[str, Any]:
    """The same of what :func:`.record.images` found."""
    found = dict(classes=images["classes"])
    for name, word in SPLITS.items():
        split = images[name]
        found[f"the number of {word} images"] = split["images"]
        found[f"the hash of names and labels of {word} images"] = split["names_and_labels"][:12]
        if "targets" in split:
            found[f"the hash of boxes, masks or depths of {word} images"] = split["targets"][:12]
    return found


def compare_processes(replicas: Replicas, own: Mapping[str, Any]) -> None:
    """Refuse processes that were not started alike, in each of them.

    Args:
        own: what this process has, by name.

    Raises:
        UsageError: the process, what it has and what the others have.
    """
    everyone = replicas.gather(dict(own))
    told = []
    for name in dict.fromkeys(name for one in everyone for name in one):
        shown = [json.dumps(one.get(name)) for one in everyone]
        usual = Counter(shown).most_common(1)[0][0]  # of several the one of the lowest number
        first = shown.index(usual)
        told += [
            f"process {rank} has {name} {value:.{LONGEST}} where process {first} has {usual:.{LONGEST}}"
            for rank, value in enumerate(shown)
            if value != usual
        ]
    if told:
        more = f", and {len(told) - MOST} more" if len(told) > MOST else ""
        raise UsageError(
            f"{', '.join(told[:MOST])}{more}; start all processes of a run by the same command, with the same files "
            "and versions"
        )


def together(replicas: Replicas, do: Callable[[], T]) -> T:
    """What each process finds for itself; what one of them cannot use, none can."""
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
