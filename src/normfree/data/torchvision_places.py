"""Where the data sets lie that torchvision knows, and how they come there: on disk already, or downloaded by it."""

import contextlib
import contextvars
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError, did_you_mean
from .idx import find_idx

FOLDER = "NORMFREE_DATA"  # environment variable: where data sets lie
WAIT = 30.0  # seconds for an answer of a server
_may_download = contextvars.ContextVar("may_download", default=True)


@dataclass(frozen=True)
class Named:
    """A set of torchvision: arguments of its splits, and what lies in its folder, by which it is found.

    Attributes:
        test: None: it has no test split.
        images: "arrays" (``data``), "idx" (MNIST's files), "hdf5" (of PCAM), or "files".
        files: a file's beginning, of MNIST's.
        unused: a further split.
        downloads: whether torchvision can download it; a set that it cannot has no folder of its own in the given one.
    """

    there: str
    train: dict[str, Any] = field(default_factory=lambda: dict(train=True))
    test: dict[str, Any] | None = field(default_factory=lambda: dict(train=False))
    images: str = "arrays"
    files: tuple[str, str] = ("train", "t10k")
    unused: str = ""
    downloads: bool = True


def _split(there: str, train: str = "train", test: str = "test", images: str = "files", **more: Any) -> Named:
    unused = more.pop("unused", "")
    return Named(there, dict(split=train) | more, dict(split=test) | more, images, unused=unused)


SETS = {
    "CIFAR10": Named("cifar-10-batches-py"),
    "CIFAR100": Named("cifar-100-python"),
    "USPS": Named("usps.bz2"),
    "SEMEION": Named("semeion.data", {}, None),
    "SVHN": _split("train_32x32.mat", images="arrays"),
    "STL10": _split("stl10_binary", images="arrays"),
    "MNIST": Named("MNIST/raw", images="idx"),
    "FashionMNIST": Named("FashionMNIST/raw", images="idx"),
    "KMNIST": Named("KMNIST/raw", images="idx"),
    "EMNIST": Named(
        "EMNIST/raw",
        dict(split="balanced", train=True),
        dict(split="balanced", train=False),
        "idx",
        ("emnist-balanced-train", "emnist-balanced-test"),
    ),
    "Caltech101": Named("caltech101/101_ObjectCategories", {}, None, "files"),
    "Caltech256": Named("caltech256/256_ObjectCategories", {}, None, "files"),
    "Country211": _split("country211", unused="valid"),
    "DTD": _split("dtd", unused="val"),
    "EuroSAT": Named("eurosat/2750", {}, None, "files"),
    "FGVCAircraft": _split("fgvc-aircraft-2013b", "trainval"),
    "Flowers102": _split("flowers-102", unused="val"),
    "Food101": _split("food-101"),
    "GTSRB": _split("gtsrb/GTSRB"),
    "Imagenette": _split("imagenette2", test="val", size="full"),
    "OxfordIIITPet": _split("oxford-iiit-pet", "trainval"),
    "PCAM": _split("pcam", images="hdf5", unused="val"),
    "Places365": _split("data_256_standard", "train-standard", "val", small=True),
    "RenderedSST2": _split("rendered-sst2", unused="val"),
    "StanfordCars": _split("stanford_cars"),
    "SUN397": Named("SUN397", {}, None, "files"),
}
PAIRS = {
    "VOCSegmentation": Named("VOCdevkit/VOC2012", dict(image_set="train"), dict(image_set="val")),
    "OxfordIIITPet": SETS["OxfordIIITPet"],
}
OBJECTS = {
    "VOCDetection": PAIRS["VOCSegmentation"],
    "CocoDetection": Named("coco", downloads=False),
}


def absolute(text: str) -> str:
    """ "NAME:FOLDER", by which a set that is there is found from any folder."""
    name, _, path = text.partition(":")
    name = _known(name) or name
    about = {**OBJECTS, **PAIRS, **SETS}.get(name)
    root = None if about is None else _root(name, about, path)
    return f"{name}:{root.resolve()}" if root is not None else text


