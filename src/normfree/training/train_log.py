"""The log of a training run: the progress bar, metrics.jsonl and clipping.jsonl."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from ..internals import private
from ..optim import ClipStatistics
from ..optim.sharded import is_sharded, local
from ..words import printable
from .distributed import Replicas
from .run import Run
from .step import StepResult, TrainStep
from .train_state import TrainState

_foreach_norm = private("torch._foreach_norm")


class TrainLog:
    """Shows the training steps in a progress bar and writes them to the run's files.

    Every process calls it; only the main one shows and writes.

    Args:
        total_steps, steps_per_epoch: of the run.
        log_every: number of steps between two lines in the files.
        shown: whether to show a progress bar on standard error.
        score: name of the metric that the bar shows after an evaluation.
    """

    def __init__(
        self,
        run: Run,
        step: TrainStep,
        replicas: Replicas,
        *,
        total_steps: int,
        steps_per_epoch: float,
        log_every: int,
        shown: bool,
        score: str,
    ):
        self.run, self.step, self.replicas, self.score = run, step, replicas, score
        self.total_steps, self.steps_per_epoch, self.log_every = total_steps, steps_per_epoch, log_every
        self.window = max(log_every, math.ceil(steps_per_epoch))
        self.shown, self.bar = shown and replicas.main, tqdm(disable=True)
        self.names: dict[torch.Tensor, str] = {parameter: name for name, parameter in step.model.named_parameters()}

    @contextlib.contextmanager
    def showing(self, done: int) -> Iterator[None]:
        """Show the progress bar inside of the ``with`` block, beginning at step ``done``."""
        with tqdm(
            total=self.total_steps, initial=done, unit="step", disable=not self.shown, dynamic_ncols=True
        ) as self.bar:
            yield

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self.replicas.main:
            tqdm.write(printable(message), file=sys.stderr)

    def after(self, at: TrainState, lr: float, result: StepResult, seconds: float) -> None:
        """Log a finished step of ``seconds``."""
        self.bar.update()
        if result.left_out is not None:
            self.say(f"step {at.step} was left out: {result.left_out}")
            self._log(kind="skipped", step=at.step, reason=result.left_out)
            return
        at.recent.append([result.loss, result.correct, result.images, seconds])
        del at.recent[: -self.window]
        fields = self._means(at, result)
        self.bar.set_postfix_str(self._shown(fields, at.metrics), refresh=False)
        if at.step % self.log_every == 0 or at.step == self.total_steps:
            layers = clipped_layers(self.step.agc.statistics, self.names, self.replicas)
            fields |= norms(self.step, self.replicas) | by_stage(layers)
            epoch = round(at.step / self.steps_per_epoch, 4)
            self._log(kind="train", step=at.step, epoch=epoch, lr=lr, **fields)
            if layers and self.replicas.main:
                shares = {name: [round(c / n, 5), float(f"{r:.4g}")] for name, (n, c, r) in layers.items()}
                self.run.log_clipping(at.step, shares)

    def _means(self, at: TrainState, result: StepResult) -> dict[str, Any]:
        """Means over the last steps: over an epoch, or over ``log_every`` steps if these are more."""
        images, seconds = (sum(step[place] for step in at.recent) for place in (2, 3))
        images = max(1, images)  # private training may draw none
        return dict(
            loss=sum(loss * count for loss, _, count, _ in at.recent) / images,
            accuracy=sum(correct for _, correct, _, _ in at.recent) / images,
            images_per_s=images / seconds,
            seconds_left=round((self.total_steps - at.step) * seconds / len(at.recent), 1),
            clipped=result.clipped,
        )

    def _shown(self, fields: dict[str, Any], metrics: dict[str, Any]) -> str:
        clipped = "off" if fields["clipped"] is None else f"{fields['clipped']:.1%}"
        shown = f"loss {fields['loss']:.3f}, acc {fields['accuracy']:.1%}, {fields['images_per_s']:.0f} images/s"
        test = metrics.get(f"ema_{self.score}", metrics.get(self.score))
        return f"{shown}, clipped {clipped}" + ("" if test is None else f", test {test:.1%}")

    def _log(self, **fields: Any) -> None:
        if self.replicas.main:
            self.run.log(**fields)


Layers = dict[str, tuple[int, int, float]]  # units, clipped ones, largest ratio of gradient to weight norm


def clipped_layers(statistics: ClipStatistics, names: dict[torch.Tensor, str], replicas: Replicas) -> Layers:
    """Clipping by layer, in the network's order; a layer is a block, or a module outside of the blocks.

    The largest ratio is over weights only: vectors that start at 0, whose norm is bounded by eps, would hide them.
    """
    local_layers: Layers = {}
    by_parameter = {parameter: clipping for parameter, clipping in statistics.by_tensor()}
    for parameter, name in names.items():
        if parameter in by_parameter:
            units, clipped, ratio = by_parameter[parameter]
            _add(local_layers, layer_of(name), (units, clipped, ratio if parameter.ndim > 1 else 0.0))
    if not any(is_sharded(parameter) for parameter in names):
        return local_layers
    everywhere: Layers = {}
    order = [layer_of(name) for name in names.values()]
    gathered = replicas.gather(local_layers)
    for layer in dict.fromkeys(order):
        for part in gathered:
            if layer in part:
                _add(everywhere, layer, part[layer])
    return everywhere


def _add(layers: Layers, name: str, more: tuple[int, int, float]) -> None:
    units, clipped, ratio = layers.get(name, (0, 0, 0.0))
    layers[name] = (units + more[0], clipped + more[1], max(ratio, more[2]))


def layer_of(name: str) -> str:
    """``stages.0.1`` for ``stages.0.1.conv0.weight``: the name up to the last number; without numbers, the module."""
    parts = name.split(".")[:-1]
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1] if numbers else parts)


def by_stage(layers: Layers) -> dict[str, dict[str, float]]:
    """Fraction clipped and largest ratio per stage."""
    stages: Layers = {}
    for name, counts in layers.items():
        head, _, last = name.rpartition(".")
        _add(stages, head if last.isdigit() and head else name, counts)
    if not stages:
        return {}
    return dict(
        clipped_by_stage={name: round(c / n, 5) for name, (n, c, _) in stages.items()},
        largest_ratio={name: float(f"{ratio:.4g}") for name, (_, _, ratio) in stages.items()},
    )


@torch.no_grad()
def norms(step: TrainStep, replicas: Replicas) -> dict[str, float]:
    """L2 norms of the gradient before clipping and of the parameters, over the whole network."""
    gradient = step.agc.statistics.gradient_norm
    if gradient is None:  # a fused step leaves gradients as they were
        grads = [p.grad for p in step.model.parameters() if p.grad is not None]
        gradient = torch.linalg.vector_norm(torch.stack(_foreach_norm(grads)))
    squares = [
        gradient.item() ** 2,
        torch.stack(_foreach_norm([local(p) for p in step.model.parameters()])).double().square().sum().item(),
    ]
    if step.sharded:
        squares = replicas.sum(squares)
    return dict(gradient_norm=squares[0] ** 0.5, parameter_norm=squares[1] ** 0.5)
