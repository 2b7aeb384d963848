"""Runs as points of the papers' figures: accuracy over multiply-adds, or over the time of a step."""

import statistics
from pathlib import Path

import torch

from ..errors import UsageError
from ..models.complexity import count_macs
from ..recipes import load_recipe
from ..report.published import Point
from ..report.run_files import RECIPE, RunFiles, read_run
from ..tasks import task_of
from .started import read_started

BATCH = 32  # images of a step in NFNets, appendix A.2
TOP1 = ("ema_top1", "top1")


def point_of(folder: str | Path, axis: str) -> Point:
    """A run as a point: its last evaluation, and what an image or a step costs.

    Args:
        folder: of a run of classification.
        axis: "macs": multiply-adds of a test image, in billions; "latency": milliseconds for 32 images of training, the
            median over the logged steps, on the machine of the run.

    Raises:
        UsageError: no run, no evaluation with an accuracy, or no step that was timed.
    """
    run = read_run(folder)
    found = [line[name] for line in run.evals[-1:] for name in TOP1 if name in line]
    if not found:
        raise UsageError(f"run {folder} has no evaluation with top1; the figure shows runs of classification")
    return Point(run.name, _macs(run) if axis == "macs" else _latency(run), 100 * max(found))


def _macs(run: RunFiles) -> float:
    """Of an image at the size of the tests, in billions; the network is built without memory for its weights."""
    recipe = load_recipe(str(run.folder / RECIPE))
    classes = read_started(run.folder).get("images", {}).get("classes") or [str(number) for number in range(1000)]
    task = task_of(recipe)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = task.build_network(recipe, classes)
    task.set_sizes(recipe, model)
    side = recipe.data.test_size or 1
    return count_macs(model, (recipe.data.channels, side, side)) / 1e9


def _latency(run: RunFiles) -> float:
    speeds = [line["images_per_s"] for line in run.train if line.get("images_per_s")]
    if not speeds:
        raise UsageError(f"run {run.folder} has no timed steps in its metrics")
    return 1000 * BATCH / statistics.median(speeds)
