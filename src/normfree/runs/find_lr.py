"""The learning rate range test on a recipe's network, images and optimizer: ``normfree find-lr``."""

import csv
import io
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data import Batch
from ..errors import RunFailed, UsageError
from ..files import whole_file
from ..recipes import Recipe
from ..training import Replicas, Run, StopRequests, Trainer, keep_freed_memory, new_folder
from ..training.environment import environment
from ..training.lr_range import SPAN, RangeStep, RangeTest, suggested
from ..training.plot import plot_range
from ..words import counted
from .initialize import adopt, build_initialized
from .lock import RunLock
from .pictures import drawing
from .prepare import Inputs, open_inputs, say, summary, write_start
from .start import chosen_recipe
from .started import as_asked

TABLE, PICTURE = "find_lr.csv", "find_lr.png"
FEWEST, MOST = 200, 1000  # steps, where nothing else is asked for; between them an epoch


@dataclass(frozen=True)
class FoundRate:
    """A learning rate range test.

    Attributes:
        folder: with find_lr.csv, find_lr.png and the recipe.
        rows: the steps.
        lr: the learning rate that is suggested for the peak of the schedule; own: the recipe's.
        setting: the same as ``optim.lr``, which ``optim.lr_reference_batch`` may scale.
    """

    folder: Path
    rows: list[RangeStep]
    lr: float
    setting: float
    own: float


