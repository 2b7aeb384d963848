"""``normfree train``."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ..errors import RunFailed, UsageError
from ..files import whole_file
from ..recipes import DEFAULT, Recipe, load_recipe
from ..runs import RunLock, prepare, resumed_recipe, run_to_go_on_with
from ..runs.agreement import compare_processes, settings, together
from ..runs.prepare import on_main, say
from ..spp import plot_film, read_film
from ..training import (
    StopRequests,
    Summary,
    Trainer,
    find_checkpoint,
    keep_freed_memory,
    plot_curves,
    replicas,
)
from ..training.run import CURVES, FILM
from ..words import counted, tell
from .initialize import adopt, initialize
from .train_options import FOLDER_RECIPE, SAME, parse

ALIKE = ("resume", "out", "init", "warm_restart")  # options that all processes of a run have alike
STRIP = "spp.png"  # the picture of the recorded signals
RECIPE_OF = dict.fromkeys(("imagefolder", "csv", "wds", "synthetic"), FOLDER_RECIPE)
RECIPE_OF |= dict.fromkeys(("scenes", "masks", "voc"), "demo_segmentation")
RECIPE_OF |= dict.fromkeys(("depth", "nyu"), "demo_depth") | dict(coco="demo_detection")


def run(argv: Sequence[str]) -> int:
    """Train by a recipe into a new run folder, or go on with a run."""
    stop = StopRequests()
    with stop.listening(signal.SIGTERM):  # a scheduler's, from the start on; Ctrl-C ends what has not begun to train
        return _run(argv, stop)


def _run(argv: Sequence[str], stop: StopRequests) -> int:
    options, overrides = parse(argv)
    keep_freed_memory()
    told: list[str] = []
    if options.resume in (None, SAME):
        if overrides.get("task.name") == "regression":  # a recipe for classes smooths their labels
            overrides.setdefault("task.label_smoothing", 0.0)
        name = options.recipe or _default_recipe(overrides.get("data.source"))
        recipe = load_recipe(name, overrides, told.append)
    else:
        name, recipe = resumed_recipe(options.resume, overrides)
    with replicas(recipe.train.device) as group, RunLock(say=lambda line: say(group, line)) as lock:
        choices = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ALIKE}
        compare_processes(group, choices | settings(recipe))
        say(group, *told)
        folder = None
        if options.resume == SAME:
            earlier = on_main(group, lambda: _start_or_go_on(options.out, recipe, lock))
            folder, recipe = (None, recipe) if earlier is None else (Path(options.out), earlier)
        elif options.resume is not None:
            folder = Path(options.resume)
            on_main(group, lambda: lock.take(folder))
        if options.init is not None and folder is None and "model.name" not in overrides:
            say(group, *filter(None, [together(group, lambda: adopt(recipe, options.init, overrides))]))
        trainer, folder = prepare(
            recipe,
            Path(name).stem,
            options.out,
            lock=lock,
            init=None if options.init is None or folder is not None else partial(initialize, path=options.init),
            resume=folder,
            warm_restart=options.warm_restart,
            progress=not options.quiet,
            replicas=group,
            stop=stop,
        )
        try:
            summary = trainer.fit()
        finally:
            if group.main:
                draw_film(folder)
        if group.main:
            tell(*(stopped(summary, folder) if summary.stopped else report(summary, folder, trainer)))
    return 0


def _start_or_go_on(out: str | None, recipe: Recipe, lock: RunLock) -> Recipe | None:
    """Lock the folder before what is in it is looked at; how to go on with the run there, if there is one."""
    if out is None:
        raise UsageError("--resume without a run needs --out: the run to start or to go on with")
    if Path(out).is_dir():
        lock.take(Path(out))
    return run_to_go_on_with(out, recipe)


def stopped(summary: Summary, folder: Path) -> list[str]:
    """The end of a run that was asked to stop."""
    going_on = f"next: normfree train --resume {shlex.quote(str(folder))}"
    return [f"stopped at step {summary.steps} and saved it", going_on]


def draw_film(folder: Path) -> None:
    """The film strip of a run, as far as it got; none where nothing was recorded, or a full disk cut the film off."""
    with _drawing(folder / STRIP), contextlib.suppress(UsageError):
        strip = plot_film(read_film(folder / FILM))
        with whole_file(folder / STRIP) as part:
            strip.savefig(part, format="png")


@contextlib.contextmanager
def _drawing(picture: Path) -> Iterator[None]:
    """A picture is drawn: what goes wrong is a warning, whatever it is, and hides neither a run nor why it ended."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, RunFailed | UsageError) else f"{type(error).__name__}: {error}"
        tell(f"warning: {picture} is not drawn: {' '.join(reason.split())}", file=sys.stderr)


def report(summary: Summary, folder: Path, trainer: Trainer) -> list[str]:
    """The end of a run in a few lines."""
    last, score, form = summary.last, trainer.task.score, trainer.task.score_format
    averaged = f"ema_{score}" in last
    key = f"ema_{score}" if averaged else score
    lines = [
        f"{trainer.task.score_label} {last[key]:{form}}"
        + (f" with averaged weights ({last[score]:{form}} without)" if averaged else "")
        + f", best {summary.best[key]:{form}} at epoch {summary.best['epoch']:g}",
        f"{counted(summary.steps, 'step')} in {summary.train_seconds:.1f} s ({summary.seconds:.1f} s with evaluations)",
    ]
    if remark := trainer.task.remark(last[key]):
        lines.insert(1, remark)
    if summary.unreadable:
        skipped = "was skipped" if len(summary.unreadable) == 1 else "were skipped"
        lines.append(f"{counted(len(summary.unreadable), 'unreadable image')} {skipped}")
    if summary.early:
        waited = counted(trainer.at.waited, "evaluation")
        lines.append(f"stopped after {waited} that were no better than the best (train.patience)")
    with _drawing(folder / CURVES):
        plot_curves(folder, score)
    saved = trainer.run.checkpoints.folder
    links = [name for name in ("last", "best") if (saved / name).exists()] or [find_checkpoint(saved)[0].name]
    weights = ", ".join(f"{saved.name}/{name}" for name in links)
    places = dict(recipe="recipe.yaml", metrics="metrics.jsonl", curves=CURVES, weights=weights)
    if not (folder / CURVES).is_file():
        del places["curves"]
    if (folder / STRIP).is_file():
        places["signal"] = f"{STRIP}, {FILM}"
    lines += [
        f"  {what:8} {', '.join(str(folder / part) for part in where.split(', '))}" for what, where in places.items()
    ]
    examples = folder / "examples"
    run = shlex.quote(str(folder))
    lines += [f"next: normfree eval {run}", f"      normfree report {run}"]
    shown = shlex.quote(str(examples)) if examples.is_dir() else "IMAGE_OR_FOLDER ..."
    lines.append(f"      normfree predict {run} {shown}")
    return lines


def _default_recipe(source: object) -> str:
    kind = source.partition(":")[0] if isinstance(source, str) else ""
    return RECIPE_OF.get(kind, DEFAULT)
