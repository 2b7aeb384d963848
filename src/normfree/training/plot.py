"""Curves of a run as a picture."""

from pathlib import Path
from typing import Any

from ..files import whole_file
from .run import CURVES, read_metrics


def plot_curves(folder: str | Path, name: str = "top1") -> Path:
    """Draw loss, the score ``name`` of the evaluations, learning rate and clipped fraction to ``curves.png``.

    >>> folder = normfree.training.new_folder("digits", str(Path(tempfile.mkdtemp()) / "run"))
    >>> run = normfree.training.Run(folder, {})
    >>> for step in (1, 2):
    ...     run.log(kind="train", step=step, loss=2.3 / step, accuracy=0.1 * step, lr=0.1, clipped=0.0)
    >>> plot_curves(folder).name
    'curves.png'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed here only
    from matplotlib.figure import Figure

    lines = read_metrics(folder)
    train = [line for line in lines if line["kind"] == "train"]
    evals = [line for line in lines if line["kind"] == "eval"]
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    (loss, score), (lr, clipped) = figure.subplots(2, 2)
    _curve(loss, train, "loss", "training, smoothed labels")
    _curve(loss, evals, "loss", "test")
    _curve(loss, evals, "ema_loss", "test, averaged weights")
    loss.set(title="loss", yscale="log")
    if name == "top1":
        _curve(score, train, "accuracy", "training, augmented", alpha=0.5)
    _curve(score, evals, name, "test")
    _curve(score, evals, f"ema_{name}", "test, averaged weights")
    score.set(title="top-1 accuracy" if name == "top1" else name, ylim=(None, 1.01) if name == "r2" else (0, 1.01))
    _curve(lr, train, "lr", "learning rate")
    lr.set(title="learning rate")
    _curve(clipped, train, "clipped", "all units")
    clipped.set(title="fraction of units clipped", ylim=(0, None))
    for axes in (loss, score, lr, clipped):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend(frameon=False)
    path = Path(folder) / CURVES
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path


def _curve(axes: Any, lines: list[dict[str, Any]], field: str, label: str, **style: Any) -> None:
    points = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
    if points:
        alone = "o" if len(points) == 1 else None  # a line of one point shows nothing
        axes.plot(*zip(*points, strict=True), label=label, marker=alone, **style)
