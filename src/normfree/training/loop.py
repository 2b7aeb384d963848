"""The training loop: steps, evaluations, checkpoints. It knows no model and no task by name."""

import contextlib
import itertools
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..data import Batch, Loader, Unreadable
from ..errors import NotFinite, RunFailed
from ..nn import recompute_weights
from ..optim import OptimConfig
from ..private import PrivateConfig
from .activation_checkpointing import set_checkpointing
from .batch_norm import seen_by_batch_norm
from .config import TrainConfig
from .device import memory_format_of, pick_device
from .distributed import Replicas, peer_failure
from .environment import environment
from .evaluate import Stopped, evaluate
from .private_step import PrivateStep, keep_budget, ledger_of, privacy_of
from .run import Run
from .signals import StopRequests
from .step import Losses, StepResult, TrainStep
from .train_log import TrainLog
from .train_state import TrainState, capture, restore


class TrainingTask(Losses, Protocol):
    """What the trainer needs of a task."""

    train: Loader
    test: Loader
    score: str  # the metric that is better when larger
    score_label: str  # and how it is printed
    score_format: str

    def metrics(self) -> Any: ...

    def score_note(self, score: float) -> str | None: ...


@dataclass(frozen=True)
class Summary:
    """The end of a run: metrics of the last and of the best evaluation, seconds of training without
    evaluations and in all; whether a signal ended it before its last step, or ``train.patience``."""

    last: dict[str, Any]
    best: dict[str, Any]
    steps: int
    train_seconds: float
    seconds: float
    unreadable: list[Unreadable]
    stopped: bool = False
    early: bool = False


