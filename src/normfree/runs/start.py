"""Starting and resuming runs of training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.layouts import with_kind
from ..data.volumes import MADE
from ..errors import UsageError
from ..recipes import DEFAULT, Recipe, check_import, load_recipe
from ..training import Replicas, StopRequests, Summary, Trainer, keep_freed_memory, replicas
from .agreement import compare_processes, on_all, settings
from .initialize import adopt, build_initialized
from .lock import RunLock
from .pictures import draw_curves, draw_film
from .prepare import on_main, prepare, say
from .resume import resumed_recipe, run_to_go_on_with

FOLDER_RECIPE = "folder"  # the recipe for the user's own images
_CLASSES = ("imagefolder", "csv", "wds", "arrays", "torchvision", "hf", "synthetic")
RECIPE_OF: dict[str, str] = dict.fromkeys(_CLASSES, FOLDER_RECIPE)
RECIPE_OF |= dict.fromkeys(("scenes", "masks", "voc"), "demo_segmentation")
RECIPE_OF |= dict.fromkeys(("depth", "nyu"), "demo_depth") | dict(coco="demo_detection")


@dataclass(frozen=True)
class Finished:
    """The end of a run: its folder, what was measured, and the trainer with the network.

    Attributes:
        main: whether this is the run's only process, or the one that writes.
    """

    folder: Path
    summary: Summary
    trainer: Trainer
    main: bool = True


def train(
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    init: str | Path | None = None,
    resume: str | Path | bool = False,
    warm_restart: bool = False,
    progress: bool = True,
    stop: StopRequests | None = None,
    on_evaluation: Callable[[Mapping[str, float], float], None] = lambda metrics, part: None,
) -> Finished:
    """Train by a recipe into a new run folder, or resume a run: ``normfree train``.

    Args:
        recipe: name or YAML file; None chooses one for the images, "digits" without ``data.source``.
        overrides: fields of the recipe by dotted path, such as ``{"data.source": "imagefolder:photos"}``.
        out: the run's folder; None: runs/RECIPE, numbered if it exists.
        init: weights to start from, see :func:`normfree.runs.initialize`.
        resume: a run folder to resume; True: resume the run in ``out``, or start it.
        warm_restart: start the learning rate schedule again; for a run folder to resume with a new length.
        progress: show a progress bar.
        stop: requests to stop.
        on_evaluation: called after each evaluation with its metrics and the part of the steps that is done.

    Raises:
        UsageError: an argument cannot be used; nothing was written.
        RunFailed: training failed; the message names the step and the last good checkpoint.

    Example:
        >>> run = normfree.runs.train("digits", {"train.epochs": 2}, out="runs/two")  # doctest: +SKIP
        >>> run.summary.last["top1"]  # doctest: +SKIP
        0.97
    """
    out, init = (None if path is None else str(path) for path in (out, init))
    overrides = dict(overrides or {})
    keep_freed_memory()
    name, chosen, notes = chosen_recipe(recipe, overrides, resume)
    with replicas(chosen.train.device) as group, RunLock(say=lambda line: say(group, line)) as lock:
        resumed = ("the run of --out" if resume else None) if isinstance(resume, bool) else str(resume)
        same = {"--resume": resumed, "--out": out, "--init": init, "--warm-restart": warm_restart}
        compare_processes(group, same | settings(chosen))
        say(group, *notes)
        folder, chosen = _folder_to_resume(resume, out, chosen, lock, group)
        if init is not None and folder is None and "model.name" not in overrides:
            say(group, *filter(None, [on_all(group, lambda: adopt(chosen, init, overrides))]))
        fill = None if init is None or folder is not None else partial(build_initialized, path=init)
        how = dict[str, Any](warm_restart=warm_restart, progress=progress, replicas=group, stop=stop)
        how["on_evaluation"] = on_evaluation
        return _fit(*prepare(chosen, Path(name).stem, out, lock=lock, init=fill, resume=folder, **how))


def chosen_recipe(
    recipe: str | None, overrides: dict[str, Any], resume: str | Path | bool = False
) -> tuple[str, Recipe, list[str]]:
    """Name and content of the recipe, and messages for the user; ``overrides`` are completed."""
    notes = list[str]()
    if isinstance(overrides.get("data.source"), str):
        overrides["data.source"] = with_kind(overrides["data.source"])
    if not isinstance(resume, bool):
        return *resumed_recipe(str(resume), overrides), notes
    if overrides.get("task.name") == "regression":  # a recipe for classes smooths their labels
        overrides.setdefault("task.label_smoothing", 0.0)
    name = recipe or default_recipe(overrides.get("data.source"))
    chosen = load_recipe(name, overrides, notes.append)
    check_import(chosen.optim.name, overrides, f"recipe {name}")
    return name, chosen, notes


def _folder_to_resume(
    resume: str | Path | bool, out: str | None, recipe: Recipe, lock: RunLock, group: Replicas
) -> tuple[Path | None, Recipe]:
    """Lock the folder of the run to resume, and the recipe to resume it with; None to start a new run."""
    if not isinstance(resume, bool):
        on_main(group, lambda: lock.take(Path(resume)))
        return Path(resume), recipe
    earlier = on_main(group, lambda: _recipe_of_out(out, recipe, lock)) if resume else None
    return (None, recipe) if earlier is None else (Path(str(out)), earlier)


def _recipe_of_out(out: str | None, recipe: Recipe, lock: RunLock) -> Recipe | None:
    """Lock the folder before its content is read; the recipe to resume the run in it with, if there is a run."""
    if out is None:
        raise UsageError("--resume without a run needs --out: the run to start or to go on with")
    if Path(out).is_dir():
        lock.take(Path(out))
    return run_to_go_on_with(out, recipe)


def _fit(trainer: Trainer, folder: Path) -> Finished:
    """Train, and draw the pictures of the run."""
    main = trainer.replicas.main
    try:
        summary = trainer.fit()
    finally:
        if main:
            draw_film(folder)
    if main and not summary.stopped:
        draw_curves(folder, trainer.task.score)
    return Finished(folder, summary, trainer, main)


def default_recipe(source: object) -> str:
    """The recipe for a source of images, such as "imagefolder:PATH"."""
    kind, _, rest = source.partition(":") if isinstance(source, str) else ("", "", "")
    if kind == "volumes":
        return "demo_volumes" if MADE.fullmatch(rest) else "volumes"
    return RECIPE_OF.get(kind, DEFAULT)
