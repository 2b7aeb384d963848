"""The file started.json of a run: the recipe it was given and its images, to compare with when it is resumed."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import Source, Split
from ..data.held_out import Part
from ..data.sources import TargetSplit
from ..errors import UsageError
from ..files import read_object, write_json
from ..recipes import Recipe
from ..training.checkpoints import FORMAT, check_format
from ..training.run import STARTED

MAX_DIFFERENCES = 8  # that a message names
SPLITS = dict(train="training", test="test")


def describe_images(source: Source[Any]) -> dict[str, Any]:
    """Class names, and for each split the number of its images and a hash of their names and labels.

    Boxes, masks and depths have a second hash, "targets", which runs of earlier versions lack.
    """
    content: dict[str, Any] = dict(classes=[str(name) for name in source.classes])
    for name, split in dict(train=source.train, test=source.test).items():
        content[name] = dict(images=len(split), names_and_labels=_hash(split))
        target_hash = getattr(split, "target_hash", None)
        if target_hash is not None:
            targets = "".join(map(target_hash, range(len(split))))
            content[name]["targets"] = hashlib.sha256(targets.encode()).hexdigest()
    return content


def write_started(folder: Path, asked: dict[str, Any], images: dict[str, Any]) -> None:
    """Write the recipe as it was given (:func:`as_asked`) and the images (:func:`describe_images`).

    Raises:
        RunFailed: it cannot be written.
    """
    write_json(folder / STARTED, dict(format=FORMAT, asked=asked, images=images))


def read_started(folder: Path) -> dict[str, Any]:
    """What :func:`write_started` wrote; {} if the file is damaged or missing, as in runs of earlier versions.

    A description of images that is not complete becomes {}.

    Raises:
        UsageError: a newer version wrote it.
    """
    content = read_object(folder / STARTED)
    try:
        check_format(content, folder / STARTED)
        sections = [content["images"], content["asked"], *content["asked"].values()]
    except UsageError:
        raise
    except (ValueError, KeyError, AttributeError):
        return {}
    if not all(isinstance(section, dict) for section in sections):
        return {}
    return content if _is_complete(content["images"]) else content | dict(images={})


def _is_complete(images: dict[str, Any]) -> bool:
    """Whether a description has all that :func:`describe_images` writes."""
    classes, splits = images.get("classes"), [images.get(name) for name in SPLITS]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return False
    return all(isinstance(split, dict) and {"images", "names_and_labels"} <= set(split) for split in splits)


def as_asked(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain JSON values, before the images or the machine fill in any of its fields."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def compare_images(before: dict[str, Any], now: dict[str, Any], source: str) -> list[str]:
    """What has changed about the images of a resumed run, in lines for the user.

    Args:
        before, now: of :func:`describe_images`; ``before`` has only class names for runs of earlier versions.

    Raises:
        UsageError: the classes or their order have changed, so labels would mean something else.
    """
    differing = _class_changes(before["classes"], now["classes"])
    if differing:
        more = f" and {len(differing) - MAX_DIFFERENCES} more" if len(differing) > MAX_DIFFERENCES else ""
        raise UsageError(
            f"the classes of {source} are not those that the run was started with: "
            f"{', '.join(differing[:MAX_DIFFERENCES])}{more}"
        )
    if "train" not in before:
        return ["the run does not say which images it was started with; only the classes were compared"]
    messages = []
    for name, word in SPLITS.items():
        old, new = before[name], now[name]
        if old["images"] != new["images"]:
            messages.append(f"{word} images of {source}: {new['images']} instead of {old['images']}")
        elif old["names_and_labels"] != new["names_and_labels"]:
            messages.append(f"{word} images of {source} are others than before: other names, labels or order")
        elif old.get("targets", new.get("targets")) != new.get("targets"):
            messages.append(f"{word} images of {source} have other boxes, masks or depths than before")
    return [*messages, "the run goes on with these images, and no longer as if it had not stopped"] if messages else []


def _class_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    removed, added = set(before) - set(now), set(now) - set(before)
    changes = [f"{name!r} is gone" for name in before if name in removed]
    changes += [f"{name!r} is new" for name in now if name in added]
    if changes or list(before) == list(now):
        return changes
    pairs = enumerate(zip(before, now, strict=False))
    changes = [f"class {index} was {a!r} and is {b!r}" for index, (a, b) in pairs if a != b]
    return changes or [f"there are {len(now)} instead of {len(before)}"]


def _hash(split: Split) -> str:
    """A hash of names and labels in their order; names begin below the folder that all share, which may be moved."""
    names = [split.name(index) for index in range(len(split))]
    if len({os.path.isabs(name) for name in names}) == 2:  # absolute and relative paths of a table share no folder
        names = [os.path.abspath(name) for name in names]
    folders = Counter(os.path.dirname(name) for name in names)
    root = os.path.commonpath(folders) if all(folders) else ""
    label = getattr(split, "label", lambda index: "")
    if isinstance(split.split if isinstance(split, Part) else split, TargetSplit):
        target = split.target  # pyright: ignore[reportAttributeAccessIssue] - a part has those of its split
        label = lambda index: target(index).tolist()  # noqa: E731
    digest = hashlib.sha256()
    for index, name in enumerate(names):
        digest.update(f"{name[len(root) :]}\0{label(index)}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
