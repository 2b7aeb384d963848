"""Findings about a signal, and the faults that do not depend on training."""

import math
from dataclasses import dataclass

from ..words import counted
from .rows import Recording, Row


@dataclass(frozen=True)
class Finding:
    """One fault: ``str`` of it is a sentence.

    Attributes:
        kind: "not finite", "no signal" or "dead branch"; of an untrained network also "explosion", "attenuation",
            "mean shift", "branch variance" or "missing reset"; of a trained one "constant output", "drift", "spectrum".
        blocks: names of the blocks that show it, the first or worst one first; of a spectrum, layers; of values
            that are not finite also parameters; "output" is what the network returns.
        message: the sentence, with names and numbers.
    """

    kind: str
    blocks: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def not_finite(spp: Recording) -> list[Finding]:
    """The first block, or else the output, with values that are not finite, and such parameters."""
    where, texts = _first_not_finite(spp)
    if spp.lost:
        more = f" and {counted(len(spp.lost) - 1, 'more parameter')}" if spp.lost[1:] else ""
        texts.append(f"{spp.lost[0]}{more} {'have' if more else 'has'} values that are not finite")
    return [Finding("not finite", (*where, *spp.lost), "; ".join(texts))] if texts else []


def _first_not_finite(spp: Recording) -> tuple[list[str], list[str]]:
    """Its name and a sentence, or nothing."""
    before = spp.stem
    for row in spp.rows:
        if not finite(row):
            came = f", having taken a variance of {before.avg_var:.3g}" if before is not None else ""
            return [row.block], [f"{row.block} is the first block with a value that is not finite{came}"]
        before = row
    if spp.output is not None and not finite(spp.output):
        return ["output"], ["the network's output has values that are not finite, all blocks' are"]
    return [], []


def no_signal(spp: Recording) -> list[Finding]:
    """Inputs too small to vary, or a block whose output does not vary."""
    if all(row.values == 1 for row in spp.rows):
        text = "every channel has a single value, which cannot vary; record larger inputs, or more of them"
        return [Finding("no signal", (spp.rows[0].block,), text)]
    for row in spp.rows:
        if row.avg_var == 0 and row.values != 1:
            return [
                Finding("no signal", (row.block,), f"the output of {row.block} does not vary: nothing gets through")
            ]
    return []


def finite(row: Row) -> bool:
    """Whether all of a block's variances are numbers."""
    return math.isfinite(row.avg_var) and math.isfinite(row.res_avg_var or 0.0)
