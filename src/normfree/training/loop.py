"""The training loop: steps, evaluations, checkpoints. It knows no model and no task by name."""

import contextlib
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from ..data import Batch, Loader
from ..errors import RunFailed, UsageError
from ..optim import EMA, OptimConfig
from .config import TrainConfig
from .evaluate import evaluate
from .run import Run
from .step import Losses, StepResult, TrainStep


class Task(Losses, Protocol):
    """What the loop needs of a task."""

    train: Loader
    test: Loader
    score: str  # the metric that is better when larger

    def metrics(self) -> Any: ...


@dataclass(frozen=True)
class Summary:
    """The end of a run: metrics of the last and of the best evaluation, seconds of training without
    evaluations and in all."""

    last: dict[str, Any]
    best: dict[str, Any]
    steps: int
    train_seconds: float
    seconds: float
    unreadable: list[str]


def pick_device(name: str) -> torch.device:
    """A device by name; "auto" is CUDA where there is one, else the CPU.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"train.device (={name!r}) is not available: {str(error).splitlines()[0]}") from error
    return device


class Trainer:
    """Trains a model on a task into a run's folder.

    Args:
        max_unreadable: images that may be unreadable before the run stops.
        progress: show a bar on standard error.
        watch: called with the number of steps done, after each and before the first, outside of their time.
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
    ):
        self.task, self.run, self.config, self.optim = task, run, train, optim
        if train.threads is not None:
            torch.set_num_threads(train.threads)
        self.device = pick_device(train.device)
        self.layout = torch.channels_last if train.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=self.layout)
        self.ema = EMA(self.model, optim.ema_decay) if optim.ema_decay is not None else None
        self.step = TrainStep(
            self.model,
            task,
            optim.build(self.model),
            ema=self.ema,
            clipping_eps=optim.clipping_eps,
            micro_batch=train.micro_batch,
            precision=train.precision,
        )
        self.steps_per_epoch = len(task.train)
        self.total_steps = train.total_steps(self.steps_per_epoch)
        self.max_unreadable = max_unreadable
        self.unreadable: list[str] = []
        self.progress, self.watch = progress, watch
        self.recent: deque[tuple[StepResult, float]] = deque(maxlen=max(train.log_every, self.steps_per_epoch))
        self.interrupted = False
        self.best: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def fit(self) -> Summary:
        """Train to the end.

        Raises:
            RunFailed: a loss or gradient is not finite, too many images are unreadable, or the disk is full; the
                message names the step and the last good checkpoint.
        """
        begun, in_steps, done = time.perf_counter(), 0.0, 0
        self._save("last", step=0, epoch=0.0)
        self.watch(0)
        self.model.train()
        bar = tqdm(total=self.total_steps, unit="step", disable=not self.progress, dynamic_ncols=True)
        try:
            with bar, self._finishing_steps():
                since = time.perf_counter()
                for done, batch in enumerate(self._batches(), start=1):
                    result = self._one_step(done - 1, batch)
                    now = time.perf_counter()  # the time of a step includes waiting for its images
                    in_steps += now - since
                    self.recent.append((result, now - since))
                    self._report(bar, done)
                    self.watch(done)
                    if self._evaluation_due(done):
                        self._evaluate(done)
                    since = time.perf_counter()
                    if self.interrupted:
                        self._save("last", step=done, epoch=self._epoch(done))
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped at step {done}; {self._kept()}") from None
        except RunFailed as error:
            raise RunFailed(f"{error}; {self._kept()}") from error
        except RuntimeError:
            if self.interrupted:  # a terminal's Ctrl-C reaches the processes that decode images, too
                raise KeyboardInterrupt(f"stopped at step {done}; {self._kept()}") from None
            raise
        return Summary(self.last, self.best, done, in_steps, time.perf_counter() - begun, self.unreadable)

    @contextlib.contextmanager
    def _finishing_steps(self) -> Iterator[None]:
        """The first Ctrl-C lets the step at work finish, so that it can be saved; a second one does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def finish(*_: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, finish)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _batches(self) -> Iterator[Batch]:
        """Batches of all epochs, on the device, as many as there are steps; unreadable images noted."""
        step, epoch = 0, 0
        while step < self.total_steps:
            self.task.train.set_epoch(epoch)
            before = step
            for batch in self.task.train:
                self._note(batch.unreadable)
                if len(batch):
                    yield batch.to(self.device, self.layout)
                    step += 1
                    if step == self.total_steps:
                        return
            if step == before:
                raise RunFailed(f"no readable image in epoch {epoch}")
            epoch += 1

    def _one_step(self, step: int, batch: Batch) -> StepResult:
        lr = self._lr(step)
        try:
            return self.step(batch, lr)
        except RunFailed as error:
            raise RunFailed(f"training stopped in step {step + 1} at learning rate {lr:.4g}: {error}") from error

    def _lr(self, step: int) -> float:
        return self.optim.lr_at(
            step,
            batch_size=self.config.batch_size,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
        )

    def _report(self, bar: tqdm, done: int) -> None:
        results = [result for result, _ in self.recent]
        images = sum(result.images for result in results)
        fields = dict(
            loss=sum(result.loss * result.images for result in results) / images,
            accuracy=sum(result.correct for result in results) / images,
            images_per_s=images / sum(spent for _, spent in self.recent),
            clipped=results[-1].clipped,
        )
        clipped = "off" if fields["clipped"] is None else f"{fields['clipped']:.1%}"
        shown = f"loss {fields['loss']:.3f}, acc {fields['accuracy']:.1%}, {fields['images_per_s']:.0f} images/s"
        shown += f", clipped {clipped}"
        test = self.last.get(f"ema_{self.task.score}", self.last.get(self.task.score))
        bar.set_postfix_str(shown + ("" if test is None else f", test {test:.1%}"), refresh=False)
        bar.update()
        if done % self.config.log_every == 0 or done == self.total_steps:
            self.run.log(kind="train", step=done, epoch=self._epoch(done), lr=self._lr(done - 1), **fields)

    def _evaluation_due(self, done: int) -> bool:
        every = max(1, round(self.config.eval_every * self.steps_per_epoch))
        return done == self.total_steps or done % every == 0

    def _evaluate(self, done: int) -> None:
        """Evaluate raw and averaged weights, write the line and the checkpoints."""
        measured, unreadable = self._measure()
        if self.ema is not None:
            with self.ema.applied():
                measured |= {f"ema_{name}": value for name, value in self._measure()[0].items()}
        self._note(unreadable)
        self.last = dict(step=done, epoch=self._epoch(done), **measured)
        self.run.log(kind="eval", **self.last)
        score = f"ema_{self.task.score}" if self.ema is not None else self.task.score
        if not all(math.isfinite(value) for value in measured.values()):
            raise RunFailed(f"the evaluation after step {done} is not finite")
        self._save("last", **self.last)
        if not self.best or measured[score] > self.best[score]:
            self.best = self.last
            self._save("best", **self.last)

    def _measure(self) -> tuple[dict[str, float], list[str]]:
        return evaluate(self.model, self.task.test, self.task.metrics(), self.device, self.config.precision)

    def _save(self, which: str, **fields: Any) -> None:
        weights = dict(weights=self.model.state_dict()) | ({} if self.ema is None else dict(ema=self.ema.average))
        self.run.save(which, weights, **fields)

    def _epoch(self, done: int) -> float:
        return round(done / self.steps_per_epoch, 4)

    def _note(self, unreadable: list[str]) -> None:
        """Name each unreadable image once; stop beyond the limit."""
        for message in unreadable:
            if message not in self.unreadable:
                self.unreadable.append(message)
                tqdm.write(f"skipped unreadable image {message}")
        if len(self.unreadable) > self.max_unreadable:
            raise RunFailed(
                f"unreadable images: {len(self.unreadable)}, more than data.max_unreadable (={self.max_unreadable}) "
                f"allows; the last one is {self.unreadable[-1]}"
            )

    def _kept(self) -> str:
        if self.run.saved_step is None:
            return "no checkpoint has been written"
        return f"the checkpoint of step {self.run.saved_step} is kept in {self.run.checkpoint('last')}"
