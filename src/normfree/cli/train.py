"""``normfree train``."""

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from ..runs import start
from ..runs.pictures import STRIP
from ..runs.privacy import spent
from ..training import StopRequests, Summary, Trainer, find_checkpoint
from ..training.longer import would_help
from ..training.run import CURVES, FILM, read_metrics
from ..words import counted, tell
from .train_options import SAME, parse


def run(argv: Sequence[str]) -> int:
    """Train by a recipe into a new run folder, or go on with a run."""
    stop = StopRequests()
    with stop.listening(signal.SIGTERM):  # a scheduler's, from the start on; Ctrl-C ends what has not begun to train
        options, overrides = parse(argv)
        done = start.train(
            options.recipe,
            overrides,
            out=options.out,
            init=options.init,
            resume=True if options.resume == SAME else options.resume or False,
            warm_restart=options.warm_restart,
            progress=not options.quiet,
            stop=stop,
        )
        if done.main:
            told = stopped if done.summary.stopped else report
            tell(*told(done.summary, done.folder, done.trainer))
    return 0


def stopped(summary: Summary, folder: Path, trainer: Trainer) -> list[str]:
    """The end of a run that was asked to stop."""
    going_on = f"next: normfree train --resume {shlex.quote(str(folder))}"
    return [f"stopped at step {summary.steps} and saved it", *spent(trainer), going_on]


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
    if remark := trainer.task.score_note(last[key]):
        lines.insert(1, remark)
    if not summary.early and would_help(read_metrics(folder), summary.steps):
        longer = f"more steps would probably help (--train.steps {2 * summary.steps})"
        lines.append(f"the losses were still falling at the end: {longer}")
    lines += spent(trainer)
    if summary.unreadable:
        skipped = "was skipped" if len(summary.unreadable) == 1 else "were skipped"
        lines.append(f"{counted(len(summary.unreadable), 'unreadable image')} {skipped}")
    if summary.early:
        waited = counted(trainer.state.waited, "evaluation")
        lines.append(f"stopped after {waited} that were no better than the best (train.patience)")
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
    if getattr(trainer.task, "predicts", True):
        lines.append(f"      normfree predict {run} {shown}")
    return lines
