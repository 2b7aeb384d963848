"""Running a study: its cells one after the other, each an ordinary run folder that goes on where it was cut off."""

import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import NotFinite, RunFailed, UsageError, check_utf8
from ..runs import FolderInUse, RunLock, train
from ..tasks import task_of
from ..training import StopRequests
from ..training.memory import no_memory
from ..training.run import has_checkpoint
from ..words import counted
from .cells import share
from .cost import Planned, plan
from .notes import Once
from .plot import draw
from .results import Result, Results
from .study import Study, dump_study
from .summary import summarize
from .table import csv_text, markdown

TABLE, ROWS, PLOT, STUDY = "table.md", "results.csv", "plot.svg", "study.yaml"
EARLIER = "earlier"  # where runs are moved that are run anew
SHOWN = 5  # of many cells, how many are named


@dataclass(frozen=True)
class Outcome:
    """The end of a study, or of a part of it.

    Attributes:
        folder: of the study; results: of all of its cells.
        stopped: whether a signal ended it.
        elsewhere: names of cells that other processes have at work.
    """

    folder: Path
    results: Results
    stopped: bool = False
    elsewhere: tuple[str, ...] = ()


def run(
    study: Study,
    out: str | Path | None = None,
    *,
    planned: Sequence[Planned] | None = None,
    part: tuple[int, int] | None = None,
    again: bool = False,
    progress: bool = False,
    stop: StopRequests | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run the cells of a study that are not done yet, and write results.csv, table.md and plot.svg after each.

    Args:
        out: the study's folder; None: studies/NAME. Several processes may share one.
        planned: of :func:`plan`, if that is at hand.
        part: (3, 16) runs the third of sixteen parts.
        again: cells whose run was started with other settings than the study's are run anew, not refused.
        progress: show a bar for each run.
        stop: notes requests to stop, which are answered between two steps.
        say: told of each run at its end, in a line.

    Raises:
        UsageError: the images are not there; a run in the folder is of other settings.
        RunFailed: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C; what was trained is saved.

    Example:
        >>> study = normfree.studies.load_study("nf_resnets_table1", {"train.epochs": 5})  # doctest: +SKIP
        >>> outcome = normfree.studies.run(study, "studies/five")  # doctest: +SKIP
        >>> print((outcome.folder / "table.md").read_text())  # doctest: +SKIP
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a study runs in one process; start several with the same --out, or with --shard 1/4 to 4/4")
    planned = plan(study) if planned is None else planned
    if all(one.missing for one in planned if not one.refused):
        raise UsageError(next(one.missing for one in planned if one.missing))
    folder = Path(default_folder(study) if out is None else out)
    work = _Work(study, folder, Results(folder, planned), again, progress, stop or StopRequests(), say)
    names = {cell.name for cell in share([one.cell for one in planned], part)}
    return work.all([one for one in planned if one.cell.name in names])


def default_folder(study: Study) -> str:
    """``studies/NAME``, or ``studies/NAME-small``."""
    return f"studies/{study.name}-{study.scale}" if study.scale else f"studies/{study.name}"


def write(study: Study, results: Results) -> None:
    """Write the study's table, plot and rows, each as a whole.

    Another process may write them at the same time; the later ones hold the results of both.

    Raises:
        RunFailed: they cannot be written.
    """
    written = None
    while written != (now := [result.status for _, result in results.every()]):
        written = now
        summaries = [summarize(study, report, results) for report in study.reports]
        results.write(ROWS, csv_text(study, results))
        results.write(TABLE, markdown(study, results, summaries))
        results.write(PLOT, draw(study, summaries))


class _Work:
    """The cells of a part, and how far they are."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        results: Results,
        again: bool,
        progress: bool,
        stop: StopRequests,
        say: Callable[[str], None],
    ):
        self.study, self.folder, self.results, self.again = study, folder, results, again
        self.progress, self.stop, self.say = progress, stop, say
        self.notes: Any = Once(sys.stderr)

    def all(self, mine: Sequence[Planned]) -> Outcome:
        self._open()
        self._check(mine)
        write(self.study, self.results)
        if strangers := self.results.strangers():
            named = ", ".join(strangers[:SHOWN])
            self.say(f"{counted(len(strangers), 'run')} in the folder are no cells of the study: {named}")
        left = [one for one in mine if not self.results.of(one).done]
        if done := len(mine) - len(left):
            self.say(f"{done} of {counted(len(mine), 'run')} are done already")
        current = ""
        try:
            elsewhere: list[Planned] = []
            for number, one in enumerate(left, len(mine) - len(left) + 1):
                current = one.cell.name
                if self._step(one, f"[{number}/{len(mine)}]") is None:
                    elsewhere.append(one)
                if self._stopped():
                    break
            for one in elsewhere:  # perhaps they are free by now
                current = one.cell.name
                if not self._stopped():
                    self._step(one, "[again]")
        except KeyboardInterrupt as error:
            where = str(error).partition(";")[0] or "interrupted"
            raise KeyboardInterrupt(f"{where} of {current}; {self._count(mine)}") from None
        finally:
            write(self.study, self.results)
        others = tuple(one.cell.name for one in elsewhere if self.results.of(one).status in ("stopped", "waiting"))
        return Outcome(self.folder, self.results, self._stopped(), others)

    def _open(self) -> None:
        """The study's folder, with the study in it."""
        check_utf8(self.folder, "--out ")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.folder} cannot be made: {error.strerror or error}") from error
        self.results.write(STUDY, dump_study(self.study))

    def _check(self, mine: Sequence[Planned]) -> None:
        """Nothing that was started with other settings is taken for a result of this study.

        Raises:
            UsageError: there are such runs, and they are not to be run anew.
        """
        other = {one.cell.name: text for one in self.results.planned if (text := self.results.differences(one))}
        if other and not self.again:
            told = "; ".join(f"{name}: {text}" for name, text in itertools.islice(other.items(), SHOWN))
            more = f"; and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
            raise UsageError(
                f"{counted(len(other), 'run')} in {self.folder} {'is' if len(other) == 1 else 'are'} of other settings "
                f"than the study's: {told}{more}. --again runs them anew, --out names another folder"
            )
        for one in (one for one in mine if one.cell.name in other):
            self._move(one)

    def _move(self, planned: Planned) -> None:
        """Make room for a run that is run anew; the earlier one is kept."""
        name = planned.cell.name
        with RunLock() as lock:
            lock.take(self.folder / name)  # nobody is at it
        places = (self.folder / EARLIER / f"{name}-{number}" for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        place.parent.mkdir(exist_ok=True)
        (self.folder / name).rename(place)
        self.results.forget(planned)
        self.say(f"{name} is run anew; the earlier run is in {place}")

    def _step(self, planned: Planned, number: str) -> Result | None:
        """Run one cell, unless another process has come to its end with it; None: another process is at it."""
        before = self.results.of(planned)
        if not before.done:
            try:
                with contextlib.redirect_stderr(self.notes):
                    self._train(planned)
            except FolderInUse:
                self.say(f"{number} {planned.cell.name}: another process is at it")
                return None
        after = self.results.of(planned)
        write(self.study, self.results)
        self.say(f"{number} {planned.cell.name}: {self._told(planned, after)}")
        return after

    def _train(self, planned: Planned) -> None:
        """Start the cell or go on with it; how it ends otherwise than well is noted."""
        cell, new = planned.cell, not (self.folder / planned.cell.name).exists()
        out = self.folder / cell.name
        try:
            if planned.refused:
                raise UsageError(planned.refused)
            train(cell.base, cell.fields, out=out, init=cell.init, resume=True, progress=self.progress, stop=self.stop)
            self.results.forget(planned)
        except FolderInUse:
            raise
        except UsageError as error:
            if new and has_checkpoint(out):  # another process began with it at the same time
                raise FolderInUse(str(error)) from error
            self.results.note(planned, "refused", str(error))
        except RunFailed as error:
            self.results.note(planned, "diverged" if diverged(error) else "failed", str(error).partition(";")[0])
        except Exception as error:
            if not no_memory(error):
                raise
            self.results.note(planned, "failed", "memory is too small for it")

    def _told(self, planned: Planned, result: Result) -> str:
        if result.reason:
            return f"{result.status}: {result.reason}"
        if result.status != "finished" or planned.asked is None:
            return f"{result.status} at step {result.step}"
        task, metric = task_of(planned.asked), self.results.score()
        value = result.last.get(metric)
        shown = "" if value is None else f"{task.score_label} {value:{task.score_format}}, "
        return f"{shown}{counted(result.step, 'step')} in {result.seconds or 0:.1f} s"

    def _stopped(self) -> bool:
        return self.stop.received is not None

    def _count(self, mine: Sequence[Planned]) -> str:
        done = sum(self.results.of(one).done for one in mine)
        return f"{done} of {counted(len(mine), 'run')} are done"


def diverged(error: BaseException) -> bool:
    """Whether a loss, a gradient or an evaluation that is not finite ended a run."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, NotFinite):
        cause = cause.__cause__
    return cause is not None
