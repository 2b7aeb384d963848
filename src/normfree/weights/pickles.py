"""Pickles of others: looked through before anything is built, and no name in them stands for something that runs."""

import pickle
import pickletools
from typing import Any

from ..errors import UsageError

_MOST_NESTING, _MOST_NAMES = 50, 1000  # a ResNet-600 with running statistics takes 10; of classes in one file
_REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_ADDERS = {"SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS"}


class Placeholder:
    """Stands for an object of a class that a pickle names: nothing of that class is imported, and the state is dropped.

    Attributes:
        stands_for: the name in the pickle.
    """

    stands_for = ""
    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return self

    def append(self, item: Any) -> None:
        pass

    extend = add = append


class Placeholders(dict[str, type[Placeholder]]):
    """A class per name, made when it is asked for."""

    def __missing__(self, name: str) -> type[Placeholder]:
        if len(self) >= _MOST_NAMES:
            raise pickle.UnpicklingError(f"it names more than {_MOST_NAMES} classes")
        made = type("Placeholder", (Placeholder,), dict(stands_for=name[:100], __slots__=()))
        return self.setdefault(name, made)


def check_opcodes(file: Any, most: int, *, persistent: bool = False) -> None:
    """Refuse, before anything is built, what could exhaust the stack or the memory of the unpickler itself.

    Args:
        file: read from where it is to the end of the pickle; or the bytes of one.
        most: opcodes.
        persistent: allow references to objects outside of the pickle, as ``torch.save`` writes them.

    Raises:
        pickle.UnpicklingError: the reason.
    """
    refused = _REFUSED - {"PERSID", "BINPERSID"} if persistent else _REFUSED
    stack: list[int | None] = []  # nesting of each object; None is a mark
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name in refused:
            raise pickle.UnpicklingError(f"it has opcode {name}, which files of weights have no use for")
        if count > most:
            raise pickle.UnpicklingError(f"it has more than {most} opcodes")
        if name == "MARK":
            stack.append(None)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            index = len(memo) if name == "MEMOIZE" else argument
            if index > count:
                raise pickle.UnpicklingError(f"it memoizes at {index}, beyond the objects that it has")
            memo[index] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "POP_MARK":
            _pop_to_mark(stack)
        else:
            taken = _pop_to_mark(stack) if pickletools.markobject in opcode.stack_before else []
            plain = [kind for kind in opcode.stack_before if kind.name not in ("mark", "stackslice")]
            taken = [stack.pop() for _ in plain] + taken
            inner = max(taken[1:] if name in _ADDERS else taken, default=-1) + 1
            if name in _ADDERS:
                inner = max(inner, taken[0])
            if inner > _MOST_NESTING:
                raise pickle.UnpicklingError(f"its objects are nested deeper than {_MOST_NESTING}")
            stack.extend(inner for _ in opcode.stack_after)


def _pop_to_mark(stack: list[int | None]) -> list[int]:
    """What lies above the topmost mark; mark and all are taken off."""
    taken = []
    while (item := stack.pop()) is not None:
        taken.append(item)
    return taken


def one_line(error: BaseException) -> str:
    """What an error says, in one printable line of bounded length."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_names(content: dict[str, Any], path: Any) -> dict[str, Any]:
    """The same, if its names can be shown: printable text of at most 200 characters; UsageError otherwise."""
    for name in content:
        if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
            raise UsageError(f"{path}: {name!r:.60} is no name of a tensor")
    return content
