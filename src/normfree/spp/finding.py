"""Findings about a signal, and the faults that do not depend on training."""

import itertools
import math
from dataclasses import dataclass

from ..words import counted
from .rows import Recording, Row

ALIKE = 0.9999  # cosine between examples: up to 0.993 in healthy networks, class tokens apart
NEARLY_ALIKE = 0.99  # below, examples are told apart well: a class token that begins there has seen none yet


@dataclass(frozen=True)
class Finding:
    """One fault: ``str`` of it is a sentence.

    Attributes:
        kind: "not finite", "no signal", "examples alike" or "dead branch"; of an untrained network also "explosion",
            "attenuation", "mean shift", "branch variance", "missing reset", "drowned map", "weight scale" or "epsilon",
            and of its gradients "no gradient", "exploding gradient" or "vanishing gradient"; of a trained one "constant
            output", "drift", "spectrum"; of several widths "width".
        blocks: names of the blocks that show it, the first or worst one first; of a spectrum or weights, layers; of
            values that are not finite also parameters; of a concatenation, its module; "output" is what the network
            returns.
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


def examples_alike(spp: Recording) -> list[Finding]:
    """Outputs that are the same for every example up to the last block, although they vary (NFNets, section 2)."""
    rows = [spp.stem, *spp.rows] if spp.stem is not None else spp.rows
    alike = list(itertools.takewhile(_alike, reversed(rows)))[::-1]
    if not alike or _class_token(rows[: len(rows) - len(alike)], alike[0]):
        return []
    text = (
        f"the outputs of {alike[0].block} are nearly the same for different examples: their mean cosine is "
        f"{alike[0].cosine:.6f}, and {alike[-1].cosine:.6f} at {alike[-1].block}; the layers before lose the input"
    )
    return [Finding("examples alike", tuple(row.block for row in alike), text)]


def _alike(row: Row) -> bool:
    return row.cosine is not None and row.cosine > ALIKE


def _class_token(before: list[Row], row: Row) -> bool:
    """Whether a token begins here that stands for all places, and has seen no example yet."""
    if not before or not before[-1].shape or before[-1].shape == row.shape:
        return False  # the stem has no shape
    return before[-1].cosine is None or before[-1].cosine < NEARLY_ALIKE


def finite(row: Row) -> bool:
    """Whether all of a block's variances are numbers."""
    return math.isfinite(row.avg_var) and math.isfinite(row.res_avg_var or 0.0)