def find_lr(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    init: str | Path | None = None,
    rates: tuple[float, float] | None = None,
    steps: int | None = None,
    progress: bool = True,
    stop: StopRequests | None = None,
) -> FoundRate:
    """Raise the learning rate from step to step, and suggest one from the loss: ``normfree find-lr``.

    The steps are those of training: the recipe's network, images, augmentation, optimizer, clipping and precision. See
    :mod:`normfree.training.lr_range` for the rule.

    Args:
        recipe, overrides, init: as for :func:`normfree.runs.train`.
        out: the folder to write; None: runs/RECIPE-find-lr, numbered if it exists.
        rates: the lowest and the highest learning rate of a step; None: from a thousandth of the recipe's peak to a
            hundred times it.
        steps: of the test; None: an epoch, but at least 200 and at most 1,000.
        stop: requests to stop.

    Raises:
        UsageError: an argument cannot be used; nothing was written.
        RunFailed: no rate is found: the loss rises at once, is flat, or still falls at the last rate.
        KeyboardInterrupt: Ctrl-C; what was measured is written.

    Example:
        >>> normfree.runs.find_lr("digits").lr  # doctest: +SKIP
        0.26
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("find-lr runs in one process; its rate holds for the same batch in any number of processes")
    overrides, out, init = dict(overrides or {}), *(None if p is None else str(p) for p in (out, init))
    keep_freed_memory()
    name, chosen, notes = chosen_recipe(recipe, overrides)
    if chosen.private.on:
        raise UsageError("find-lr looks at training images without privacy; leave out --private.* or give --optim.lr")
    replicas, stop = Replicas(), stop or StopRequests()
    with RunLock(say=partial(say, replicas)) as lock:
        if init is not None and "model.name" not in overrides:
            notes += filter(None, [adopt(chosen, init, overrides)])
        fill = None if init is None else partial(build_initialized, path=init)
        as_given = as_asked(chosen)
        inputs = open_inputs(chosen, None, False, fill, replicas)
        test = _range_test(chosen, inputs, rates, steps)
        folder = new_folder(f"{Path(name).stem}-find-lr", None if out is None else str(out), lock.take)
        trainer = Trainer(
            inputs.model,
            inputs.task,
            Run(folder, inputs.description, check=lock.check),
            train=replace(chosen.train, steps=test.steps),
            optim=chosen.optim,
            max_unreadable=chosen.data.max_unreadable,
            progress=progress,
            stop=stop,
        )
        write_start(folder, chosen, as_given, inputs)
        trainer.run.describe(environment(trainer.device, 1))
        say(replicas, *notes, *inputs.messages, summary(chosen, Path(name).stem, inputs.source, trainer))
        return _Search(trainer, test, chosen, progress).found()


def _range_test(recipe: Recipe, inputs: Inputs, rates: tuple[float, float] | None, steps: int | None) -> RangeTest:
    own = recipe.optim.peak_lr(recipe.train.batch_size)
    lowest, highest = rates or (own * SPAN[0], own * SPAN[1])
    if steps is None:
        steps = min(MOST, max(FEWEST, round(inputs.task.train.steps_per_epoch)))
    return RangeTest(lowest, highest, steps)


class _Search:
    """A test under way: its steps, its files, and how it ended."""

    def __init__(self, trainer: Trainer, test: RangeTest, recipe: Recipe, progress: bool):
        self.trainer, self.test, self.recipe, self.progress = trainer, test, recipe, progress
        self.complete = True  # whether the last rate was reached, with a loss that was not lost

    def found(self) -> FoundRate:
        """Take the steps, write the files, find the rate."""
        trainer, folder, reason = self.trainer, self.trainer.run.folder, ""
        trainer.model.train()
        try:
            reason = self._steps()
        finally:
            for loader in trainer.loaders:
                loader.close()
            self._write(None)
        if trainer.stop.received is not None:
            self._end("stopped", "it was interrupted")
            at = f"{len(self.test.rows)} of {counted(self.test.steps, 'step')}"
            raise KeyboardInterrupt(f"interrupted after {at}; what was measured is in {folder / TABLE}")
        try:
            lr = suggested(self.test.rows, self.complete)
        except RunFailed as error:
            self._end("failed", str(error))
            raise RunFailed(
                f"{error}; try others (--rates A..B) or more steps (--steps N); see {folder / PICTURE}"
            ) from error
        self._write(lr)
        self._end("finished", reason)
        optim, batch = self.recipe.optim, self.recipe.train.batch_size
        own = optim.peak_lr(batch)
        return FoundRate(folder, self.test.rows, lr, lr * optim.lr / own, own)

    def _steps(self) -> str:
        """Take steps until the last one, or until the loss is lost; returns why it ended early."""
        test, trainer = self.test, self.trainer
        bar = tqdm(total=test.steps, unit="step", disable=not self.progress, dynamic_ncols=True, leave=False)
        with bar, trainer.stop.listening(signal.SIGINT, signal.SIGTERM):
            for batch in self._batches():
                lr = test.lr(len(test.rows))
                try:
                    result = trainer.step(batch.to(trainer.device, trainer.memory_format), lr)
                except RunFailed as error:  # a loss or gradient that is not finite
                    result, reason = None, str(error)
                else:
                    reason = result.left_out or ""
                if result is None or reason:
                    self.complete = False
                    return f"at learning rate {lr:.3g} {reason}"
                test.add(result.loss, result.clipped)
                row = test.rows[-1]
                epoch = round(row.step / trainer.steps_per_epoch, 4)
                fields = dict(lr=lr, loss=row.loss, smoothed=row.smoothed, clipped=row.clipped)
                trainer.run.log(kind="train", step=row.step, epoch=epoch, **fields)
                bar.set_postfix_str(f"rate {lr:.3g}, loss {row.smoothed:.3f}", refresh=False)
                bar.update()
                if test.diverged:
                    self.complete = False
                    return f"the loss diverged at learning rate {lr:.3g}"
                if test.done or trainer.stop.received is not None:
                    break
        return ""

    def _batches(self) -> Iterator[Batch]:
        """Batches of one epoch after the other, as in training."""
        train, epoch, unreadable = self.trainer.task.train, 0, dict[str, Any]()
        while True:
            train.set_epoch(epoch)
            before = len(self.test.rows)
            for batch in train:
                unreadable |= {one.image: one for one in batch.unreadable}
                if len(unreadable) > self.trainer.max_unreadable:
                    last, most = list(unreadable.values())[-1], self.trainer.max_unreadable
                    raise RunFailed(f"unreadable images: more than data.max_unreadable (={most}); the last is {last}")
                if len(batch):
                    yield batch
            if self.trainer.stop.received is not None or len(self.test.rows) == before:
                return
            epoch += 1

    def _write(self, lr: float | None) -> None:
        """The table and the picture of the steps so far."""
        folder, rows = self.trainer.run.folder, self.test.rows
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", "lr", "loss", "smoothed", "clipped"])
        for row in rows:
            clipped = "" if row.clipped is None else f"{row.clipped:.6g}"
            writer.writerow([row.step, *(f"{value:.6g}" for value in (row.lr, row.loss, row.smoothed)), clipped])
        with whole_file(folder / TABLE) as part:
            part.write_text(out.getvalue(), encoding="utf-8")
        with drawing(folder / PICTURE):
            plot_range(
                rows, folder / PICTURE, suggested=lr, own=self.recipe.optim.peak_lr(self.recipe.train.batch_size)
            )

    def _end(self, state: str, reason: str) -> None:
        """The last line of metrics.jsonl; the folder is no run to start into."""
        self.trainer.run.log(kind="end", step=len(self.test.rows), state=state, reason=reason)
        self.trainer.run.mark_resumable()
