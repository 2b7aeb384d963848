"""What a conversion did at one place, and what it could not do."""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..errors import UsageError
from ..words import counted


@dataclass
class Change:
    """One replacement.

    Attributes:
        module: dotted name of what was replaced, or of what was added.
        was, now: classes, or a few words.
        why: in a few words; of a constant, what it stands for.
        factor: the constant that the place got; None: none.
        source: of the constant: "theory", "measured" or "given"; "": there is none.
    """

    module: str
    was: str
    now: str
    why: str
    factor: float | None = None
    source: str = ""

    def __str__(self) -> str:
        factor = "" if self.factor is None else f" ({self.factor:.4g}, {self.source})"
        return f"{self.module}: {self.was} -> {self.now}{factor}: {self.why}"


@dataclass(frozen=True)
class Refusal:
    """A place that is not understood, and why."""

    module: str
    why: str

    def __str__(self) -> str:
        return f"{self.module}: {self.why}"


def refuse(refusals: list[Refusal], network: str) -> None:
    """Raise one line about all of them, if there are any; the first one in words."""
    if not refusals:
        return
    first, rest = refusals[0], {r.module for r in refusals[1:]} - {refusals[0].module}
    more = f", and {counted(len(rest), 'more module')}" if rest else ""
    raise UsageError(f"{network} is not converted: {first}{more}; leave=[{first.module!r}] leaves a module as it is")


def put(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a module under every name that it has."""
    old = model.get_submodule(name)
    for other in [key for key, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(other, new)


def is_left(name: str, leave: Collection[str]) -> bool:
    """Whether a module, or one that contains it, is named by ``leave``: names, or patterns such as ``"*.attn"``."""
    parts = name.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(prefix == one or fnmatchcase(prefix, one) for prefix in prefixes for one in leave)
