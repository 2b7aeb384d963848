"""A search for hyper-parameters: trials drawn by Optuna, each an ordinary run. Several processes may share its folder.

The folder holds the trials' runs and ``search.db``, Optuna's storage in SQLite. A trial that was cut off goes on from
its last checkpoint. Trials are pruned by the median of the evaluations of the others.
"""

import contextlib
import csv
import datetime
import importlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RunFailed, UsageError, check_utf8
from ..files import whole_file
from ..recipes import load_recipe
from ..runs import FolderInUse, train
from ..tasks import task_of
from ..training import StopRequests, read_metrics
from ..training.memory import no_memory
from ..training.run import METRICS
from .axes import label
from .notes import Once
from .spaces import Space, split
from .start import diverged

STATES = dict(COMPLETE="finished", PRUNED="pruned", FAIL="failed")
STORAGE, TABLE, NAME = "search.db", "trials.csv", "search"
FIELDS, ASKED = "fields", "asked"  # attributes in the storage
YOUNG = 60.0  # seconds in which a trial without a folder may still be starting in another process
FREE = 5  # trials that are not pruned, before there is a median


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        base: the recipe, by name or file.
        spaces: what is varied, by dotted path; fixed: what all trials have alike.
        init: weights that each trial starts from.
        seed: of the draws.
        prunes: whether a trial ends whose evaluation is below the median of the others at the same part of the run.
    """

    base: str
    spaces: Mapping[str, Space]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    seed: int = 0
    prunes: bool = True

    def asked(self) -> dict[str, str]:
        """What a folder's trials have in common, to compare a later call with."""
        told = {path: str(space) for path, space in self.spaces.items()}
        told |= {path: label(value) for path, value in self.fixed.items()}
        return dict(recipe=self.base, init=str(self.init)) | told


@dataclass(frozen=True)
class Tried:
    """A trial and what became of it.

    Attributes:
        state: "finished", "pruned", "diverged", "failed" or "running".
        fields: what was drawn, by dotted path; score: of the last evaluation.
    """

    number: int
    state: str
    fields: Mapping[str, Any]
    score: float | None
    folder: Path


def load_search(
    base: str, overrides: Mapping[str, Any], *, init: str | None = None, seed: int = 0, prunes: bool = True
) -> Search:
    """A search, checked: what is drawn fits the recipe, at both ends of each range.

    Raises:
        UsageError: there is no range and no choice; a value does not fit.

    Example:
        >>> str(load_search("digits", {"optim.lr": "0.05..2"}).spaces["optim.lr"])
        '0.05..2'
    """
    spaces, fixed = split(overrides)
    if not spaces:
        raise UsageError(
            "a search needs a range or choices of a field, such as --optim.lr 0.05..2 or --optim.lr [0.1,1]"
        )
    for path, space in spaces.items():
        for value in space.ends():
            load_recipe(base, {**fixed, path: value})
    return Search(base, spaces, fixed, init, seed, prunes)


