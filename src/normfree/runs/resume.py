"""Going on with a run: which run, and what may change on the way."""

import dataclasses
import shutil
from pathlib import Path

from ..errors import UsageError
from ..recipes import Recipe, field_paths, load_recipe
from ..training.run import CHECKPOINTS, METRICS

# what may change when a run goes on: where and how it is computed, not what
CHANGEABLE = {"data.source", "data.workers", "data.max_unreadable"} | {
    f"train.{name}"
    for name in (
        "device",
        "threads",
        "micro_batch",
        "activation_checkpointing",
        "recompute_weights",
        "compile",
        "log_every",
        "save_every",
        "keep_every",
        "skip_nonfinite",
        "tensorboard",
        "channels_last",
    )
}


def run_to_go_on_with(out: str | None, recipe: Recipe) -> str | None:
    """``out`` if there is a run with a checkpoint; what a run left that was killed before its first one is removed.

    Raises:
        UsageError: no ``out``, or the run there is by another recipe.
    """
    if out is None:
        raise UsageError("--resume without a run needs --out: the run to start or to go on with")
    folder, written = Path(out), Path(out) / "recipe.yaml"
    saved = [p for p in (folder / CHECKPOINTS).glob("step-*") if p.name.removeprefix("step-").isdigit()]
    if not saved:
        metrics = folder / METRICS
        if metrics.is_file() and not metrics.stat().st_size:  # a run that was killed before its first checkpoint
            for left in (folder / "examples", folder / CHECKPOINTS):
                shutil.rmtree(left, ignore_errors=True)
            written.unlink(missing_ok=True)
            metrics.unlink()
        return None
    ours, theirs = (dataclasses.asdict(r) for r in (recipe, load_recipe(str(written), {})))
    for path in field_paths():
        section, field = path.split(".")
        a, b = ours[section][field], theirs[section][field]
        # what was null or "auto" has been filled in since
        if path not in CHANGEABLE and a not in (None, "auto") and a != b:
            raise UsageError(f"--out {out} is a run with {path} (={b!r}), not {a!r}; name a new folder, or the same")
    return out


def resumed_recipe(run: str, overrides: dict[str, object]) -> tuple[str, Recipe]:
    """Name and recipe of a run that is to go on, with what may change on the way.

    Raises:
        UsageError: no run folder, or an option that would make it another run.
    """
    other = sorted(overrides.keys() - CHANGEABLE)
    if other:
        raise UsageError(f"--{other[0]} would make it another run; --resume takes {', '.join(sorted(CHANGEABLE))}")
    path = Path(run) / "recipe.yaml"
    if not path.is_file():
        raise UsageError(f"--resume {run} is no run folder: it has no recipe.yaml")
    return Path(run).resolve().name, load_recipe(str(path), overrides)
