"""Scales of axes, their ticks, and numbers as readable text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_DECADES = 6  # of ticks with labels; of more, some are left out
MAX_VALUE = 1e300  # sums and differences of larger ones overflow


@dataclass(frozen=True)
class Scale:
    """Maps the values from ``low`` to ``high`` to 0 .. 1, linearly or logarithmically."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value in 0 .. 1; values outside the scale are clipped to its ends."""
        if self.log:
            low, high, value = (math.log10(v) if v > 0 else -math.inf for v in (self.low, self.high, value))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self, count: int = 4) -> list[float]:
        """About ``count`` round values on the scale."""
        if self.log:
            return _log_ticks(self.low, self.high)
        step = _nice((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_of(
    values: Iterable[float], *, log: bool = False, low: float | None = None, high: float | None = None
) -> Scale:
    """A scale with round ends that covers all finite values; a logarithmic one covers those above 0.

    Args:
        low, high: fix an end of the scale; None chooses it from the values.
    """
    finite = [value for value in values if abs(value) < MAX_VALUE and (value > 1 / MAX_VALUE or not log)]
    if not finite:
        return Scale(0, 1)
    if log:
        bottom, top = min(finite) / 1.15, max(finite) * 1.15
        return Scale(low or bottom, high or top, log=True)
    bottom, top = min(finite) if low is None else low, max(finite) if high is None else high
    rounding = max(1e-12 * max(abs(top), abs(bottom)), 1 / MAX_VALUE)
    if not top - bottom > rounding:  # one value
        around = abs(top) * 0.05 or 0.5
        bottom, top = (bottom if low is not None else bottom - around), (top if high is not None else top + around)
    step = _nice((top - bottom) / 4)
    ends = (step * math.floor(bottom / step + 1e-9), step * math.ceil(top / step - 1e-9))
    return Scale(ends[0] if low is None else low, ends[1] if high is None else high)


def number(value: float | None, digits: int = 4) -> str:
    """A value with ``digits`` significant digits, written as short as possible; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        short = float(f"{value:.{digits}g}")
        return f"{short:,.0f}" if abs(short) >= 10_000 else f"{short:.{max(digits, 4)}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as per cent with ``digits`` decimals; a dash for None."""
    if value is None:
        return "\N{EN DASH}"
    return f"{100 * value:.{digits}f}\N{NARROW NO-BREAK SPACE}%" if math.isfinite(value) else str(value)


def tick(value: float, fraction: bool = False) -> str:
    """The label of an axis at a value; with ``fraction`` as per cent."""
    if fraction:
        return f"{100 * value:.6g}\N{NARROW NO-BREAK SPACE}%"
    return compact(value) if abs(value) >= 10_000 else number(value, 6)


def compact(count: float) -> str:
    """A large number in few characters, such as 12k or 1.5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 10 * size or (abs(count) >= size and size > 1e3):
            return f"{count / size:.4g}{letter}"
    return f"{count:,.6g}"


def duration(seconds: float) -> str:
    """A duration in its two largest units, such as 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def _nice(step: float) -> float:
    """The smallest number of the form 1, 2, 2.5 or 5 times a power of ten that is at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 and math.isfinite(step) else 1.0
    return next((power * factor for factor in (1, 2, 2.5, 5) if power * factor >= step * (1 - 1e-9)), 10 * power)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, every n-th if there are many; if there are few also 2 and 5 times them, or linear ticks."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = [10.0**k for k in range(first, last + 1)]
    if len(decades) > MAX_DECADES:
        return decades[:: math.ceil(len(decades) / MAX_DECADES)]
    if len(decades) >= 3:
        return decades
    between = [factor * 10.0**k for k in range(first - 1, last + 1) for factor in (1, 2, 5)]
    ticks = [value for value in between if low <= value <= high]
    return ticks if len(ticks) >= 2 else Scale(low, high).ticks()