class Trainer:
    """Trains a model on a task into a run's folder.

    Args:
        max_unreadable: how many images may be unreadable before the run stops.
        progress: whether to show a progress bar on standard error.
        on_step: called with the number of finished steps before the first step and after each one. Its time does not
            count as training time.
        replicas: the processes of the run. Each has a trainer; the main one writes the files.
        stop: receives requests to stop. A request before training ends the run before the first step.
        private: settings of private training, with a noise multiplier; the task's training batches must be drawn by
            Poisson sampling.
        on_evaluation: called after each evaluation with its metrics and the part of the steps that is done.
    """

    def __init__(
        self,
        model: nn.Module,
        task: TrainingTask,
        run: Run,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        max_unreadable: int = 0,
        progress: bool = True,
        on_step: Callable[[int], None] = lambda step: None,
        replicas: Replicas | None = None,
        stop: StopRequests | None = None,
        private: PrivateConfig | None = None,
        on_evaluation: Callable[[Mapping[str, float], float], None] = lambda metrics, part: None,
    ):
        self.task, self.run, self.config, self.optim = task, run, train, optim
        self.replicas = replicas or Replicas()
        if train.threads is not None:
            torch.set_num_threads(train.threads)
        self.device = pick_device(train.device, float64=True)
        self.memory_format = memory_format_of(train, self.device)
        self.model = model.to(self.device).to(memory_format=self.memory_format)
        set_checkpointing(model, train.activation_checkpointing)
        recompute_weights(model, train.recompute_weights)
        if train.parallel == "fsdp":
            self.replicas.shard(self.model, self.device)
        self.ledger = ledger_of(private, self.model, task.train, train, optim)
        self.step = self._train_step()
        self.ema = self.step.ema
        self.steps_per_epoch = float(task.train.steps_per_epoch)
        self.total_steps = train.total_steps(task.train.steps_per_epoch)
        self.max_unreadable = max_unreadable
        self.on_step, self.on_evaluation = on_step, on_evaluation
        self.log = TrainLog(
            run,
            self.step,
            self.replicas,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            log_every=train.log_every,
            shown=progress,
            score=task.score,
        )
        self.batch_norm_note = seen_by_batch_norm(model, train, optim, self.replicas.world)
        self.stop, self.resumed = stop or StopRequests(), False
        self.state = TrainState(spent=[] if self.ledger is None else self.ledger.spent)
        self.loaders = [loader for loader in (task.train, task.test) if isinstance(loader, Loader)]
        for loader in self.loaders:
            loader.asked, loader.say = self._stop_requested, self.log.say

    def _train_step(self) -> TrainStep:
        train, optim = self.config, self.optim
        optimizer = optim.build(self.model)
        optim.build_pull(self.model, optimizer)
        private = dict[str, Any](ledger=self.ledger, batch_size=train.batch_size, seed=train.seed)
        kind, more = (TrainStep, {}) if self.ledger is None else (PrivateStep, private)
        return kind(
            self.model,
            self.task,
            optimizer,
            **more,
            ema=optim.build_average(self.model, optimizer),
            sam=optim.build_sam(self.model),
            clipping_eps=optim.clipping_eps,
            clip_on=optim.clip_on,
            micro_batch=train.micro_batch,
            precision=train.precision,
            replicas=self.replicas,
            compiled=train.compile,
            skip_nonfinite=train.skip_nonfinite,
        )

    def resume(self, checkpoint: str | Path) -> list[str]:
        """Continue from a checkpoint of this run; returns notes for the user.

        Raises:
            UsageError: it is of another network or recipe.
        """
        self.state, notes = restore(Path(checkpoint), self.step)
        if self.ledger is not None:
            self.ledger.resume(self.state.spent, self.state.step, checkpoint)
        keep_budget(self.ledger, self.replicas, self.total_steps - self.state.step)
        self.run.checkpoints.resume_from(self.state.step, source=Path(checkpoint), provisional=self.step.skipped > 0)
        self.resumed = True
        if self.replicas.main:
            notes += self.run.drop_after(self.state.step)
            self.run.checkpoints.tidy(self.state.best.get("step"))
            self.run.mark_resumable()
        return notes

    def fit(self) -> Summary:
        """Train to the end, or to a request to stop.

        Raises:
            RunFailed: a loss or gradient is not finite, too many images are unreadable, or the disk is full; the
                message names the step and the last good checkpoint.
            KeyboardInterrupt: Ctrl-C; the current step was finished and saved.
        """
        start = time.perf_counter()
        keep_budget(self.ledger, self.replicas, self.total_steps - self.state.step)
        try:
            if self.replicas.main:
                self.run.describe(environment(self.device, self.replicas.world))
            if self.batch_norm_note is not None:
                self.log.say(self.batch_norm_note)
            if not self.resumed:
                self.on_step(0)  # before the first checkpoint, as at later steps
                self._save()
                if self.replicas.main:
                    self.run.mark_resumable()
            self._train()
        except KeyboardInterrupt:
            raise self._interrupted() from None
        except RunFailed as error:
            self._ended("failed", str(error))
            raise RunFailed(f"{error}; {self._kept()}") from error
        except RuntimeError as error:  # torch's, where another process has died
            failure = peer_failure(error) if self.replicas.world > 1 else None
            self._ended("failed", failure or f"{type(error).__name__}: {error}")
            if failure is None:
                raise
            raise RunFailed(f"{failure}; {self._kept()}") from error
        finally:
            for loader in self.loaders:
                loader.close()
        state, seconds = self.state, time.perf_counter() - start
        early = self._patience_over() and state.step < self.total_steps
        stopped = (state.step < self.total_steps or state.unevaluated) and not early
        reason = "it was asked to stop" if stopped else f"no better evaluation in {state.waited}" if early else ""
        self._ended("stopped" if stopped else "finished", reason)
        return Summary(state.metrics, state.best, state.step, state.seconds, seconds, state.unreadable, stopped, early)

    def _train(self) -> None:
        self.model.train()
        with self.log.showing(self.state.step), self.stop.listening(signal.SIGINT, signal.SIGTERM):
            try:
                if self.state.unevaluated:
                    self._evaluate()
                self._steps()
            except Stopped:
                self.state.unevaluated = True
                self._stopped()

    def _steps(self) -> None:
        since = time.perf_counter()
        for batch, images in self._batches():
            result = self._one_step(batch, images)
            now = time.perf_counter()  # the time of a step includes waiting for its images
            self.state.seconds += now - since
            self.log.after(self.state, self.lr(self.state.step - 1), result, now - since)
            self.on_step(self.state.step)
            if self._due(self.config.eval_every * self.steps_per_epoch):
                self._evaluate()
            elif self.config.save_every is not None and self.state.step % self.config.save_every == 0:
                self._save()
            since = time.perf_counter()

    def _batches(self) -> Iterator[tuple[Batch, int]]:
        """This process's shares of the batches still to come, on the device, and the images in the whole batches.

        Ends with the last step, or when any process is asked to stop, after saving the state.
        """
        while not self._finished():
            first_step, from_start = self.state.step, self.state.batch == 0
            self.task.train.set_epoch(self.state.epoch, self.state.batch)
            for batch in self.task.train:
                images, unreadable, stop = self._totals(batch)
                if stop:
                    return self._stopped()
                self.state.batch += 1
                if unreadable:
                    self._note(itertools.chain(*self.replicas.gather(batch.unreadable)))
                if images or self.step.takes_empty:
                    yield batch.to(self.device, self.memory_format), images
                if self._finished():
                    return None
            if self.state.step == first_step and from_start and self.state.batch:
                raise RunFailed(f"no readable image in epoch {self.state.epoch}")
            self.state.epoch, self.state.batch = self.state.epoch + 1, 0
        return None

    def _finished(self) -> bool:
        return self.state.step >= self.total_steps or self._patience_over()

    def _patience_over(self) -> bool:
        """Whether the last ``train.patience`` evaluations were no better than the best one."""
        return self.config.patience is not None and self.state.waited >= self.config.patience

    def _totals(self, batch: Batch) -> tuple[int, int, bool]:
        """Over all processes: images, unreadable images, and whether any process is asked to stop."""
        totals = self.replicas.sum([len(batch), len(batch.unreadable), self._stop_requested()])
        return int(totals[0]), int(totals[1]), totals[2] > 0

    def _stop_requested(self) -> bool:
        return self.stop.received is not None

    def _stopped(self) -> None:
        """Save the state; Ctrl-C is an interruption, the scheduler's signal an orderly end."""
        if self.state.unevaluated or self.run.checkpoints.saved_step != self.state.step:
            self._save()
        received = self.stop.received and self.stop.received.name
        if "SIGINT" in self.replicas.gather(received):
            raise KeyboardInterrupt

    def _one_step(self, batch: Batch, images: int) -> StepResult:
        step, lr, automatic = self.state.step, self.lr(self.state.step), self.step.micro_batch == "auto"
        try:
            result = self.step(batch, lr, images)
        except RunFailed as error:
            raise RunFailed(f"training stopped in step {step + 1} at learning rate {lr:.4g}: {error}") from error
        if automatic:
            self.log.say(f"micro-batches of {self.step.micro_batch} images fit into memory")
        self.state.step += 1
        return result

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.optim.lr_at(
            step,
            batch_size=self.config.batch_size,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
        )

    def _due(self, every: float) -> bool:
        return self.state.step == self.total_steps or self.state.step % max(1, round(every)) == 0

    def _evaluate(self) -> None:
        """Evaluate raw and averaged weights, write the line and the checkpoint.

        Raises:
            Stopped: a request to stop came before the end; nothing has changed.
            RunFailed: it read no image, or a metric is not finite.
        """
        measured, unreadable = self._measure()
        if self.ema is not None:
            with self.ema.applied():
                measured |= {f"ema_{name}": value for name, value in self._measure()[0].items()}
        self._note(unreadable)
        if 0 in (measured.get("images"), measured.get("ema_images")):
            raise RunFailed(f"the evaluation after step {self.state.step} read none of its images")
        self.state.unevaluated = False
        self.state.metrics = dict(
            step=self.state.step, epoch=self._epoch(), **measured, **privacy_of(self.ledger, self.replicas)
        )
        if self.replicas.main:
            self.run.log(kind="eval", **self.state.metrics)
        score = f"ema_{self.task.score}" if self.ema is not None else self.task.score
        if not all(math.isfinite(value) for value in measured.values()):
            raise NotFinite(f"the evaluation after step {self.state.step} is not finite")
        better = not self.state.best or measured[score] > self.state.best[score]
        self.state.waited = 0 if better else self.state.waited + 1
        if better:
            self.state.best = self.state.metrics
        self._save(best=better)
        self.on_evaluation(self.state.metrics, self.state.step / self.total_steps)

    def _measure(self) -> tuple[dict[str, float], list[Unreadable]]:
        task, config = self.task, self.config
        options = config.precision, self.replicas, self._stop_requested
        return evaluate(self.model, task.test, task.metrics(), self.device, *options)

    def _save(self, best: bool = False) -> None:
        """Called in all processes; if the main process cannot save, all of them raise."""
        files, state = capture(self.step, self.state)
        failure = None
        if self.replicas.main:
            try:
                self.run.check()
                skipped = self.step.skipped > 0  # the weights are those of the previous checkpoint, perhaps already bad
                self.run.checkpoints.save(self.state.step, files, state, best=best, provisional=skipped)
            except RunFailed as error:
                failure = str(error)
        failure = self.replicas.from_main(failure)
        if failure is not None:
            raise RunFailed(failure)
        self.run.checkpoints.saved_step = self.state.step

    def _epoch(self) -> float:
        return round(self.state.step / self.steps_per_epoch, 4)

    def _note(self, unreadable: Iterable[Unreadable]) -> None:
        """Report each unreadable image once, even if the reason changes; fail above the limit."""
        known = {one.image for one in self.state.unreadable}
        messages = [one.image for one in self.state.unreadable if not one.reason]  # of a run of an earlier version
        for one in unreadable:
            if one.image not in known and not any(text.startswith(f"{one.image}: ") for text in messages):
                known.add(one.image)
                self.state.unreadable.append(one)
                self.log.say(f"skipped unreadable image {one}")
        if len(self.state.unreadable) > self.max_unreadable:
            count, last = len(self.state.unreadable), self.state.unreadable[-1]
            limit = f"data.max_unreadable (={self.max_unreadable})"
            raise RunFailed(f"unreadable images: {count}, more than {limit} allows; the last one is {last}")

    def _interrupted(self) -> KeyboardInterrupt:
        self._ended("stopped", "it was interrupted")
        hint = f"; normfree train --resume {shlex.quote(str(self.run.folder))} goes on" if self._saved_in() else ""
        return KeyboardInterrupt(f"stopped at step {self.state.step}; {self._kept()}{hint}")

    def _ended(self, state: str, reason: str) -> None:
        """The last line of metrics.jsonl; a full disk must not hide why the run ended."""
        if self.replicas.main:
            with contextlib.suppress(RunFailed):
                self.run.log(kind="end", step=self.state.step, state=state, reason=reason)

    def _saved_in(self) -> Path | None:
        return self.run.checkpoints.saved_in(elsewhere=not self.replicas.main)

    def _kept(self) -> str:
        checkpoints = self.run.checkpoints
        if checkpoints.saved_step is None:
            return "no checkpoint has been written"
        place = self._saved_in()
        if place is None:
            return f"the checkpoint of step {checkpoints.saved_step} is gone from {checkpoints.folder}"
        return f"the checkpoint of step {checkpoints.saved_step} is kept in {place}"
