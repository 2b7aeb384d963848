"""A run's folder: its files, and writing them."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UsageError, check_utf8
from ..files import append_line, read_lines, read_object, whole_file, write_json
from ..words import counted
from .checkpoints import STATE, Checkpoints, damage, find_checkpoint
from .trackers import opened
from .weights_file import read_weights

RECIPE, METRICS, CURVES, CHECKPOINTS = "recipe.yaml", "metrics.jsonl", "curves.png", "checkpoints"
CLIPPING, FILM, ENVIRONMENT = "clipping.jsonl", "spp.jsonl", "environment.json"
LINES = METRICS, CLIPPING, FILM  # files that a run appends to
STARTED, LOCK = "started.json", "lock"  # the settings of the start; the process that writes the run now
STARTING = "starting"  # exists from the start of a run to its first checkpoint


def new_folder(name: str, out: str | None, take: Callable[[Path], None] = lambda folder: None) -> Path:
    """The folder of a new run: ``out``, or the first of runs/NAME, runs/NAME-2, ... that does not exist.

    ``out`` may be the folder of a run that was killed before its first checkpoint, which the file ``starting`` in it
    shows; its files are then written anew.

    >>> folder = new_folder("digits", str(Path(tempfile.mkdtemp()) / "run"))
    >>> sorted(path.name for path in folder.iterdir())
    ['metrics.jsonl', 'starting']

    Args:
        take: called with the folder once it exists, to lock it.

    Raises:
        UsageError: ``out`` is a file or a folder with something in it; it cannot be made.
    """
    folder, number = Path("runs") / name if out is None else Path(out), 1
    check_utf8(folder, "--out ")
    try:
        if out is None:
            while not _made(folder):
                number += 1
                folder = Path("runs") / f"{name}-{number}"
        else:
            _must_be_empty(folder)
            folder.mkdir(parents=True, exist_ok=True)
        take(folder)
        _must_be_empty(folder)  # another process may have been here first
        (folder / STARTING).touch()
        for path in (folder / name for name in LINES):
            if path.name == METRICS or path.exists():
                path.write_bytes(b"")
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    return folder


def _made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has written a checkpoint, damaged or not."""
    return any(
        path.name.removeprefix("step-").split(".")[0].isdigit() and not path.name.endswith(".part")
        for path in (folder / CHECKPOINTS).glob("step-*")
    )


def _must_be_empty(folder: Path) -> None:
    if (folder / STARTING).is_file() and not has_checkpoint(folder):
        return
    if folder.is_file() or (folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())):
        raise UsageError(f"--out {folder} exists already; name a new folder (runs are never overwritten)")


