"""Curves of a run, and of a learning rate range test, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..files import whole_file
from .lr_range import RangeStep
from .run import CURVES, read_metrics

# wide enough for the labels of any numbers: to measure them, for these and for the titles, takes longer than to draw
MARGINS = dict(left=0.08, right=0.975, bottom=0.08, top=0.95, wspace=0.18, hspace=0.3)


def plot_curves(folder: str | Path, name: str = "top1") -> Path:
    """Draw loss, the score ``name`` of the evaluations, learning rate and clipped fraction to ``curves.png``.

    >>> folder = normfree.training.new_folder("digits", str(Path(tempfile.mkdtemp()) / "run"))
    >>> run = normfree.training.Run(folder, {})
    >>> for step in (1, 2):
    ...     run.log(kind="train", step=step, loss=2.3 / step, accuracy=0.1 * step, lr=0.1, clipped=0.0)
    >>> plot_curves(folder).name
    'curves.png'
    """
    lines = read_metrics(folder)
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    figure = _figure(10, 6.5, layout=None)
    (loss, score), (lr, clipped) = figure.subplots(2, 2, gridspec_kw=MARGINS)
    _curve(loss, train, "loss", "training, smoothed labels")
    _curve(loss, evals, "loss", "test")
    _curve(loss, evals, "ema_loss", "test, averaged weights")
    loss.set_title("loss", y=1)
    loss.set_yscale("log")
    if name == "top1":
        _curve(score, train, "accuracy", "training, augmented", alpha=0.5)
    _curve(score, evals, name, "test")
    _curve(score, evals, f"ema_{name}", "test, averaged weights")
    score.set_title("top-1 accuracy" if name == "top1" else name, y=1)
    score.set_ylim((None, 1.01) if name == "r2" else (0, 1.01))
    _curve(lr, train, "lr", "learning rate")
    lr.set_title("learning rate", y=1)
    _curve(clipped, train, "clipped", "all units")
    clipped.set_title("fraction of units clipped", y=1)
    clipped.set_ylim(0, None)
    for axes in (loss, score, lr, clipped):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(frameon=False)
    return _save(figure, Path(folder) / CURVES)


def plot_range(rows: Sequence[RangeStep], path: str | Path, *, suggested: float | None, own: float) -> Path:
    """Draw loss and clipped fraction of a learning rate range test over the rate.

    Losses far above the first one, where it diverges, are cut off.

    >>> test = normfree.training.lr_range.RangeTest(0.01, 1.0, steps=3)
    >>> for loss in (2.3, 1.8, 2.0):
    ...     test.add(loss, 0.1)
    >>> plot_range(test.rows, Path(tempfile.mkdtemp()) / "find_lr.png", suggested=0.05, own=0.1).name
    'find_lr.png'

    Args:
        suggested: the rate that was found; None: none.
        own: the recipe's.
    """
    figure = _figure(8, 6)
    loss, clipped = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    rates = [row.lr for row in rows]
    loss.plot(rates, [row.loss for row in rows], alpha=0.3, color="C0", label="of each step")
    loss.plot(rates, [row.smoothed for row in rows], color="C0", label="smoothed")
    if rows:
        lowest = min(rows, key=lambda row: row.smoothed)
        loss.plot(lowest.lr, lowest.smoothed, "o", color="C0", label=f"lowest, at {lowest.lr:.2g}")
        least, most = min(row.loss for row in rows), max(row.loss for row in rows[: len(rows) // 10 + 1])
        margin = 0.1 * (most - least) or 0.1
        loss.set_ylim(least - margin, most + 2 * margin)
    fractions = [(row.lr, row.clipped) for row in rows if row.clipped is not None]
    if fractions:
        clipped.plot(*zip(*fractions, strict=True), color="C1")
    loss.set(title="training loss", xscale="log")
    clipped.set(title="fraction of units clipped", ylim=(0, 1), xlabel="learning rate")
    for axes in (loss, clipped):
        if suggested is not None:
            axes.axvline(suggested, color="C2", label=f"suggested, {suggested:.2g}")
        axes.axvline(own, color="0.4", linestyle=":", label=f"the recipe's, {own:.2g}")
        axes.grid(alpha=0.3)
    loss.legend(frameon=False, loc="lower left")
    return _save(figure, Path(path))


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed here only
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def _curve(axes: Any, lines: list[dict[str, Any]], field: str, label: str, **style: Any) -> None:
    points = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
    if points:
        alone = "o" if len(points) == 1 else None  # a line of one point shows nothing
        axes.plot(*zip(*points, strict=True), label=label, marker=alone, **style)
