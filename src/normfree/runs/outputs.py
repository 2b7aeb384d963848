"""Files that a command must not overwrite: those of a run, and its inputs."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..data.held_out import HELD_OUT
from ..errors import UsageError
from ..training.checkpoints import MANIFEST, STATE
from ..training.run import CHECKPOINTS, ENVIRONMENT, FILM, METRICS, RECIPE, STARTED

RUN_FILES = (FILM, ENVIRONMENT, STARTED, HELD_OUT)  # of a run, with the same endings as outputs of commands


def try_to_write(path: str | Path) -> None:
    """Open a file for writing and leave everything as it was; raises OSError where that cannot be done."""
    existed = Path(path).exists()
    Path(path).open("ab").close()
    if not existed:
        Path(path).unlink()


def check_output(flag: str, path: str | Path, endings: Iterable[str], inputs: Iterable[str | Path] = ()) -> None:
    """Refuse an output that would overwrite a file of a run or an input; other files, pipes and devices are allowed.

    Args:
        flag: the option that names the file.
        endings: of the output, such as ``.csv``; a file in a run's folder that ends so is an earlier output.
        inputs: files that are read; a text such as ``csv:train.csv,test.csv`` names several.

    Raises:
        UsageError: it is such a file.
    """
    if not os.path.isfile(path):
        return
    for text in map(str, inputs):
        for name in (text, *text.partition(":")[2].split(","), *text.split(",")):
            if os.path.isfile(name) and os.path.samefile(name, path):
                raise UsageError(f"{flag} {path} is a file that is read here; name another one")
    resolved = Path(os.path.realpath(path))
    for folder in resolved.parents:
        if _is_run(folder):
            inside = resolved.relative_to(folder).parts
            if resolved.suffix.lower() not in endings or inside[0] in (CHECKPOINTS, *RUN_FILES):
                raise UsageError(f"{flag} {path} is a file of the run in {folder}; name another one")
        if _is_checkpoint(folder):
            raise UsageError(f"{flag} {path} is a file of the checkpoint in {folder}; name another one")


def _is_run(folder: Path) -> bool:
    names = (CHECKPOINTS, METRICS, STARTED)
    return os.path.isfile(folder / RECIPE) and any(os.path.exists(folder / name) for name in names)


def _is_checkpoint(folder: Path) -> bool:
    return os.path.isfile(folder / STATE) and os.path.isfile(folder / MANIFEST)