def run_search(
    search: Search,
    out: str | Path,
    trials: int,
    *,
    progress: bool = False,
    stop: StopRequests | None = None,
    say: Callable[[str], None] = lambda line: None,
    study: Any = None,
) -> list[Tried]:
    """Run trials until the folder has so many, and write trials.csv.

    Args:
        out: the search's folder; several processes may share it.
        trials: in all, those of earlier calls and of other processes included.
        stop: notes requests to stop, which are answered between two steps.
        say: told of each trial at its end, in a line.
        study: a study of Optuna; None: the one in the folder.

    Raises:
        UsageError: Optuna is not installed; the folder's trials are of another search; the first trial is refused.
        KeyboardInterrupt: Ctrl-C; what was trained is saved.

    Example:
        >>> search = load_search("digits", {"optim.lr": "0.05..2"})  # doctest: +SKIP
        >>> normfree.studies.best_trial(run_search(search, "searches/lr", 20)).fields  # doctest: +SKIP
        {'optim.lr': 0.7312}
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a search runs in one process; start several with the same --out")
    folder = Path(out)
    check_utf8(folder, "--out ")
    if study is None:
        study = open_storage(folder, create=True)
    work = _Work(search, folder, study, progress, stop or StopRequests(), say)
    work.compare()
    try:
        work.all(trials)
    finally:
        work.write()
    return work.tried()


def open_storage(folder: Path, create: bool = False) -> Any:
    """The study of Optuna in a folder.

    Raises:
        UsageError: Optuna is not installed; the folder cannot be made.
    """
    try:
        optuna: Any = importlib.import_module("optuna")  # an extra
    except ImportError as error:
        raise UsageError("normfree search needs Optuna: pip install 'normfree[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if create:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {folder} cannot be made: {error.strerror or error}") from error
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{(folder / STORAGE).absolute()}", engine_kwargs=dict(connect_args=dict(timeout=60))
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=FREE, n_warmup_steps=0)
    return optuna.create_study(
        storage=storage, study_name=NAME, direction="maximize", pruner=pruner, load_if_exists=True
    )


def best_trial(tried: list[Tried]) -> Tried | None:
    """The finished trial with the highest score; None: there is none."""
    finished = [one for one in tried if one.state == "finished" and one.score is not None]
    return max(finished, key=lambda one: one.score or 0.0, default=None)


def repeats(search: Search, tried: Tried) -> str:
    """The command that trains the settings of a trial again."""
    words = ["normfree", "train", "--recipe", search.base]
    words += [] if search.init is None else ["--init", search.init]
    for path, value in {**search.fixed, **tried.fields}.items():
        words += [f"--{path}", repr(value) if isinstance(value, float) else label(value)]
    return shlex.join(words)


class _Work:
    """The trials of one process."""

    def __init__(
        self,
        search: Search,
        folder: Path,
        study: Any,
        progress: bool,
        stop: StopRequests,
        say: Callable[[str], None],
    ):
        self.search, self.folder, self.study = search, folder, study
        self.progress, self.stop, self.say = progress, stop, say
        self.notes: Any = Once(sys.stderr)
        self.task = task_of(load_recipe(search.base, search.fixed))

    def compare(self) -> None:
        """Refuse a folder whose trials are of another search."""
        before, now = self.study.user_attrs.get(ASKED), self.search.asked()
        if before is None:
            self.study.set_user_attr(ASKED, now)
        elif before != now:
            paths = [path for path in {**before, **now} if before.get(path) != now.get(path)]
            told = ", ".join(
                f"{path} is {now.get(path, 'not given')}, was {before.get(path, 'not given')}" for path in paths
            )
            raise UsageError(f"the trials in {self.folder} are of another search: {told}; --out names another folder")

    def all(self, trials: int) -> None:
        for one in self._cut_off():
            self._run(one.number, one.user_attrs[FIELDS], None)
            if self.stop.received is not None:
                return
        while len(self._every()) < trials and self.stop.received is None:
            trial = self.study.ask()
            if trial.number >= trials:  # another process was faster
                return self._tell(trial.number, "FAIL")
            self._seed(trial.number)
            fields = {path: space.draw(trial, path) for path, space in self.search.spaces.items()}
            trial.set_user_attr(FIELDS, fields)
            self._run(trial.number, fields, trial)

    def _every(self) -> list[Any]:
        return self.study.get_trials(deepcopy=False)

    def _cut_off(self) -> list[Any]:
        """Trials that were begun and are not done; whether another process is at them, their lock will tell."""
        now, found = datetime.datetime.now(), []
        for one in self._every():
            begun = one.datetime_start is not None and (now - one.datetime_start).total_seconds() > YOUNG
            there = (self._place(one.number) / METRICS).exists()
            if one.state.name == "RUNNING" and FIELDS in one.user_attrs and (there or begun):
                found.append(one)
        return found

    def _seed(self, number: int) -> None:
        """Draws depend on the seed, on the trial's number and on what is known: processes do not repeat each other."""
        sampler = type(self.study.sampler)
        self.study.sampler = sampler(seed=1000 * self.search.seed + number)

    def _place(self, number: int) -> Path:
        return self.folder / f"trial-{number:04d}"

    def _run(self, number: int, fields: Mapping[str, Any], trial: Any) -> None:
        """Train one trial, and note what became of it.

        Args:
            trial: to report evaluations to; None: a trial that goes on, which is not pruned.
        """
        pruned = False

        def judge(metrics: Mapping[str, float], part: float) -> None:
            nonlocal pruned
            if trial is None or not self.search.prunes or part >= 1 or self.stop.received is not None:
                return
            trial.report(metrics[self._metric(metrics)], step=round(1000 * part))
            if trial.should_prune():
                pruned, self.stop.received = True, signal.SIGTERM  # saves the run as a scheduler's signal does

        try:
            last, stopped = self._train(number, fields, judge)
        except FolderInUse:
            return
        except UsageError as error:
            self._tell(number, "FAIL")
            if all(one.state.name in ("FAIL", "RUNNING") for one in self._every()):
                raise
            return self._told(number, fields, f"refused: {error}")
        except RunFailed as error:
            lost = diverged(error)
            self._tell(number, "PRUNED" if lost else "FAIL")
            return self._told(number, fields, f"{'diverged' if lost else 'failed'}: {str(error).partition(';')[0]}")
        if pruned:
            self.stop.received = None
        elif stopped:
            return
        score = last[self._metric(last)]
        self._tell(number, "PRUNED" if pruned else "COMPLETE", None if pruned else score)
        self._told(number, fields, f"{self._shown(score)}{', pruned' if pruned else ''}")

    def _train(
        self, number: int, fields: Mapping[str, Any], judge: Callable[[Mapping[str, float], float], None]
    ) -> tuple[Mapping[str, float], bool]:
        """The last evaluation of a trial's run, and whether it was stopped."""
        options = dict[str, Any](init=self.search.init, resume=True, progress=self.progress, stop=self.stop)
        try:
            with contextlib.redirect_stderr(self.notes):
                done = train(
                    self.search.base,
                    {**self.search.fixed, **fields},
                    out=self._place(number),
                    on_evaluation=judge,
                    **options,
                )
        except Exception as error:
            if not no_memory(error):
                raise
            raise RunFailed("memory is too small for it") from error
        return done.summary.last, done.summary.stopped

    def _metric(self, metrics: Mapping[str, float]) -> str:
        averaged = f"ema_{self.task.score}"
        return averaged if averaged in metrics else self.task.score

    def _shown(self, score: float) -> str:
        return f"{self.task.score_label} {score:{self.task.score_format}}"

    def _tell(self, number: int, state: str, score: float | None = None) -> None:
        states: Any = type(self._every()[number].state)
        self.study.tell(number, score, state=states[state])

    def _told(self, number: int, fields: Mapping[str, Any], became: str) -> None:
        drawn = ", ".join(f"{path} {label(value)}" for path, value in fields.items())
        self.say(f"{self._place(number).name}: {drawn}: {became}")
        self.write()

    def tried(self) -> list[Tried]:
        """Every trial that was begun."""
        found = []
        for one in self._every():
            place = self._place(one.number)
            state = STATES.get(one.state.name, "running")
            ends = [line for line in _metrics(place) if line["kind"] == "end"]
            if state == "pruned" and ends and ends[-1].get("state") == "failed":
                state = "diverged"
            if FIELDS in one.user_attrs:
                found.append(Tried(one.number, state, one.user_attrs[FIELDS], one.value, place))
        return found

    def write(self) -> None:
        """Write trials.csv: a row for each trial."""
        out, paths = io.StringIO(), list(self.search.spaces)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["trial", "state", "score", *paths])
        for one in self.tried():
            score = "" if one.score is None else f"{one.score:.6g}"
            writer.writerow([one.folder.name, one.state, score, *(label(one.fields[path]) for path in paths)])
        with whole_file(self.folder / TABLE) as part:
            part.write_text(out.getvalue(), encoding="utf-8")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(folder)
    except OSError:
        return []
