"""Whether a run would have become better with more steps, judged from its curves."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MIN_EVALUATIONS = 6
FELL, ROSE = 0.97, 1.02  # a loss that counts as falling over the last third of a run; one above its lowest value


def would_help(lines: Sequence[Mapping[str, Any]], steps: int) -> bool | None:
    """Whether more steps would probably help: the loss on held-out images and that of training fell to the end.

    A held-out loss that has risen from its lowest value says that the network learns the training images by heart; then
    more steps do not help. Both losses fall as the learning rate does, also in a run that is long enough, so only a
    fall of several percent in the last third counts.

    Args:
        lines: of a run's metrics.jsonl.
        steps: of the run.

    Returns:
        None if there are too few evaluations to tell, or they have no loss.

    Example:
        >>> lines = [dict(kind=kind, step=s, loss=1 / s) for s in range(1, 13) for kind in ("train", "eval")]
        >>> would_help(lines, 12)
        True
        >>> lines += [dict(kind="eval", step=s, loss=0.1 * s) for s in range(13, 25)]
        >>> would_help(lines, 24)
        False
    """
    evaluated = [line for line in lines if line.get("kind") == "eval"]
    name = "ema_loss" if evaluated and "ema_loss" in evaluated[-1] else "loss"
    tested, trained = _losses(evaluated, name), _losses([line for line in lines if line.get("kind") == "train"], "loss")
    if len(tested) < MIN_EVALUATIONS or len(trained) < MIN_EVALUATIONS:
        return None
    last = tested[-1][1]
    if last > ROSE * min(loss for _, loss in tested):
        return False
    return all(_fell(losses, steps) for losses in (tested, trained))


def _losses(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if isinstance(line.get(name), float | int)]


def _fell(losses: Sequence[tuple[int, float]], steps: int) -> bool:
    """Whether the last losses are lower than those around two thirds of the run."""
    before = [loss for step, loss in losses if 0.5 * steps <= step <= 0.75 * steps]
    after = [loss for step, loss in losses if step > 0.9 * steps]
    return bool(before and after) and statistics.median(after) < FELL * statistics.median(before)