def placed(text: str, sets: dict[str, Named], task: str) -> tuple[str, Path]:
    """The name of a set, and the folder where it is, or is now.

    Args:
        sets: those for the task.

    Raises:
        UsageError: an unknown name; it is not there and cannot be downloaded.
    """
    name, _, path = text.partition(":")
    found = _known(name, sets)
    if found is None and _known(name) is not None:
        raise UsageError(f"data.source (='torchvision:{text}') is not for {task}; {', '.join(sets)} are")
    if found is None:
        hint = did_you_mean(name, sets, f"known for {task}: {', '.join(sets)}")
        raise UsageError(f"data.source (='torchvision:{text}'): no such set of torchvision; {hint}")
    root = _root(found, sets[found], path)
    return found, _downloaded(found, sets[found], path) if root is None else root


def _known(name: str, sets: dict[str, Named] | None = None) -> str | None:
    """A name as it is written, whatever its case."""
    return next((one for one in sets or {**SETS, **PAIRS, **OBJECTS} if one.lower() == name.lower()), None)


def _places(path: str) -> list[Path]:
    """Folders in which sets are looked for."""
    if path:
        return [Path(path).expanduser()]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    named = [Path(os.environ[FOLDER]).expanduser()] if os.environ.get(FOLDER) else []
    return [*named, Path("data"), Path(cache) / "normfree" / "data"]


def _root(name: str, about: Named, path: str) -> Path | None:
    """The folder that a set is in; None: it is in none."""
    if not about.downloads:
        folders = [Path(path).expanduser()] if path else [place / about.there for place in _places(path)]
        return next((folder for folder in folders if folder.is_dir()), None)
    for place in _places(path):
        if (place / about.there).exists() or (about.images == "idx" and idx_folder(place, about) is not None):
            return place
        first = about.there.partition("/")[0]
        if place.name == first and (place.parent / about.there).exists():  # the set's own folder
            return place.parent
    return None


def idx_folder(root: Path, about: Named) -> Path | None:
    """Where MNIST's files are: in torchvision's folders, or in the given one."""
    first = f"{about.files[0]}-images-idx3-ubyte"
    return next((place for place in (root / about.there, root) if find_idx(place, first) is not None), None)


@contextlib.contextmanager
def without_downloads() -> Iterator[None]:
    """Within it, a set that is not on disk is an error, as where there is no network.

    Example:
        >>> from normfree.data import open_source
        >>> with without_downloads():
        ...     open_source("torchvision:CIFAR10:nowhere", 3)
        Traceback (most recent call last):
        ...
        normfree.errors.UsageError: data.source: CIFAR10 is not in nowhere; it is downloaded when a run needs it
    """
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


def _downloaded(name: str, about: Named, path: str) -> Path:
    """Where torchvision has put a set that was not there."""
    places = _places(path)
    root = places[0] if path or os.environ.get(FOLDER) else places[-1]
    if not about.downloads:
        looked = path or ", ".join(str(place / about.there) for place in places)
        raise UsageError(
            f"data.source: {name} is not in {looked}, and torchvision does not download it; name its folder: "
            f"torchvision:{name}:FOLDER"
        )
    if not _may_download.get():
        looked = ", ".join(map(str, places))
        raise UsageError(f"data.source: {name} is not in {looked}; it is downloaded when a run needs it")
    try:
        with _alone(root), _patience():
            if _root(name, about, str(root)) is None:  # another process may have been quicker
                for arguments in (about.train, about.test):
                    if arguments is not None:
                        torchvision_class(name)(str(root), download=True, **arguments)
    except Exception as error:  # no network, no such address any more, a full disk, ...
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        looked = ", ".join(map(str, places))
        raise UsageError(
            f"data.source: {name} is not in {looked}, and torchvision could not download it ({reason}); put "
            f"{about.there} into {root}, or name its folder: torchvision:{name}:FOLDER"
        ) from error
    return root


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time downloads into a folder."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".normfree-lock", "w") as file:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(WAIT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def torchvision_class(name: str) -> Any:
    """A class of torchvision's data sets."""
    from torchvision import datasets  # some of its modules are slow to import

    return getattr(datasets, name)
