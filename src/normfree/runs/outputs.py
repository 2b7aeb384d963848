"""Files that a command may not write over: those of a run, and its own inputs."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..data.held_out import HELD_OUT
from ..errors import UsageError
from ..training.checkpoints import MANIFEST, STATE
from ..training.run import CHECKPOINTS, ENVIRONMENT, FILM, METRICS, RECIPE, STARTED

OWN = (FILM, ENVIRONMENT, STARTED, HELD_OUT)  # files of a run that end like what is written here


def check_output(flag: str, path: str | Path, endings: Iterable[str], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse a file that is there and not for this: a run's, or an input. Another file, a pipe or a device may be.

    Args:
        flag: the option that names the file.
        endings: of what is written, such as ``.csv``: a file in a run's folder that ends so is an earlier one.
        inputs: files that are read; texts such as ``csv:train.csv,test.csv`` name several.

    Raises:
        UsageError: it is such a file.
    """
    if not os.path.isfile(path):
        return
    for text in map(str, inputs):
        for name in (text, *text.partition(":")[2].split(","), *text.split(",")):
            if os.path.isfile(name) and os.path.samefile(name, path):
                raise UsageError(f"{flag} {path} is a file that is read here; name another one")
    real = Path(os.path.realpath(path))
    for folder in real.parents:
        if _is_run(folder):
            inside = real.relative_to(folder).parts
            if real.suffix.lower() not in endings or inside[0] in (CHECKPOINTS, *OWN):
                raise UsageError(f"{flag} {path} is a file of the run in {folder}; name another one")
        if _is_checkpoint(folder):
            raise UsageError(f"{flag} {path} is a file of the checkpoint in {folder}; name another one")


def _is_run(folder: Path) -> bool:
    names = (CHECKPOINTS, METRICS, STARTED)
    return os.path.isfile(folder / RECIPE) and any(os.path.exists(folder / name) for name in names)


def _is_checkpoint(folder: Path) -> bool:
    return os.path.isfile(folder / STATE) and os.path.isfile(folder / MANIFEST)
