"""A run's folder: what is in it, and writing it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import RunFailed, UsageError
from .checkpoint import read_weights, save_weights

RECIPE, METRICS, CURVES = "recipe.yaml", "metrics.jsonl", "curves.png"


def new_folder(name: str, out: str | None) -> Path:
    """The folder of a new run: ``out``, or the first of runs/NAME, runs/NAME-2, ... that is not there.

    Raises:
        UsageError: ``out`` is a file or a folder with something in it; it cannot be made.
    """
    if out is None:
        folder, number = Path("runs") / name, 1
        while folder.exists():
            number += 1
            folder = Path("runs") / f"{name}-{number}"
    else:
        folder = Path(out)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise UsageError(f"--out {folder} exists already; name a new folder (runs are never overwritten)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS).touch()
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    return folder


class Run:
    """Writes one run's folder: metrics as JSON lines, checkpoints "last" and "best".

    Args:
        folder: from :func:`new_folder`.
        description: what a checkpoint needs to be used alone (model, classes, preprocessing); JSON.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any]):
        self.folder, self.description = folder, dict(description)
        self.saved_step: int | None = None  # of the last checkpoint

    def log(self, **fields: Any) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(fields) + "\n")
        except OSError as error:
            raise RunFailed(f"cannot write {self.folder / METRICS}: {error.strerror or error}") from error

    def save(self, which: str, weights: Mapping[str, Mapping[str, Tensor]], **fields: Any) -> None:
        """Checkpoint ``which`` ("last" or "best") with files ``KIND.safetensors`` for kinds "weights" and "ema"."""
        for kind, state in weights.items():
            path = self.checkpoint(which) / f"{kind}.safetensors"
            save_weights(path, state, {**self.description, **fields, "kind": kind})
        if which == "last":
            self.saved_step = fields.get("step")

    def checkpoint(self, which: str) -> Path:
        return self.folder / "checkpoints" / which


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def read_checkpoint(path: str | Path, which: str = "last", kind: str | None = None) -> tuple[dict, dict, Path]:
    """Tensors, description and path of a run folder's checkpoint, or of a .safetensors file.

    Args:
        which: "last" or "best".
        kind: "ema" or "weights"; None takes the moving average where there is one.

    Raises:
        UsageError: no such run or checkpoint; an unreadable file.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "checkpoints" / which
        kinds = [kind] if kind else ["ema", "weights"]
        path = next((file for k in kinds if (file := folder / f"{k}.safetensors").is_file()), None)
        if path is None:
            wanted = " or ".join(f"{k}.safetensors" for k in kinds)
            raise UsageError(f"{folder} has no {wanted}; a run folder is what `normfree train` printed at its end")
    elif not path.is_file():
        raise UsageError(f"{path} does not exist; give a run folder or a .safetensors file")
    return (*read_weights(path), path)
