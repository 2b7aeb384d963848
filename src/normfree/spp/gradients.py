"""Gradients that vanish or explode along depth.

What is judged is the squared norm of an example's gradient, from block to block. Layers whose weights have variance
1 / fan-in keep it, whatever the shapes (He et al. 2015, section 2.2, backward), and so does a ReLU with He's gain. With
standardized weights, or behind a normalization, the gain that makes up for the activation's mean lets the gradient
grow by ``gamma^2 E[g'^2]`` per layer: ``pi / (pi - 1)`` for a ReLU (Yang et al. 2019, arXiv:1902.08129), 1 for none,
less than that of a ReLU for smooth activations. It never falls (Poincare's inequality). A residual block of a layers
adds its branch's part to the 1 of its shortcut. So the bound of a block is ``1 + 1.47^a``, and of a layer 1.47.
"""

import itertools
import math

from .finding import Finding
from .rows import Recording, Row

PER_LAYER = math.pi / (math.pi - 1)
EXCESS = 10.0  # squared norm over the bound: up to 1.2 in healthy networks, between any two blocks
RISE = 1e12  # squared norm, whatever the depth: up to 3e5 in healthy networks, 8e11 behind 70 layers of BatchNorm
LOSS = 1e-3  # squared norm that is left: from 0.13 in healthy networks, where nothing is pooled
POOLED = 1 / 8  # what a transition may leave: 2x2 average pooling of the shortcut leaves a quarter


def gradient_findings(spp: Recording) -> list[Finding]:
    """Faults of the backward signal, if it was recorded; none where it is 0 from the last layer on."""
    rows = [row for row in [spp.stem, *spp.rows] if row is not None and row.grad_norm is not None]
    if not any(row.grad_norm for row in rows):
        return []  # the last layer starts at 0, as in FixUp
    lost = [row for row in rows if not math.isfinite(row.grad_norm or 0.0)]
    if lost:
        text = f"the gradient of the output of {lost[-1].block} has values that are not finite"
        return [Finding("not finite", tuple(row.block for row in lost[::-1]), text)]
    return _cut_off(rows) or _explosion(rows) or _vanishing(rows)


def _cut_off(rows: list[Row]) -> list[Finding]:
    """No gradient reaches the first blocks."""
    none = list(itertools.takewhile(lambda row: row.grad_norm == 0, rows))
    if not none:
        return []
    last, behind = none[-1], rows[len(none)]
    text = (
        f"no gradient reaches {last.block} and what is before it, while that of {behind.block} has a norm of "
        f"{behind.grad_norm:.3g}; look for detach(), no_grad or integers, and for weights of 0, between the two"
    )
    return [Finding("no gradient", tuple(row.block for row in none[::-1]), text)]


def _explosion(rows: list[Row]) -> list[Finding]:
    """The gradient grows, on the way back, by more than the bound of the layers between."""
    bounds = [_bound(before, row) for before, row in itertools.pairwise(rows)]
    found = _worst(rows, [step / bound for step, bound in zip(_steps(rows), bounds, strict=True)])
    if found is None:
        return []
    first, last, excess = found
    rise, layers = _square(rows[0]) / _square(rows[-1]) if rows[-1].grad_norm else math.inf, _layers(rows[0], rows[-1])
    if excess <= EXCESS and rise <= RISE:
        return []
    if excess <= EXCESS:
        first, last = 0, len(rows) - 1
    a, b = rows[first], rows[last]
    bound = math.prod(bounds[first:last])
    text = (
        f"the norm of the gradient grows {_ratio(a, b):.3g}-fold on the way back from {b.block} to {a.block} "
        f"({b.grad_norm:.3g} to {a.grad_norm:.3g}){_most(rows, first, last, largest=True)}; "
    )
    if excess > EXCESS:
        text += f"theory allows {bound**0.5:.3g} for the {_layers(a, b)} layers between"
    else:
        text += f"that is too much for float32 gradients to add up over {layers} layers; shorten them by shortcuts"
    return [Finding("exploding gradient", (a.block, b.block), text)]


def _vanishing(rows: list[Row]) -> list[Finding]:
    """The gradient is lost on the way back."""
    allowed = [
        POOLED if row.transition or row.stage != before.stage else 1.0 for before, row in itertools.pairwise(rows)
    ]
    steps = [limit / max(step, 1e-300) for step, limit in zip(_steps(rows), allowed, strict=True)]
    found = _worst(rows, steps)
    if found is None or found[2] <= 1 / LOSS:
        return []
    first, last, _ = found
    a, b = rows[first], rows[last]
    text = (
        f"the norm of the gradient falls to {_ratio(a, b):.2g} of what it was on the way back from {b.block} to "
        f"{a.block} ({b.grad_norm:.3g} to {a.grad_norm:.3g}){_most(rows, first, last, largest=False)}; weights of "
        "variance 1 / fan-in, with the gain of the activation, would keep it"
    )
    return [Finding("vanishing gradient", (a.block, b.block), text)]


def _worst(rows: list[Row], steps: list[float]) -> tuple[int, int, float] | None:
    """The stretch of rows whose steps have the largest product: its first and last row, and the product."""
    if not steps:
        return None
    best, start, total = (0, 0, 1.0), 0, 1.0
    for index, step in enumerate(steps):
        if total <= 1.0:
            start, total = index, 1.0
        total *= step
        if total > best[2]:
            best = (start, index + 1, total)
    return best


def _steps(rows: list[Row]) -> list[float]:
    """Squared norm of each row over that of the next one."""
    return [_square(a) / max(_square(b), 1e-300) for a, b in itertools.pairwise(rows)]


def _square(row: Row) -> float:
    return (row.grad_norm or 0.0) ** 2


def _ratio(a: Row, b: Row) -> float:
    return (a.grad_norm or 0.0) / (b.grad_norm or math.inf)


def _layers(a: Row, b: Row) -> int:
    """Layers from one row to another; at least 1."""
    return max((b.depth or 0) - (a.depth or 0), 1)


def _bound(before: Row, row: Row) -> float:
    """By how much the squared norm may grow on the way back through a block."""
    return PER_LAYER ** _layers(before, row) + (row.res_avg_var is not None)


def _kept(before: Row, row: Row) -> float:
    """What may be left of the squared norm behind a block; a token that begins there has a signal of its own."""
    if len(before.shape) == len(row.shape) == 2 and before.shape[0] != row.shape[0] and before.shape[1] == row.shape[1]:
        return 0.0
    return POOLED if row.transition or row.stage != before.stage else 1.0


def _most(rows: list[Row], first: int, last: int, *, largest: bool) -> str:
    """Where most of it happens, if that is one block of several."""
    steps = _steps(rows)[first:last]
    choose = max if largest else min
    index = first + choose(range(len(steps)), key=steps.__getitem__)
    if last - first < 2:
        return ""
    return f", most in {rows[index + 1].block} ({steps[index - first] ** 0.5:.3g})"
