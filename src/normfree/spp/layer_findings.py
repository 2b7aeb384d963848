"""Faults of single layers: maps that drown in a concatenation, and standardized weights of a wrong scale."""

import math
import statistics
from collections.abc import Sequence

from ..words import counted
from .concatenation import Concatenation
from .finding import Finding
from .weight_scale import ComputedWeight

DROWNED = 0.01  # variance over the largest one's: from 0.088 in healthy networks
SCALE = 32.0  # variance times fan-in, up or down: gamma^2 is 2.9 for a ReLU, 23 for a sigmoid; alpha^2 is 0.04
FOLLOWS, MULTIPLIES = 0.5, 1.5  # exponents: eps is as large as the variance; between 1 and 2
WEAKENED = 0.5  # variance times fan-in where eps is several times the variance; gamma^2 is at least 1


def drowned_findings(concatenations: Sequence[Concatenation]) -> list[Finding]:
    """Concatenations of which one map drowns beside the largest; a map of zeros is padding."""
    findings = []
    for number, one in enumerate(concatenations):
        alive = [v for v in one.variances if v > 0]
        if one.normalized or len(alive) < 2 or min(alive) >= DROWNED * max(alive):
            continue
        place, largest = one.variances.index(min(alive)), one.variances.index(max(alive))
        usual = statistics.median(alive)
        odd = "drowns beside" if usual > 10 * min(alive) or len(alive) == 2 else "is as small as others beside"
        text = (
            f"{_name(concatenations, number)} joins maps of variance "
            f"{', '.join(f'{v:.3g}' for v in one.variances[:4])}{' and more' if len(one.variances) > 4 else ''}: "
            f"map {place + 1} ({counted(one.channels[place], 'channel')}) {odd} map {largest + 1} and is "
            f"{one.shares[place]:.1g} of what the next layer sees; scale them to one variance "
            "(normfree.nn.ScaledConcat), or normalize each channel behind"
        )
        findings.append(Finding("drowned map", (one.module,), text))
    return findings


def _name(concatenations: Sequence[Concatenation], number: int) -> str:
    """The module, and which of its concatenations it is where it has several."""
    module = concatenations[number].module
    own = [i for i, one in enumerate(concatenations) if one.module == module]
    return module if len(own) == 1 else f"{module} (concatenation {own.index(number) + 1} of {len(own)})"


def weight_findings(weights: Sequence[ComputedWeight]) -> list[Finding]:
    """Weight standardizations of a wrong scale, and those whose epsilon is larger than the variance."""
    judged = [one for one in weights if not one.normalized]
    causes: dict[tuple[str, str], list[ComputedWeight]] = {}
    for one in judged:
        cause = _cause(one)
        if cause is not None:
            causes.setdefault(cause, []).append(one)
    return [_finding(kind, cause, found) for (kind, cause), found in causes.items()]


def _finding(kind: str, cause: str, found: list[ComputedWeight]) -> Finding:
    worst = max(found, key=lambda one: abs(math.log(one.scale)))
    more = f" and {counted(len(found) - 1, 'more layer')}" if len(found) > 1 else ""
    text = (
        f"the standardized weight of {worst.layer}{more} has a variance of {worst.scale:.3g} / fan-in (which is "
        f"{worst.fan_in}), besides its gain, where gamma^2 / fan-in was due: {cause}"
    )
    return Finding(kind, (worst.layer, *(one.layer for one in found if one is not worst)), text)


def _cause(one: ComputedWeight) -> tuple[str, str] | None:
    """Kind of the finding and likely reason; None: as it should be."""
    follows = one.exponent or 0.0
    if follows > MULTIPLIES:
        return "weight scale", "it grows with the parameters' variance; divide by the standard deviation"
    if follows > FOLLOWS and one.scale < WEAKENED:
        return "epsilon", "eps is much larger than the variance of the parameters; add a smaller one, such as 1e-6"
    if 1 / SCALE <= one.scale <= SCALE:
        return None
    log, unit = math.log(one.scale), math.log(one.fan_in)
    names = {
        1: "the division by the root of the fan-in is missing",
        2: "it is multiplied with the root of the fan-in instead of divided by it",
        -1: "it is divided by the root of the fan-in twice",
    }
    power = min(names, key=lambda power: abs(log - power * unit))
    if abs(log - power * unit) < math.log(SCALE):
        return "weight scale", names[power]
    return "weight scale", "a constant factor is wrong"
