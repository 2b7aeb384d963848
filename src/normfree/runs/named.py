"""What kind of network a text on the command line names, the same for all commands.

runs/mine                 a run folder
mine.safetensors, a.pth   a file; its content tells which kind
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
MAX_COMPARED = 1000  # files to compare a misspelt name with


class Kind(enum.StrEnum):
    """What a text names; the values are used in messages."""

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
        UsageError: a file that does not exist, or of an unknown kind.
    """
    if text.startswith(PREFIX):
        return Kind.PUBLISHED
    if os.path.isdir(text):
        return Kind.RUN
    if ENDINGS.get(Path(text).suffix) in EXPORTED:
        return Kind.EXPORTED  # opening it says whether it exists
    if os.path.lexists(text):
        kind = file_kind(text)
        if kind in EXPORTED:
            return Kind.EXPORTED
        return Kind.CHECKPOINT if kind is FileKind.CHECKPOINT else Kind.WEIGHTS
    if os.sep in text or Path(text).suffix in ENDINGS:
        raise UsageError(f"{text} does not exist; give a run folder, a file of weights or a model's name")
    return Kind.FUNCTION if ":" in text else Kind.MODEL


def check_choice(text: str, kind: Kind, which: str | None) -> None:
    """Refuse --checkpoint for anything else than a run folder.

    Raises:
        UsageError: it was given for something else.
    """
    if which is not None and kind is not Kind.RUN:
        raise UsageError(f"--checkpoint chooses among a run folder's files; {text} is no run folder but {kind}")


def other_wanted(text: str, kind: Kind) -> UsageError:
    """The error for a text that names no trained network, with what was probably meant."""
    if kind is Kind.EXPORTED:
        return UsageError(
            f"{text} is an exported file, whose weights are folded; give the run or the checkpoint that it is from "
            "(`normfree predict` and `normfree eval` take exported files)"
        )
    if kind is Kind.FUNCTION:
        return UsageError(f"{text} does not exist; give a run folder, a file of weights or {PREFIX}NAME")
    if text in list_models() + list_models(task="segmentation"):
        hint = f"{PREFIX}{text} names its published weights" if text in PUBLISHED else "no weights of it are published"
        return UsageError(f"{text} is a model's name, not a trained network; {hint}")
    candidates = [*(PREFIX + name for name in PUBLISHED), *sorted(os.listdir())[:MAX_COMPARED]]
    hint = did_you_mean(text, candidates, f"give a run folder, a file of weights or {PREFIX}NAME")
    return UsageError(f"{text} does not exist; {hint}")
