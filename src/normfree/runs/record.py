"""What a run was started with: its recipe as asked for and its images, to compare when it goes on."""

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

MOST = 8  # differences that are named
SPLITS = dict(train="training", test="test")


def images(source: Source[Any]) -> dict[str, Any]:
    """Class names, and of each split the number of its images and a hash of their names and labels.

    Where labels are boxes, masks or depths, they have a hash of their own, which runs from before do not have.
    """
    found: dict[str, Any] = dict(classes=[str(name) for name in source.classes])
    for name, split in dict(train=source.train, test=source.test).items():
        found[name] = dict(images=len(split), names_and_labels=_hash(split))
        target_hash = getattr(split, "target_hash", None)
        if target_hash is not None:
            targets = "".join(map(target_hash, range(len(split))))
            found[name]["targets"] = hashlib.sha256(targets.encode()).hexdigest()
    return found


def write(folder: Path, asked: dict[str, Any], found: dict[str, Any]) -> None:
    """Write what was asked for, and the images that were found.

    Raises:
        RunFailed: it cannot be written.
    """
    write_json(folder / STARTED, dict(format=FORMAT, asked=asked, images=found))


def read(folder: Path) -> dict[str, Any]:
    """What :func:`write` wrote; nothing of a run from before, or of a damaged file. Images that say too little say
    nothing.

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
    return content if _whole(content["images"]) else content | dict(images={})


def _whole(found: dict[str, Any]) -> bool:
    """Whether it is as :func:`images` makes it."""
    classes, splits = found.get("classes"), [found.get(name) for name in SPLITS]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return False
    return all(isinstance(split, dict) and {"images", "names_and_labels"} <= set(split) for split in splits)


def as_asked(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON, before anything in it is decided by the images or the machine."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def compare(before: dict[str, Any], now: dict[str, Any], source: str) -> list[str]:
    """What is different about the images of a run that goes on, in lines for the user.

    Args:
        before, now: of :func:`images`; of a run from before this was written, ``before`` has class names alone.

    Raises:
        UsageError: other classes, or another order of them: labels would mean something else.
    """
    differing = _classes(before["classes"], now["classes"])
    if differing:
        more = f" and {len(differing) - MOST} more" if len(differing) > MOST else ""
        raise UsageError(
            f"the classes of {source} are not those that the run was started with: {', '.join(differing[:MOST])}{more}"
        )
    if "train" not in before:
        return ["the run does not say which images it was started with; only the classes were compared"]
    told = []
    for name, word in SPLITS.items():
        then, here = before[name], now[name]
        if then["images"] != here["images"]:
            told.append(f"{word} images of {source}: {here['images']} instead of {then['images']}")
        elif then["names_and_labels"] != here["names_and_labels"]:
            told.append(f"{word} images of {source} are others than before: other names, labels or order")
        elif then.get("targets", here.get("targets")) != here.get("targets"):
            told.append(f"{word} images of {source} have other boxes, masks or depths than before")
    return [*told, "the run goes on with these images, and no longer as if it had not stopped"] if told else []


def _classes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    gone, new = set(before) - set(now), set(now) - set(before)
    told = [f"{name!r} is gone" for name in before if name in gone]
    told += [f"{name!r} is new" for name in now if name in new]
    if told or list(before) == list(now):
        return told
    pairs = enumerate(zip(before, now, strict=False))
    told = [f"class {place} was {a!r} and is {b!r}" for place, (a, b) in pairs if a != b]
    return told or [f"there are {len(now)} instead of {len(before)}"]


def _hash(split: Split) -> str:
    """Of names, below the folder that all share, and labels in their order: the same where the folder was moved."""
    names = [split.name(index) for index in range(len(split))]
    if len({os.path.isabs(name) for name in names}) == 2:  # a table may have both, which share no folder as they are
        names = [os.path.abspath(name) for name in names]
    folders = Counter(os.path.dirname(name) for name in names)
    root = os.path.commonpath(folders) if all(folders) else ""
    label = getattr(split, "label", lambda index: "")
    if isinstance(split.split if isinstance(split, Part) else split, TargetSplit):
        target = split.target  # pyright: ignore[reportAttributeAccessIssue] - a part has those of its split
        label = lambda index: target(index).tolist()  # noqa: E731
    found = hashlib.sha256()
    for index, name in enumerate(names):
        found.update(f"{name[len(root) :]}\0{label(index)}\n".encode("utf-8", "surrogatepass"))
    return found.hexdigest()
