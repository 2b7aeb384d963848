"""Pickles of others: looked through before anything is built, and no name in them stands for something that runs."""

import pickle
import pickletools
from typing import Any

from ..errors import UsageError
from ..limits import MAX_AXES

_MAX_NESTING, _MAX_CLASSES = 50, 1000  # a ResNet-600 with running statistics takes 10; of classes in one file
_MAX_NAME_LENGTH = 1000  # of a class, with its module
_MAX_HASHED_PARTS = 10_000  # parts of all keys and members of sets that are not plain; files of weights have none
_CHOSEN_HASHES_FROM = 2**60  # beyond, numbers can be chosen such that Python looks each up among all others
_INFINITE = 2**60  # as good as infinite
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
        if len(self) >= _MAX_CLASSES:
            raise pickle.UnpicklingError(f"it names more than {_MAX_CLASSES} classes")
        made = type("Placeholder", (Placeholder,), dict(stands_for=name[:100], __slots__=()))
        return self.setdefault(name, made)


# by opcode: how many objects it takes from the top, whether also all above a mark, how many it leaves
_SHAPES = {
    opcode.name: (
        sum(kind.name not in ("mark", "stackslice") for kind in opcode.stack_before),
        pickletools.markobject in opcode.stack_before,
        len(opcode.stack_after),
    )
    for opcode in pickletools.opcodes
}
_PLAIN, _LARGE_NUMBER = (0, 1), (0, 2)  # nesting and size
Seen = tuple[int, int]


def check_opcodes(file: Any, most: int, *, persistent: bool = False) -> None:
    """Refuse, before anything is built, what could exhaust the stack, the memory or the time of the unpickler itself.

    A tuple that holds a tuple twice, which holds another one twice, and so on, is a few bytes in a file, and to hash
    it takes for ever. So keys and members of sets are measured as they are hashed: each part where it is used.

    Args:
        file: read from where it is to the end of the pickle; or the bytes of one.
        most: opcodes.
        persistent: allow references to objects outside of the pickle, as ``torch.save`` writes them.

    Raises:
        pickle.UnpicklingError: the reason.
    """
    refused = _REFUSED - {"PERSID", "BINPERSID"} if persistent else _REFUSED
    stack: list[Seen | None] = []  # None is a mark
    memo: dict[int, Seen] = {}
    hashed = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name in refused:
            raise pickle.UnpicklingError(f"it has opcode {name}, which files of weights have no use for")
        if count > most:
            raise pickle.UnpicklingError(f"it has more than {most} opcodes")
        if name == "MARK":
            stack.append(None)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            index = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if index > count:
                raise pickle.UnpicklingError(f"it memoizes at {index}, beyond the objects that it has")
            memo[index] = _object(stack[-1])
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP_MARK":
            _pop_to_mark(stack)
        else:
            few, marked, left = _SHAPES[name]
            above = _pop_to_mark(stack) if marked else []
            taken = [_object(stack.pop()) for _ in range(few)][::-1] + above[::-1]
            if not taken:
                wide = type(argument) is int and abs(argument) >= _CHOSEN_HASHES_FROM
                stack.extend([_LARGE_NUMBER if wide else _PLAIN] * left)
                continue
            hashed += sum(size for _, size in _hashed(name, taken) if size > 1)
            if hashed > _MAX_HASHED_PARTS:
                raise pickle.UnpicklingError(f"its keys and members of sets have more than {_MAX_HASHED_PARTS} parts")
            stack.extend([_joined(name, taken)] * left)


def _hashed(name: str, taken: list[Seen]) -> list[Seen]:
    """What an opcode looks up by its hash."""
    if name in ("SETITEM", "SETITEMS"):
        return taken[1::2]
    if name == "DICT":
        return taken[::2]
    return taken[1:] if name == "ADDITEMS" else taken if name == "FROZENSET" else []


def _joined(name: str, taken: list[Seen]) -> Seen:
    """Nesting and size of what an opcode makes of objects."""
    inner, size = max((nesting for nesting, _ in taken[name in _ADDERS :]), default=-1) + 1, 1
    if name in _ADDERS:
        inner, size = max(inner, taken[0][0]), 0
    if inner > _MAX_NESTING:
        raise pickle.UnpicklingError(f"its objects are nested deeper than {_MAX_NESTING}")
    return inner, min(size + sum(size for _, size in taken), _INFINITE)


def _object(item: Seen | None) -> Seen:
    if item is None:
        raise pickle.UnpicklingError("it takes a mark for an object")
    return item


def _pop_to_mark(stack: list[Seen | None]) -> list[Seen]:
    """What lies above the topmost mark, the topmost first; mark and all are taken off."""
    taken = []
    while (item := stack.pop()) is not None:
        taken.append(item)
    return taken


def full_name(module: str, name: str) -> str:
    """The name that a pickle gives to a class or a function.

    Raises:
        pickle.UnpicklingError: it is too long for one.
    """
    if len(module) + len(name) > _MAX_NAME_LENGTH:
        raise pickle.UnpicklingError(f"it names {name[:60]!r}, which is too long for a name")
    return f"{module}.{name}"


def is_plain(key: Any) -> bool:
    """Whether a key is text, or a number that is looked up in no time."""
    return isinstance(key, str) or (isinstance(key, int) and abs(key) < _CHOSEN_HASHES_FROM)


def are_axes(value: Any) -> bool:
    """Whether a value of a pickle is what a shape or a stride consists of: a tuple of a few sizes."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_AXES
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    )


def shown(value: Any) -> str:
    """A text of a pickle, for a message; of all else its type, since to write it down may take for ever."""
    return repr(value[:60]) if isinstance(value, str) else f"of type {type(value).__name__}"


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
