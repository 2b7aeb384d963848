"""Drawing signal propagation plots (NF-ResNets, figures 1, 2 and 6 to 11)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..words import counted
from .rows import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = (
    ("avg_sq_mean", "average channel squared mean"),
    ("avg_var", "average channel variance"),
    ("res_avg_var", "branch's average channel variance"),
)
MORE_PANELS = (  # NF-ResNets, appendix G.2; NFNets, section 2
    ("avg_mean", "mean of all values"),
    ("pixel_norm", "norm over channels, averaged over pixels"),
    ("cosine", "mean cosine between examples"),
)
GRADIENT_PANELS = (  # of record(..., backward=True)
    ("grad_var", "variance of the gradient"),
    ("grad_norm", "norm of the gradient of an example"),
)
TITLES = dict(PANELS + MORE_PANELS + GRADIENT_PANELS)
COLUMNS = tuple(name for name, _ in PANELS)
GRADIENTS = tuple(name for name, _ in GRADIENT_PANELS)
_IN_A_LINE = 3  # panels
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
LOG_RANGE, ZERO = 1e3, 1e-6  # a panel with a curve that spans more is logarithmic; smaller values count as 0


def plot(
    *plots: Recording,
    columns: Sequence[str] | None = None,
    log: bool | None = None,
    theory: bool = True,
    title: str = "",
    labels: Sequence[str] | None = None,
) -> "Figure":
    """A panel over block depth for each column. Dots mark the ends of stages; a dashed line is the expected variance of
    a Normalizer-Free network.

    >>> class Residual(nn.Conv2d):
    ...     def forward(self, x):
    ...         return x + super().forward(x)
    >>> spp = normfree.spp.record(nn.Sequential(Residual(4, 4, 1), Residual(4, 4, 1)), (2, 4, 8, 8))
    >>> figure = plot(spp, title="two blocks at initialization")
    >>> len(figure.axes)
    3
    >>> len(plot(spp, columns=["avg_var", "cosine"]).axes)
    2

    Args:
        plots: recordings, overlaid.
        columns: of ``avg_sq_mean``, ``avg_var``, ``res_avg_var`` (the default: the paper's), ``avg_mean``,
            ``pixel_norm``, ``cosine``, ``grad_var`` (also by default where gradients were recorded), ``grad_norm``; see
            :class:`.Row`.
        log: logarithmic value axes; None: if a network spans more than three decades. Where values are below 0, the
            axis is linear.
        theory: draw ``expected_var`` of Normalizer-Free networks.
        labels: of the networks, instead of their names.

    Returns:
        A figure with an Agg canvas; ``figure.savefig("spp.png")`` writes it.

    Raises:
        UsageError: no recordings; another number of labels than of recordings; an unknown column, one twice, or none.
    """
    if not plots:
        raise UsageError("plot needs at least one recorded network")
    if labels is not None and len(labels) != len(plots):
        raise UsageError(f"labels (={list(labels)}) must be as many as the {counted(len(plots), 'network')}")
    columns = default_columns(plots) if columns is None else columns
    check_columns(columns)
    names = [_plain(name) for name in ([spp.name for spp in plots] if labels is None else labels)]
    figure = _panels(len(columns))
    panels: list[Any] = figure.axes
    for axes, column in zip(panels, columns, strict=True):
        curves = _panel(axes, plots, names, column, theory=theory and column == "avg_var")
        axes.set(xlabel="block depth", title=TITLES[column])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        _scale(axes, curves, log, 0.0 if column in GRADIENTS else ZERO)
        if axes is panels[0]:
            axes.legend(frameon=False, fontsize=9)
        elif any(line.get_linestyle() == "--" for line in axes.lines):
            axes.legend(*_only_theory(axes), frameon=False, fontsize=9)
    if title:
        figure.suptitle(_plain(title))
    return figure


def default_columns(plots: Sequence[Recording]) -> tuple[str, ...]:
    """The paper's three panels, and the gradient where it was recorded."""
    recorded = any(row.grad_var is not None for spp in plots for row in spp.rows)
    return (*COLUMNS, GRADIENTS[0]) if recorded else COLUMNS


def check_columns(columns: Sequence[str]) -> None:
    """Refuse what :func:`plot` cannot draw."""
    for column in columns:
        if column not in TITLES:
            raise UsageError(f"columns: {column!r} must be one of {', '.join(TITLES)}")
    if not columns or len(set(columns)) < len(columns):
        raise UsageError(f"columns (={list(columns)}) must be different ones, at least one")


def _panels(count: int) -> "Figure":
    """An empty figure with so many panels, three in a line where there are more."""
    lines = math.ceil(count / _IN_A_LINE)
    in_a_line = math.ceil(count / lines)
    figure = new_figure(5 * in_a_line, 4.2 * lines)
    for place in range(count):
        figure.add_subplot(lines, in_a_line, place + 1)
    return figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches with an Agg canvas, whatever the user's backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed to draw only
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _plain(text: str) -> str:
    """A text that matplotlib shows literally: no formulas between dollars, no label hidden by its underscore."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _panel(
    axes: Any, plots: Sequence[Recording], names: Sequence[str], field: str, *, theory: bool
) -> list[list[float]]:
    """Draw a statistic of all networks, and its theory; returns the values of each curve."""
    curves: list[list[float]] = []
    for number, (spp, name) in enumerate(zip(plots, names, strict=True)):
        color = COLORS[number % len(COLORS)]
        curves.append(_curve(axes, spp, field, name, color))
        if theory:
            first = not any(line.get_linestyle() == "--" for line in axes.lines)
            curves.append(_expected(axes, spp, color, label=first))
    return curves


def _curve(axes: Any, spp: Recording, field: str, name: str, color: str) -> list[float]:
    values = [math.nan if value is None else value for value in getattr(spp, field)]
    depth = range(1, len(values) + 1)
    axes.plot(depth, values, color=color, label=name, linewidth=1.6, marker="." if len(values) < 40 else "")
    ends = spp.stage_ends
    axes.plot([end + 1 for end in ends], [values[end] for end in ends], "o", color="black", markersize=3.5, zorder=3)
    return [value for value in values if math.isfinite(value)]


def _expected(axes: Any, spp: Recording, color: str, *, label: bool) -> list[float]:
    """The theory of Normalizer-Free networks; for others the expected values are sums of measured ones."""
    values = [
        math.nan if row.expected_res_var is None or row.expected_var is None else row.expected_var for row in spp.rows
    ]
    known = [value for value in values if math.isfinite(value)]
    if known:
        text = "expected by theory" if label else None
        dark = "#" + "".join(f"{int(0.45 * int(color[i : i + 2], 16)):02x}" for i in (1, 3, 5))
        axes.plot(range(1, len(values) + 1), values, "--", color=dark, linewidth=1, zorder=4, label=text)  # on top
    return known


def _only_theory(axes: Any) -> tuple[list[Any], list[str]]:
    lines = [line for line in axes.lines if line.get_label() == "expected by theory"]
    return lines, [line.get_label() for line in lines]


def _scale(axes: Any, curves: list[list[float]], log: bool | None, zero: float) -> None:
    """Limits and kind of an axis; ``zero``: up to this, values count as 0."""
    values = [value for curve in curves for value in curve]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low < -zero:  # a mean or a cosine
        axes.set_ylim(bottom=1.08 * low, top=max(1.08 * high, 0.0))
        return
    if log is None:
        positive = [[value for value in curve if value > zero] for curve in curves]
        log = any(max(curve) > LOG_RANGE * min(curve) for curve in positive if curve)
    if log and any(value > 0 for value in values):
        axes.set_yscale("log")
    elif values:
        axes.set_ylim(bottom=0, top=1.08 * high if high > zero else 1)
