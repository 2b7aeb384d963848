"""Scores of evaluations: their names on the page, and the best evaluation."""

import math
from collections.abc import Sequence

from .axes import number, percent
from .run_files import Line, value

NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "loss": "loss",
    "accuracy": "accuracy",
    "pixel_accuracy": "pixel accuracy",
    "miou": "mean IoU",
    "mean_iou": "mean IoU",
    "map": "mAP",
    "ap": "AP",
    "ap50": "AP at overlap 0.5",
    "ap75": "AP at overlap 0.75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "mask_ap": "AP of masks",
    "mask_ap50": "AP of masks at overlap 0.5",
    "mask_ap75": "AP of masks at overlap 0.75",
    "mask_ap_small": "AP of small masks",
    "mask_ap_medium": "AP of medium masks",
    "mask_ap_large": "AP of large masks",
    "delta1": "within a factor of 1.25",
    "delta2": "within a factor of 1.25²",
    "delta3": "within a factor of 1.25³",
    "rms": "root of the mean squared error, metres",
    "rel": "mean relative error",
    "r2": "R²",
    "mae": "mean absolute error",
}
FRACTIONS = NAMES.keys() - {"loss", "rms", "rel", "r2", "mae"}
EMA = "ema_"  # in front of a score: measured with averaged weights
_OTHER = ("kind", "step", "epoch", "images")


def label(name: str) -> str:
    """The name of a score on the page."""
    return NAMES.get(name, name.replace("_", " "))


def shown(name: str, found: float | None) -> str:
    """A score's value as text: a fraction as per cent, other numbers with four significant digits."""
    if name in FRACTIONS:
        return percent(found)
    return f"{found:#.4g}" if found is not None and 1e-3 <= abs(found) < 1e3 else number(found)


def score_names(evals: Sequence[Line], first: str) -> list[str]:
    """Names of the scores of raw weights: ``first``, the same of masks, the others, and the loss last."""
    found = {name: None for line in evals for name in line if value(line, name) is not None}
    names = [name for name in found if not name.startswith(EMA) and name not in _OTHER]
    return sorted(names, key=lambda name: (name != first, name != f"mask_{first}", name == "loss"))


def deciding(evals: Sequence[Line], score: str) -> str:
    """Name of the score that chooses the best evaluation: that of averaged weights if it was measured."""
    averaged = EMA + score
    return averaged if any(value(line, averaged) is not None for line in evals) else score


def best_line(evals: Sequence[Line], name: str) -> Line | None:
    """The first evaluation with the largest score."""
    known = [line for line in evals if (found := value(line, name)) is not None and math.isfinite(found)]
    return max(known, key=lambda line: line[name], default=None)
