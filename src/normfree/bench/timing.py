"""Times of things that do the same, taken in turn, so that what else the machine does falls on all of them."""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from .. import kernels
from ..version import __version__
from ..words import counted

ProgressBar = Callable[[Iterable[int]], Iterable[int]]
DISTURBED = 0.9  # of the usual share of the processors: a sample that got less ran beside something else


@dataclass(frozen=True)
class Samples:
    """What one side took.

    Attributes:
        seconds: one per sample that counts.
        disturbed: samples that do not: another program had the processors.
    """

    seconds: tuple[float, ...]
    disturbed: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest."""
        return min(self.seconds), max(self.seconds)


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: str = "cpu",
    warmup: int = 2,
    progress: ProgressBar = iter,
) -> dict[str, Samples]:
    """Run each side once per round, in turn.

    A sample during which this process had less of the CPUs than in the side's other samples is left out.

    >>> times = alternate({"a": lambda: sum(range(1000)), "b": lambda: sum(range(2000))}, rounds=5)
    >>> times["a"].median > 0
    True

    Args:
        sides: name to what is timed.
        device: "cuda" waits for the GPU before and after each sample.
        warmup: runs of each side before the first round.
        progress: shows how the rounds go, as tqdm does.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for run in sides.values():
        for _ in range(warmup):
            run()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in progress(range(rounds)):
        for name, run in sides.items():
            wait()
            begun, worked = time.perf_counter(), time.process_time()
            run()
            wait()
            spent = time.perf_counter() - begun
            samples[name].append((spent, (time.process_time() - worked) / spent))
    return {name: _undisturbed(some, device) for name, some in samples.items()}


def _undisturbed(samples: list[tuple[float, float]], device: str) -> Samples:
    usual = statistics.median(share for _, share in samples)
    kept = tuple(spent for spent, share in samples if device != "cpu" or share >= DISTURBED * usual)
    return Samples(kept, len(samples) - len(kept))


def machine(device: str = "cpu") -> str:
    """One line: the processor, the versions, the date.

    >>> machine()  # doctest: +ELLIPSIS
    '..., torch ..., normfree ..., ...'
    """
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        where = f"{platform.machine()} ({capability}), {counted(torch.get_num_threads(), 'thread')}"
        where += f", compiled kernels {'off: ' + why if (why := kernels.why_off()) else kernels.variant()}"
    return f"{where}, torch {torch.__version__}, normfree {__version__}, {datetime.date.today()}"
