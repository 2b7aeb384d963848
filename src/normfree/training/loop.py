"""The training loop: steps, evaluations, checkpoints. It knows no model and no task by name."""

import contextlib
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..data import Batch, Loader, Unreadable
from ..errors import RunFailed, UsageError
from ..nn import recompute_weights
from ..optim import EMA, OptimConfig
from .batch_norm import seen_by_batch_norm
from .config import TrainConfig
from .distributed import Replicas, lost
from .environment import environment
from .evaluate import GivenUp, evaluate
from .run import Run
from .signals import StopRequests
from .state import Progress, capture, restore
from .step import Losses, StepResult, TrainStep
from .watch import Watch


class Task(Losses, Protocol):
    """What the loop needs of a task."""

    train: Loader
    test: Loader
    score: str  # the metric that is better when larger

    def metrics(self) -> Any: ...


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


def pick_device(name: str, float64: bool = False) -> torch.device:
    """A device by name; "auto" is CUDA where there is one, else the CPU.

    Args:
        float64: whether sums are taken in float64 there, as in training.

    Raises:
        UsageError: no such device here, or one without float64.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "mps" and float64:
            raise UsageError(f"device (={name!r}) has no float64, in which sums are taken here; use cpu or cuda")
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = f" ({str(error).splitlines()[0].partition('. ')[0]})" if name.startswith("cuda") else ""
        raise UsageError(f"device (={name!r}) is not available{reason}; use {_devices()}") from error
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # one of several processes has chosen its own
    return device


def _devices() -> str:
    """Names of the devices that are here, for an error message."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["auto", "cpu", *(f"cuda:{index}" for index in range(count))]
    return ", ".join(names[:-1]) + f" or {names[-1]}"


def layout_of(train: TrainConfig, device: torch.device) -> torch.memory_format:
    """Of activations and weights: what the recipe says, else what was measured to be faster (docs/performance.md)."""
    last = train.channels_last
    if last is None:
        last = device.type == "cpu" and train.precision == "bfloat16" and train.parallel != "fsdp"
    return torch.channels_last if last else torch.contiguous_format


