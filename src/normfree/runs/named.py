"""What a text on the command line names. One grammar for all verbs.

runs/mine                 a run folder
mine.safetensors, a.pth   a file, known by its content
pretrained:NAME           the published weights of a model
pkg.module:factory        what a function returns
NAME                      a model
"""

import enum
import os
from pathlib import Path

from ..errors import UsageError, did_you_mean
from ..models import list_models
from ..models.published import PUBLISHED
from ..weights.file import ENDINGS, EXPORTED, FileKind, file_kind

PREFIX = "pretrained:"
MOST_COMPARED = 1000  # files beside one that is not there


class Kind(enum.StrEnum):
    """What a text names, in words."""

    RUN = "a run folder"
    CHECKPOINT = "a checkpoint of normfree"
    WEIGHTS = "a file of weights"
    EXPORTED = "an exported file"
    PUBLISHED = "published weights"
    FUNCTION = "a function"
    MODEL = "a model's name"


TRAINED = (Kind.RUN, Kind.CHECKPOINT, Kind.WEIGHTS, Kind.PUBLISHED)


def kind_of(text: str) -> Kind:
    """What a text names.

    Raises:
        UsageError: a file that is not there, or of no kind that is known.
    """
    if text.startswith(PREFIX):
        return Kind.PUBLISHED
    if os.path.isdir(text):
        return Kind.RUN
    if ENDINGS.get(Path(text).suffix) in EXPORTED:
        return Kind.EXPORTED  # whose opener says if it is not there
    if os.path.lexists(text):
        kind = file_kind(text)
        if kind in EXPORTED:
            return Kind.EXPORTED
        return Kind.CHECKPOINT if kind is FileKind.CHECKPOINT else Kind.WEIGHTS
    if os.sep in text or Path(text).suffix in ENDINGS:
        raise UsageError(f"{text} does not exist; give a run folder, a file of weights or a model's name")
    return Kind.FUNCTION if ":" in text else Kind.MODEL


def check_choice(text: str, kind: Kind, which: str | None) -> None:
    """--checkpoint is for run folders.

    Raises:
        UsageError: it was given for something else.
    """
    if which is not None and kind is not Kind.RUN:
        raise UsageError(f"--checkpoint chooses among a run folder's files; {text} is no run folder but {kind}")


def other_wanted(text: str, kind: Kind) -> UsageError:
    """The error of a text where a trained network is wanted, with what was probably meant."""
    if kind is Kind.EXPORTED:
        return UsageError(
            f"{text} is an exported file, whose weights are folded; give the run or the checkpoint that it is from "
            "(`normfree predict` and `normfree eval` take exported files)"
        )
    if kind is Kind.FUNCTION:
        return UsageError(f"{text} does not exist; give a run folder, a file of weights or {PREFIX}NAME")
    if text in list_models():
        hint = f"{PREFIX}{text} names its published weights" if text in PUBLISHED else "no weights of it are published"
        return UsageError(f"{text} is a model's name, not a trained network; {hint}")
    known = [*(PREFIX + name for name in PUBLISHED), *sorted(os.listdir())[:MOST_COMPARED]]
    hint = did_you_mean(text, known, f"give a run folder, a file of weights or {PREFIX}NAME")
    return UsageError(f"{text} does not exist; {hint}")
