"""What became of each cell, read from its folder: any process may ask, and nothing is kept in memory alone."""

import functools
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.layouts import with_kind
from ..data.sources import absolute
from ..errors import RunFailed, UsageError
from ..files import read_object, whole_file
from ..recipes import field_paths
from ..runs.resume import CHANGEABLE, LENGTH, describe_changes
from ..runs.started import as_asked, read_started
from ..tasks import task_of
from ..training import read_metrics
from ..training.checkpoints import STATE, saved
from ..training.run import CHECKPOINTS, METRICS, has_checkpoint
from .cost import Planned

ENDED = "ended"  # a file for each cell that did not come to its end, beside the runs
Status = Literal["finished", "diverged", "refused", "failed", "stopped", "waiting"]
ENDS = ("diverged", "refused", "failed")
SAME = field_paths().keys() - CHANGEABLE | {*LENGTH, "data.source"}  # what a cell must have been trained with
BESIDE = ("kind", "step", "epoch", "images", "ema_images")  # of an evaluation, what is no metric


@dataclass(frozen=True)
class Result:
    """What became of a cell.

    Attributes:
        status: "finished"; "diverged", its loss or a gradient was no longer finite; "refused", its settings cannot be
            used; "failed", for another reason; "stopped", on the way, to be gone on with; "waiting", not begun.
        reason: why, where it is none of finished, stopped and waiting.
        step: steps that were trained; seconds: of training, without evaluations, of what is finished.
        last, best: metrics of the last and of the best evaluation.
    """

    status: Status
    reason: str = ""
    step: int = 0
    seconds: float | None = None
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether there is nothing to be done about it: failures are tried again, and what was refused."""
        return self.status in ("finished", "diverged")


class Results:
    """The results of a study's cells in the folder that it runs in.

    Args:
        folder: of the study; each cell has a folder there.
        planned: the cells.
    """

    def __init__(self, folder: str | Path, planned: Sequence[Planned]):
        self.folder, self.planned = Path(folder), planned
        self._done: dict[str, Result] = {}
        self._own = f".{uuid.uuid4().hex[:8]}"  # ends names of files that this process has at work

    def of(self, planned: Planned) -> Result:
        """What became of a cell; what is finished is read once."""
        name = planned.cell.name
        if name not in self._done:
            found = self._read(planned)
            if not found.done:
                return found
            self._done[name] = found
        return self._done[name]

    def every(self) -> list[tuple[Planned, Result]]:
        """All cells with what became of them."""
        return [(one, self.of(one)) for one in self.planned]

    def write(self, name: str, text: str) -> None:
        """Write a file of the study as a whole, whoever else writes it.

        Raises:
            RunFailed: it cannot be written.
        """
        path = self.folder / name
        own = path.with_name(path.name + self._own)
        with whole_file(own) as part:
            part.write_text(text, encoding="utf-8")
        try:
            os.replace(own, path)
        except OSError as error:
            own.unlink(missing_ok=True)
            raise RunFailed(f"cannot write {path}: {error.strerror or error}") from error

    def note(self, planned: Planned, status: Status, reason: str) -> None:
        """Write down why a cell did not come to its end.

        Raises:
            RunFailed: it cannot be written.
        """
        asked = None if planned.asked is None else as_asked(planned.asked)
        content = dict(status=status, reason=reason, asked=asked)
        self.write(f"{ENDED}/{planned.cell.name}.json", json.dumps(content, indent=1) + "\n")

    def forget(self, planned: Planned) -> None:
        """A cell that is run anew has no result."""
        self._done.pop(planned.cell.name, None)
        self._note_file(planned).unlink(missing_ok=True)

    def differences(self, planned: Planned) -> str:
        """What the run in a cell's folder was started with, where the study asks for something else; empty: it is this.

        ``optim.lr is 0.2 instead of 0.1``: the study says 0.2, the run was started with 0.1.
        """
        folder = self.folder / planned.cell.name
        if planned.asked is None or not has_checkpoint(folder):
            return ""
        before, now = read_started(folder).get("asked", {}), as_asked(planned.asked)
        found = {}
        for path in sorted(SAME):
            section, name = path.split(".")
            if (pair := (before.get(section, {}).get(name, now[section][name]), now[section][name])) and not _same(
                path, *pair
            ):
                found[path] = pair
        return describe_changes(found)

    def strangers(self) -> list[str]:
        """Runs in the study's folder that are no cells of it."""
        names = {one.cell.name for one in self.planned}
        there = sorted(path.parent.name for path in self.folder.glob(f"*/{METRICS}"))
        return [name for name in there if name not in names]

    def score(self) -> str:
        """The metric that tells which run is better: the task's score, of averaged weights if all are averaged."""
        recipes = [one.asked for one in self.planned if one.asked is not None]
        averaged = all(recipe.optim.ema_decay is not None for recipe in recipes)
        return f"ema_{task_of(recipes[0]).score}" if averaged else task_of(recipes[0]).score

    def _note_file(self, planned: Planned) -> Path:
        return self.folder / ENDED / f"{planned.cell.name}.json"

    def _read(self, planned: Planned) -> Result:
        folder = self.folder / planned.cell.name
        noted = read_object(self._note_file(planned))
        status, reason = noted.get("status"), noted.get("reason", "")
        asked = None if planned.asked is None else as_asked(planned.asked)
        if status not in ENDS or noted.get("asked") != asked:
            status = None
        if not has_checkpoint(folder):
            if planned.asked is None:
                return Result("refused", planned.refused)
            return Result("refused", reason) if status == "refused" else Result("waiting")
        try:
            lines = read_metrics(folder)
        except OSError:
            lines = []
        end = lines[-1] if lines and lines[-1].get("kind") == "end" else {}
        evaluations = [line for line in lines if line.get("kind") == "eval"]
        newest = next(iter(saved(folder / CHECKPOINTS)), None)
        state = {} if newest is None else read_object(newest / STATE)
        step, found = int(end.get("step", state.get("step", 0))), "stopped"
        if end.get("state") == "finished":
            found, reason = "finished", ""
        elif end.get("state") == "failed" and status is not None:
            found = status
        return Result(
            found,
            reason if found in ENDS else "",
            step,
            state.get("seconds") if found == "finished" else None,  # of others, those up to the last checkpoint
            _metrics(evaluations[-1] if evaluations else {}),
            _metrics(state.get("best") or {}),
        )


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in BESIDE and isinstance(value, int | float)}


def _same(path: str, before: Any, now: Any) -> bool:
    if path == "data.source" and before != now:
        return _place(before) == _place(now)
    return before == now


@functools.cache
def _place(source: str) -> str:
    """A source by which it is found from any folder; of what is not there, its description."""
    try:
        return absolute(with_kind(source))
    except (UsageError, OSError):
        return os.path.abspath(source)
