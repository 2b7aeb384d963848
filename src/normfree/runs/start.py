"""Starting a run, and going on with one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.layouts import with_kind
from ..errors import UsageError
from ..recipes import DEFAULT, Recipe, load_recipe
from ..training import StopRequests, Summary, Trainer, keep_freed_memory, replicas
from .agreement import compare_processes, settings, together
from .initialize import adopt, initialize
from .lock import RunLock
from .pictures import draw_curves, draw_film
from .prepare import on_main, prepare, say
from .resume import resumed_recipe, run_to_go_on_with

FOLDER_RECIPE = "folder"  # what images of one's own are trained with unless a recipe is named
RECIPE_OF: dict[str, str] = dict.fromkeys(("imagefolder", "csv", "wds", "arrays", "synthetic"), FOLDER_RECIPE)
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
) -> Finished:
    """Train by a recipe into a new run folder, or go on with a run: ``normfree train``.

    Args:
        recipe: name or YAML file; None: what fits the images, "digits" if none are named.
        overrides: fields of the recipe by dotted path, such as ``{"data.source": "imagefolder:photos"}``.
        out: the run's folder; None: runs/RECIPE, numbered if it exists.
        init: other weights to start from, see :func:`normfree.runs.initialize`.
        resume: a run folder to go on with; True: the one of ``out``, or start it.
        warm_restart: with a run folder and a new length: the schedule of the learning rate begins again.
        progress: show a bar.
        stop: what notes requests to stop.

    Raises:
        UsageError: something of this cannot be used; nothing was written.
        RunFailed: training failed; the message names the step and the last good checkpoint.

    Example:
        >>> run = normfree.runs.train("digits", {"train.epochs": 2}, out="runs/two")  # doctest: +SKIP
        >>> run.summary.last["top1"]  # doctest: +SKIP
        0.97
    """
    fields, notes = dict(overrides or {}), list[str]()
    out, init = (None if place is None else str(place) for place in (out, init))
    if isinstance(fields.get("data.source"), str):
        fields["data.source"] = with_kind(fields["data.source"])
    keep_freed_memory()
    going_on = None if isinstance(resume, bool) else str(resume)
    if going_on is None:
        if fields.get("task.name") == "regression":  # a recipe for classes smooths their labels
            fields.setdefault("task.label_smoothing", 0.0)
        name = recipe or default_recipe(fields.get("data.source"))
        chosen = load_recipe(name, fields, notes.append)
    else:
        name, chosen = resumed_recipe(going_on, fields)
    with replicas(chosen.train.device) as group, RunLock(say=lambda line: say(group, line)) as lock:
        going = going_on or ("the run of --out" if resume else None)
        alike = {"--resume": going, "--out": out, "--init": init, "--warm-restart": warm_restart}
        compare_processes(group, alike | settings(chosen))
        say(group, *notes)
        folder = None
        if resume is True:
            earlier = on_main(group, lambda: _start_or_go_on(out, chosen, lock))
            folder, chosen = (None, chosen) if earlier is None else (Path(str(out)), earlier)
        elif going_on is not None:
            folder = Path(going_on)
            on_main(group, lambda: lock.take(Path(going_on)))
        if init is not None and folder is None and "model.name" not in fields:
            say(group, *filter(None, [together(group, lambda: adopt(chosen, init, fields))]))
        trainer, folder = prepare(
            chosen,
            Path(name).stem,
            out,
            lock=lock,
            init=None if init is None or folder is not None else partial(initialize, path=init),
            resume=folder,
            warm_restart=warm_restart,
            progress=progress,
            replicas=group,
            stop=stop,
        )
        try:
            summary = trainer.fit()
        finally:
            if group.main:
                draw_film(folder)
        if group.main and not summary.stopped:
            draw_curves(folder, trainer.task.score)
        return Finished(folder, summary, trainer, group.main)


def _start_or_go_on(out: str | None, recipe: Recipe, lock: RunLock) -> Recipe | None:
    """Lock the folder before what is in it is looked at; how to go on with the run there, if there is one."""
    if out is None:
        raise UsageError("--resume without a run needs --out: the run to start or to go on with")
    if Path(out).is_dir():
        lock.take(Path(out))
    return run_to_go_on_with(out, recipe)


def default_recipe(source: object) -> str:
    """The recipe for images of a source, such as "imagefolder:PATH"."""
    kind = source.partition(":")[0] if isinstance(source, str) else ""
    return RECIPE_OF.get(kind, DEFAULT)
