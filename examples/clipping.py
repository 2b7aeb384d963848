"""The same recipe with and without Adaptive Gradient Clipping: a table and docs/clipping.png.

    python examples/clipping.py [--seeds 3] [--lr 0.25]

Trains the default recipe (scikit-learn's digits) for each seed with its clipping and with none; about five minutes on
two CPU cores. With another learning rate than the recipe's, only the table.
"""

import argparse
import tempfile
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from normfree import RunFailed, runs
from normfree.recipes import load_recipe
from normfree.training import read_metrics

PICTURE = Path(__file__).parent.parent / "docs" / "clipping.png"


def train(seed: int, lr: float, clipping: float | None, folder: Path) -> list[dict]:
    """Metrics of one run; a run that diverges keeps the metrics it has."""
    fields = {"train.seed": seed, "optim.lr": lr, "optim.clipping": clipping}
    try:
        summary = runs.train("digits", fields, out=str(folder)).summary
        end = f"{summary.last['ema_top1']:.2%} averaged weights, {summary.last['top1']:.2%} raw"
        print(f"lr {lr:g}, clipping {clipping}, seed {seed}: {end}, {summary.train_seconds:.1f} s of training")
    except RunFailed as error:
        print(f"lr {lr:g}, clipping {clipping}, seed {seed}: {error}")
    return read_metrics(folder)


def draw(runs: dict[float | None, list[list[dict]]]) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (clipping, group), colour in zip(runs.items(), ("tab:blue", "tab:red"), strict=True):
        label = "no clipping" if clipping is None else f"clipping {clipping:g}"
        for i, lines in enumerate(group):
            style = dict(color=colour, alpha=0.8, label=label if i == 0 else None)
            loss = [(line["epoch"], line["loss"]) for line in lines if line["kind"] == "train"]
            score = [(line["epoch"], line["top1"]) for line in lines if line["kind"] == "eval"]
            left.plot(*zip(*loss, strict=True), **style)
            right.plot(*zip(*score, strict=True), **style)
    left.set(title="training loss", xlabel="epoch")
    right.set(title="test accuracy", xlabel="epoch", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="center right")
    figure.savefig(PICTURE, dpi=130)
    print(PICTURE)


def main() -> None:
    default = load_recipe("digits").optim
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=default.lr)
    options = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        for clipping in (default.clipping, None):
            places = [(seed, Path(folder) / f"{clipping}-{seed}") for seed in range(options.seeds)]
            runs[clipping] = [train(seed, options.lr, clipping, place) for seed, place in places]
    if options.lr == default.lr:
        draw(runs)


if __name__ == "__main__":
    main()
