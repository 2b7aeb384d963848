"""``normfree bench step``."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...bench import alternate, image_batch, machine, step_memory, training_step
from ...bench.step import Measuring, memory_format
from ...data import Batch
from ...errors import UsageError
from ...runs.inspected import InspectedNetwork, open_inspected
from ...words import tell
from ..parser import Parser
from .options import WHAT, add_common, checked, form, milliseconds, rounds_bar, say


def run(argv: Sequence[str]) -> int:
    """Time and memory of a training step of networks."""
    parser = Parser("bench step", description=f"Measure {WHAT['step']}; all alternate in one run.")
    parser.add_argument("network", nargs="+", help="MODEL, RUN or pkg.module:factory, of a classifier")
    add_common(parser, batch=8, size=192, rounds=5)
    options = checked(parser.parse_args(list(argv)))
    device, precision = options.device.type, options.precision
    steps, memory, passes = {}, {}, {}
    for name in dict.fromkeys(options.network):
        say(name)
        network, measuring = open_inspected(name, {}, 0), Measuring(name, options.batch, options.size)
        with measuring:
            model, batch = _prepared(name, network, options)
            memory[name] = step_memory(model, batch, precision)
            steps[name] = measuring(training_step(model, batch, precision=precision, compiled=options.compile))
            passes[name] = measuring(_forward(model, batch.images, precision))
    measured = alternate(steps, options.rounds, device=device, progress=rounds_bar("training steps"))
    forward = alternate(passes, options.rounds, device=device, warmup=1, progress=rounds_bar("forward passes"))
    print(f"batch {options.batch}, {options.size} px, {precision}, {form(options)}; {machine(device)}\n")
    print("| network | ms per step | smallest to largest | images per second | forward, ms | kept, MB per image |")
    print("|---|---|---|---|---|---|")
    for name, samples in measured.items():
        kept = memory[name][0] / 1e6 / options.batch
        tell(
            f"| {name} | {milliseconds(samples)} | {options.batch / samples.median:.4g} "
            f"| {1e3 * forward[name].median:.1f} | {kept:.1f} |"
        )
    return 0


def _prepared(name: str, network: InspectedNetwork, options: argparse.Namespace) -> tuple[nn.Module, Batch]:
    """A network in training mode, and images and labels such as it takes."""
    last = options.channels_last
    settings: dict[str, Any] = dict(channels=network.shape[0], device=options.device.type, channels_last=last)
    model = network.model.to(options.device)
    model = model.to(memory_format=memory_format(last))
    classes = _classes(name, model.eval(), image_batch(1, options.size, **settings).images)
    return model.train(), image_batch(options.batch, options.size, classes=classes, **settings)


@torch.no_grad()
def _classes(name: str, model: nn.Module, images: Tensor) -> int:
    """How many a network tells apart: the loss is a classifier's."""
    answer = model(images)
    if isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == len(images) and answer.shape[1] > 0:
        return answer.shape[1]
    told = f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
    raise UsageError(
        f"{name} answers images of shape {tuple(images.shape)} with {told}; bench step measures classifiers, "
        "which answer with a tensor of shape (N, classes)"
    )


def _forward(model: nn.Module, images: Tensor, precision: str) -> Callable[[], None]:
    """A pass in evaluation, the network left in training."""

    @torch.no_grad()
    def run() -> None:
        model.eval()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            model(images)
        model.train()

    return run