class Run:
    """Writes one run's folder: metrics as JSON lines, checkpoints.

    Args:
        folder: from :func:`new_folder`.
        description: what a checkpoint needs to be used alone (model, classes, preprocessing); JSON.
        keep_every: see :class:`Checkpoints`.
        trackers: names of those that get the metrics, too, see :mod:`.trackers`.
        check: called before every write; raises RunFailed if another process has taken the folder.

    Raises:
        UsageError: a tracker's package is missing, or it cannot begin.
    """

    def __init__(
        self,
        folder: str | Path,
        description: Mapping[str, Any],
        keep_every: int | None = None,
        trackers: Sequence[str] = (),
        check: Callable[[], None] = lambda: None,
    ):
        self.check, folder = check, Path(folder)
        self.folder, self.trackers = folder, opened(trackers, folder, description.get("recipe", {}))
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, description, keep_every)

    def log(self, **fields: Any) -> None:
        """Append one line to metrics.jsonl."""
        self._append(METRICS, fields)
        for tracker in self.trackers:
            if fields["kind"] == "end":
                tracker.end(str(fields.get("state")))
            elif numbers := {f"{fields['kind']}/{name}": value for name, value in _numbers(fields)}:
                tracker.log(numbers, fields["step"])

    def log_clipping(self, step: int, layers: Mapping[str, Any]) -> None:
        """Append one line to clipping.jsonl: per layer the fraction of units clipped, and the largest ratio of a unit's
        gradient norm to its weight norm."""
        self._append(CLIPPING, dict(step=step, layers=layers))

    def describe(self, environment: Mapping[str, str]) -> None:
        """Write environment.json; a resumed run keeps the time of its first start."""
        path = self.folder / ENVIRONMENT
        earlier = read_object(path)
        if "started" in earlier:
            environment = {**environment, "started": earlier["started"], "resumed": environment["started"]}
        write_json(path, environment)

    def mark_resumable(self) -> None:
        """Note that the first checkpoint exists, so that the run can be resumed."""
        (self.folder / STARTING).unlink(missing_ok=True)

    def _append(self, name: str, fields: Mapping[str, Any]) -> None:
        self.check()
        append_line(self.folder / name, fields)

    def drop_after(self, step: int) -> list[str]:
        """Drop the lines of later steps, which a resumed run writes again, the line of its end, and unreadable lines.

        Returns:
            Messages for the user about unreadable lines.
        """
        notes = []
        for path in (self.folder / name for name in sorted(LINES)):
            if not path.exists():
                continue
            lines, unreadable = read_lines(path)
            kept = [line for line in lines if _until(line, step)]
            with whole_file(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            if unreadable:
                notes.append(f"{path}: {counted(unreadable, 'unreadable line')} left out")
        return notes


def _until(line: Mapping[str, Any], step: int) -> bool:
    return isinstance(line.get("step"), int) and line["step"] <= step and line.get("kind") != "end"


def _numbers(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name, those of nested mappings as ``outer/inner``."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            yield prefix + name, value


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; a line that was cut off is left out.

    >>> folder = new_folder("digits", str(Path(tempfile.mkdtemp()) / "run"))
    >>> Run(folder, {}).log(kind="train", step=1, loss=2.3)
    >>> read_metrics(folder)
    [{'kind': 'train', 'step': 1, 'loss': 2.3}]
    """
    return read_lines(Path(folder) / METRICS)[0]


def read_checkpoint(
    path: str | Path, which: str = "last", kind: str | None = None, say: Callable[[str], None] = warnings.warn
) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
    """Tensors, description and path of a run folder's checkpoint, or of a .safetensors file.

    >>> folder = new_folder("digits", str(Path(tempfile.mkdtemp()) / "run"))
    >>> run = Run(folder, dict(model="linear"))
    >>> path = run.checkpoints.save(1, dict(weights=dict(weight=torch.ones(2))), dict(step=1))
    >>> weights, description, file = read_checkpoint(path)
    >>> weights, description["model"]
    ({'weight': tensor([1., 1.])}, 'linear')

    Args:
        which: "last" or "best".
        kind: "ema" or "weights"; None takes the moving average where there is one.
        say: called when a checkpoint is damaged and an earlier one is used.

    Raises:
        UsageError: no such run or checkpoint; an unreadable file.
    """
    path = Path(path)
    if path.is_dir() and not (path / CHECKPOINTS).is_dir() and not (path / RECIPE).is_file():
        if not (path / STATE).is_file():
            raise UsageError(f"{path} is no run folder; a run folder is what `normfree train` printed at its end")
        if which != "last":
            raise UsageError(f"{path} is a checkpoint; {which!r} is chosen among those of a run folder")
        if (problem := damage(path)) is not None:
            raise UsageError(f"checkpoint {path} is damaged ({problem})")
        path = _file_of(path, kind)
    elif path.is_dir():
        folder, notes = find_checkpoint(path / CHECKPOINTS, which)
        for message in notes:
            say(message)
        link = path / CHECKPOINTS / which
        if link.exists() and link.samefile(folder):
            folder = link  # the name that the user knows
        path = _file_of(folder, kind)
    elif not path.is_file():
        raise UsageError(f"{path} does not exist; give a run folder or a .safetensors file")
    return (*read_weights(path), path)


def _file_of(folder: Path, kind: str | None) -> Path:
    """The file of weights in a checkpoint; without ``kind`` the moving average if there is one."""
    kinds = [kind] if kind else ["ema", "weights"]
    path = next((file for k in kinds if (file := folder / f"{k}.safetensors").is_file()), None)
    if path is None:
        wanted = " or ".join(f"{k}.safetensors" for k in kinds)
        raise UsageError(f"{folder} has no {wanted}; a run folder is what `normfree train` printed at its end")
    return path
