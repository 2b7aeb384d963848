"""Does the signal depend on a network's width? (the check of constants that theory derives from the fan-in)

Where weights have variance c / fan-in, or are standardized, a block's variance is the same at any width. Without the
division it grows with the width to the power of the number of layers; divided twice it falls. So constants that were
tuned at one width fail at another, before any training.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UsageError, check_count
from .finding import Finding
from .record import record
from .result import SPP
from .rows import Row

SLOPE = 0.5  # of log variance over log width: 1 for each layer without its fan-in, up to 0.2 in healthy networks
CERTAIN = 3.0  # standard errors, from one slope for each seed


@dataclass(frozen=True)
class WidthRow:
    """A block at several widths.

    Attributes:
        block: dotted name.
        variances: average channel variance at each width, the geometric mean over seeds: of the branch's end where
            there is a branch, else of the block's output.
        slope: of log variance over log width, mean over seeds; error: its standard error.
    """

    block: str
    variances: tuple[float, ...]
    slope: float
    error: float

    @property
    def depends(self) -> bool:
        """Whether the variance depends on the width beyond chance."""
        return not math.isfinite(self.slope) or abs(self.slope) > max(SLOPE, CERTAIN * self.error)


@dataclass(frozen=True)
class WidthCheck:
    """Result of :func:`width_check`; ``str`` of it is a table."""

    widths: tuple[int, ...]
    rows: list[WidthRow]

    def diagnose(self) -> list[Finding]:
        """One finding that names the first block whose variance depends on the width, and the others."""
        found = [row for row in self.rows if row.depends]
        if not found:
            return []
        row, low, high = found[0], self.widths[0], self.widths[-1]
        grows = f", about width^{row.slope:.1f}" if math.isfinite(row.slope) else ""
        text = (
            f"the variance of {row.block} is {row.variances[0]:.3g} at width {low} and {row.variances[-1]:.3g} at "
            f"{high}{grows}; it is the first of {len(found)} of {len(self.rows)} blocks that depend on the width; "
        )
        too_small = row.slope < 0
        text += f"the variance of its weights must be 1 / fan-in, {'not less' if too_small else 'not a constant'}"
        return [Finding("width", tuple(row.block for row in found), text)]

    def __str__(self) -> str:
        width = max(len("block"), *(len(row.block) for row in self.rows))
        lines = [f"{'block':{width}}  " + "  ".join(f"{f'width {w}':>10}" for w in self.widths) + "   slope"]
        for row in self.rows:
            cells = "  ".join(f"{variance:10.4g}" for variance in row.variances)
            lines.append(f"{row.block:{width}}  {cells}  {row.slope:6.2f}{' !' if row.depends else ''}")
        return "\n".join(lines)


def width_check(
    factory: Callable[[int], nn.Module],
    widths: Sequence[int],
    batch_or_shape: Any,
    *,
    seeds: int = 3,
    blocks: str | None = None,
) -> WidthCheck:
    """Record a network at several widths, and find blocks whose variance depends on the width.

    >>> def make(width):
    ...     return normfree.create_model("nf_resnet50", depths=(1, 1), widths=(width, 2 * width), num_classes=10)
    >>> check = width_check(make, [16, 64], (2, 3, 32, 32))
    >>> [row.block for row in check.rows], check.diagnose()
    (['stages.0.0', 'stages.1.0'], [])

    Args:
        factory: from a width to a network; the random numbers that it draws are seeded.
        widths: at least two; the largest should be four times the smallest or more.
        batch_or_shape: inputs, as of :func:`record`.
        seeds: of weights and noise, 0 to ``seeds - 1``: chance shows in their spread.
        blocks: as of :func:`record`.

    Raises:
        UsageError: widths that are fewer than two, or no counts; fewer than two seeds; other blocks at another width;
            what :func:`record` refuses.
    """
    check_count("seeds", seeds)
    for width in widths:
        check_count("widths", width)
    chosen = tuple(sorted(set(widths)))
    if len(chosen) < 2 or seeds < 2:
        raise UsageError(f"widths (={list(widths)}) and seeds (={seeds}) must be at least two")
    plots = [[_recorded(factory, width, batch_or_shape, seed, blocks) for width in chosen] for seed in range(seeds)]
    names = plots[0][0].blocks
    other = next((w for some in plots for w, spp in zip(chosen, some, strict=True) if spp.blocks != names), None)
    if other is not None:
        raise UsageError(f"widths: the network of width {other} has other blocks than that of width {chosen[0]}")
    rows = [_row(block, chosen, [[spp.rows[i] for spp in some] for some in plots]) for i, block in enumerate(names)]
    return WidthCheck(chosen, rows)


def _recorded(factory: Callable[[int], nn.Module], width: int, inputs: Any, seed: int, blocks: str | None) -> SPP:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = factory(width)
    return record(model, inputs, seed=seed, blocks=blocks)


def _row(block: str, widths: Sequence[int], recorded: list[list[Row]]) -> WidthRow:
    """A block from its rows, by seed and width."""
    logs = [[_log(row) for row in rows] for rows in recorded]
    variances = tuple(math.exp(statistics.fmean(values)) for values in zip(*logs, strict=True))
    if not all(math.isfinite(value) for values in logs for value in values):
        return WidthRow(block, variances, math.nan if any(variances) else 0.0, 0.0)  # 0: it is switched off everywhere
    x = [math.log(width) for width in widths]
    slopes = [statistics.linear_regression(x, values).slope for values in logs]
    return WidthRow(block, variances, statistics.fmean(slopes), statistics.stdev(slopes) / math.sqrt(len(slopes)))


def _log(row: Row) -> float:
    """The logarithm of the branch's variance, or of the output's; of no variance minus infinity."""
    variance = row.avg_var if row.res_avg_var is None else row.res_avg_var
    return math.log(variance) if variance > 0 else -math.inf if variance == 0 else math.nan