class Trainer:
    """Trains a model on a task into a run's folder.

    Args:
        max_unreadable: images that may be unreadable before the run stops.
        progress: show a bar on standard error.
        watch: called with the number of steps done, after each and before the first, outside of their time.
        replicas: the processes of the run, of which each has a trainer; the main one writes.
        stop: what notes requests to stop; a request from before training is answered before its first step.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        run: Run,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        max_unreadable: int = 0,
        progress: bool = True,
        watch: Callable[[int], None] = lambda step: None,
        replicas: Replicas | None = None,
        stop: StopRequests | None = None,
    ):
        self.task, self.run, self.config, self.optim = task, run, train, optim
        self.replicas = replicas or Replicas()
        if train.threads is not None:
            torch.set_num_threads(train.threads)
        self.device = pick_device(train.device, float64=True)
        self.layout = layout_of(train, self.device)
        self.model = model.to(self.device).to(memory_format=self.layout)
        set_checkpointing(model, train.activation_checkpointing)
        recompute_weights(model, train.recompute_weights)
        if train.parallel == "fsdp":
            self.replicas.shard(self.model, self.device)
        self.step = TrainStep(
            self.model,
            task,
            optim.build(self.model),
            ema=EMA(self.model, optim.ema_decay) if optim.ema_decay is not None else None,
            sam=optim.build_sam(self.model),
            clipping_eps=optim.clipping_eps,
            micro_batch=train.micro_batch,
            precision=train.precision,
            replicas=self.replicas,
            compiled=train.compile,
            skip_nonfinite=train.skip_nonfinite,
        )
        self.ema = self.step.ema
        self.steps_per_epoch = float(task.train.steps_per_epoch)
        self.total_steps = train.total_steps(task.train.steps_per_epoch)
        self.max_unreadable = max_unreadable
        self.watch = watch
        self.seen = Watch(
            run,
            self.step,
            self.replicas,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
            log_every=train.log_every,
            shown=progress,
            score=task.score,
        )
        self.told = seen_by_batch_norm(model, train, optim, self.replicas.world)
        self.stop, self.at, self.resumed = stop or StopRequests(), Progress(), False
        self.loaders = [loader for loader in (task.train, task.test) if isinstance(loader, Loader)]
        for loader in self.loaders:
            loader.asked, loader.say = self._asked, self.seen.say

    def resume(self, checkpoint: str | Path) -> list[str]:
        """Go on from a checkpoint of this run; what to tell the user.

        Raises:
            UsageError: it is of another network or recipe.
        """
        self.at, told = restore(Path(checkpoint), self.step)
        self.run.checkpoints.goes_on(self.at.step, source=Path(checkpoint), aside=self.step.skipped > 0)
        self.resumed = True
        if self.replicas.main:
            told += self.run.forget_after(self.at.step)
            self.run.checkpoints.tidy(self.at.best.get("step"))
            self.run.began()
        return told

    def fit(self) -> Summary:
        """Train to the end, or to a request to stop.

        Raises:
            RunFailed: a loss or gradient is not finite, too many images are unreadable, or the disk is full; the
                message names the step and the last good checkpoint.
            KeyboardInterrupt: Ctrl-C; the step at work was finished and saved.
        """
        begun = time.perf_counter()
        try:
            if self.replicas.main:
                self.run.describe(environment(self.device, self.replicas.world))
            if self.told is not None:
                self.seen.say(self.told)
            if not self.resumed:
                self.watch(0)  # before the first checkpoint, as at later steps: a run that goes on has it
                self._save()
                if self.replicas.main:
                    self.run.began()
            self._train()
        except KeyboardInterrupt:
            raise self._interrupted() from None
        except RunFailed as error:
            self._ended("failed", str(error))
            raise RunFailed(f"{error}; {self._kept()}") from error
        except RuntimeError as error:  # torch's, where another process has died
            gone = lost(error) if self.replicas.world > 1 else None
            self._ended("failed", gone or f"{type(error).__name__}: {error}")
            if gone is None:
                raise
            raise RunFailed(f"{gone}; {self._kept()}") from error
        finally:
            for loader in self.loaders:
                loader.close()
        at, spent = self.at, time.perf_counter() - begun
        early = self._waited_enough() and at.step < self.total_steps
        stopped = (at.step < self.total_steps or at.unevaluated) and not early
        reason = "it was asked to stop" if stopped else f"no better evaluation in {at.waited}" if early else ""
        self._ended("stopped" if stopped else "finished", reason)
        return Summary(at.metrics, at.best, at.step, at.seconds, spent, at.unreadable, stopped, early)

    def _train(self) -> None:
        self.model.train()
        with self.seen.showing(self.at.step), self.stop.listening(signal.SIGINT, signal.SIGTERM):
            try:
                if self.at.unevaluated:
                    self._evaluate()
                self._steps()
            except GivenUp:
                self.at.unevaluated = True
                self._stopped()

    def _steps(self) -> None:
        since = time.perf_counter()
        for batch, images in self._batches():
            result = self._one_step(batch, images)
            now = time.perf_counter()  # the time of a step includes waiting for its images
            self.at.seconds += now - since
            self.seen.after(self.at, self.lr(self.at.step - 1), result, now - since)
            self.watch(self.at.step)
            if self._due(self.config.eval_every * self.steps_per_epoch):
                self._evaluate()
            elif self.config.save_every is not None and self.at.step % self.config.save_every == 0:
                self._save()
            since = time.perf_counter()

    def _batches(self) -> Iterator[tuple[Batch, int]]:
        """This process's shares of the batches still to come, on the device, and the images in the whole batches.

        Ends with the last step, or where any process is asked to stop; the state is saved there.
        """
        while not self._finished():
            before, whole = self.at.step, self.at.batch == 0
            self.task.train.set_epoch(self.at.epoch, self.at.batch)
            for batch in self.task.train:
                images, unreadable, asked = self._agree(batch)
                if asked:
                    return self._stopped()
                self.at.batch += 1
                if unreadable:
                    self._note(one for some in self.replicas.gather(batch.unreadable) for one in some)
                if images:
                    yield batch.to(self.device, self.layout), images
                if self._finished():
                    return None
            if self.at.step == before and whole and self.at.batch:
                raise RunFailed(f"no readable image in epoch {self.at.epoch}")
            self.at.epoch, self.at.batch = self.at.epoch + 1, 0
        return None

    def _finished(self) -> bool:
        return self.at.step >= self.total_steps or self._waited_enough()

    def _waited_enough(self) -> bool:
        """Whether the last evaluations were no better than the best one, as many as ``train.patience`` says."""
        return self.config.patience is not None and self.at.waited >= self.config.patience

    def _agree(self, batch: Batch) -> tuple[int, int, bool]:
        """Over all processes: images, unreadable ones, and whether any is asked to stop."""
        totals = self.replicas.sum([len(batch), len(batch.unreadable), self._asked()])
        return int(totals[0]), int(totals[1]), totals[2] > 0

    def _asked(self) -> bool:
        return self.stop.asked is not None

    def _stopped(self) -> None:
        """Save where the run is; Ctrl-C is an interruption, the scheduler's signal an orderly end."""
        if self.at.unevaluated or self.run.checkpoints.saved_step != self.at.step:
            self._save()
        if any(name == "SIGINT" for name in self.replicas.gather(self.stop.asked and self.stop.asked.name)):
            raise KeyboardInterrupt

    def _one_step(self, batch: Batch, images: int) -> StepResult:
        step, lr, automatic = self.at.step, self.lr(self.at.step), self.step.micro_batch == "auto"
        try:
            result = self.step(batch, lr, images)
        except RunFailed as error:
            raise RunFailed(f"training stopped in step {step + 1} at learning rate {lr:.4g}: {error}") from error
        if automatic:
            self.seen.say(f"micro-batches of {self.step.micro_batch} images fit into memory")
        self.at.step += 1
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
        return self.at.step == self.total_steps or self.at.step % max(1, round(every)) == 0

    def _evaluate(self) -> None:
        """Evaluate raw and averaged weights, write the line and the checkpoint.

        Raises:
            GivenUp: a request to stop came before it was done; nothing has changed.
            RunFailed: it read no image, or what it measured is not finite.
        """
        measured, unreadable = self._measure()
        if self.ema is not None:
            with self.ema.applied():
                measured |= {f"ema_{name}": value for name, value in self._measure()[0].items()}
        self._note(unreadable)
        if 0 in (measured.get("images"), measured.get("ema_images")):
            raise RunFailed(f"the evaluation after step {self.at.step} read none of its images")
        self.at.unevaluated = False
        self.at.metrics = dict(step=self.at.step, epoch=self._epoch(), **measured)
        if self.replicas.main:
            self.run.log(kind="eval", **self.at.metrics)
        score = f"ema_{self.task.score}" if self.ema is not None else self.task.score
        if not all(math.isfinite(value) for value in measured.values()):
            raise RunFailed(f"the evaluation after step {self.at.step} is not finite")
        better = not self.at.best or measured[score] > self.at.best[score]
        self.at.waited = 0 if better else self.at.waited + 1
        if better:
            self.at.best = self.at.metrics
        self._save(best=better)

    def _measure(self) -> tuple[dict[str, float], list[Unreadable]]:
        task, config = self.task, self.config
        how = config.precision, self.replicas, self._asked
        return evaluate(self.model, task.test, task.metrics(), self.device, *how)

    def _save(self, best: bool = False) -> None:
        """All processes together; a failure of the main one is everyone's."""
        files, state = capture(self.step, self.at)
        failed = None
        if self.replicas.main:
            try:
                self.run.check()
                aside = self.step.skipped > 0  # the weights are those of the checkpoint before, perhaps already bad
                self.run.checkpoints.save(self.at.step, files, state, best=best, aside=aside)
            except RunFailed as error:
                failed = str(error)
        failed = self.replicas.from_main(failed)
        if failed is not None:
            raise RunFailed(failed)
        self.run.checkpoints.saved_step = self.at.step

    def _epoch(self) -> float:
        return round(self.at.step / self.steps_per_epoch, 4)

    def _note(self, unreadable: Iterable[Unreadable]) -> None:
        """Name each unreadable image once, whatever the reason is this time; stop beyond the limit."""
        known = {one.image for one in self.at.unreadable}
        messages = [one.image for one in self.at.unreadable if not one.reason]  # of a run of an earlier version
        for one in unreadable:
            if one.image not in known and not any(text.startswith(f"{one.image}: ") for text in messages):
                known.add(one.image)
                self.at.unreadable.append(one)
                self.seen.say(f"skipped unreadable image {one}")
        if len(self.at.unreadable) > self.max_unreadable:
            raise RunFailed(
                f"unreadable images: {len(self.at.unreadable)}, more than data.max_unreadable (={self.max_unreadable}) "
                f"allows; the last one is {self.at.unreadable[-1]}"
            )

    def _interrupted(self) -> KeyboardInterrupt:
        self._ended("stopped", "it was interrupted")
        goes_on = f"; normfree train --resume {shlex.quote(str(self.run.folder))} goes on"
        return KeyboardInterrupt(f"stopped at step {self.at.step}; {self._kept()}{goes_on if self._saved_in() else ''}")

    def _ended(self, state: str, reason: str) -> None:
        """The last line of metrics.jsonl; a full disk must not hide why the run ended."""
        if self.replicas.main:
            with contextlib.suppress(RunFailed):
                self.run.log(kind="end", step=self.at.step, state=state, reason=reason)

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


@runtime_checkable
class SupportsCheckpointing(Protocol):
    """A network that can keep the inputs of its blocks alone for the backward pass, in these stages or in all."""

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None: ...


def set_checkpointing(model: nn.Module, stages: Sequence[int] | str | None) -> None:
    """Keep block inputs alone in these stages, or in "all".

    Raises:
        UsageError: no such stage, or a network that has no stages.
    """
    if stages is None:
        return
    if not isinstance(model, SupportsCheckpointing):
        raise UsageError("train.activation_checkpointing needs a network with set_grad_checkpointing; it has none")
    try:
        model.set_grad_checkpointing(True, None if isinstance(stages, str) else stages)
    except UsageError as error:
        raise UsageError(f"train.activation_checkpointing (={list(stages)}): {error}") from error
