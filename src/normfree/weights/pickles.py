"""Pickles of other programs: checked before anything is built; no name in them is imported or run."""

import pickle
import pickletools
from typing import Any

from ..errors import UsageError
from ..limits import MAX_AXES

_MAX_NESTING = 50  # a ResNet-600 with running statistics takes 10
_MAX_CLASSES = 1000  # in one file
_MAX_NAME_LENGTH = 1000  # of a class, with its module
_MAX_HASHED_PARTS = 10_000  # parts of all keys and members of sets that are not plain; files of weights have none
_MIN_COLLIDING = 2**60  # from here on, numbers can be chosen whose hashes all collide
_MAX_PARTS = 2**60  # larger counts are not distinguished
_REFUSED = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_ADDERS = {"SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS"}


class Placeholder:
    """Stands for an object of a class in a pickle; the class is not imported, and the state is dropped.

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
    """A class per name, made on demand."""

    def __missing__(self, name: str) -> type[Placeholder]:
        if len(self) >= _MAX_CLASSES:
            raise pickle.UnpicklingError(f"it names more than {_MAX_CLASSES} classes")
        made = type("Placeholder", (Placeholder,), dict(stands_for=name[:100], __slots__=()))
        return self.setdefault(name, made)


# by opcode: how many objects it pops, whether it also pops all above a mark, how many it pushes
_SHAPES = {
    opcode.name: (
        sum(kind.name not in ("mark", "stackslice") for kind in opcode.stack_before),
        pickletools.markobject in opcode.stack_before,
        len(opcode.stack_after),
    )
    for opcode in pickletools.opcodes
}
Extent = tuple[int, int]  # of an object: nesting and number of parts
_PLAIN, _LARGE_NUMBER = (0, 1), (0, 2)


def check_opcodes(file: Any, max_opcodes: int, *, persistent: bool = False) -> None:
    """Refuse, before anything is built, a pickle that could exhaust the stack, memory or time of the unpickler.

    A tuple that holds a tuple twice, which holds another one twice, and so on, takes a few bytes in a file, but hashing
    it never ends. So the parts of keys and members of sets are counted each time they are used, as hashing visits them.

    Args:
        file: read from its position to the end of the pickle; or the bytes of a pickle.
        max_opcodes: limit of their number.
        persistent: allow references to objects outside the pickle, as ``torch.save`` writes them.

    Raises:
        pickle.UnpicklingError: the reason.
    """
    refused = _REFUSED - {"PERSID", "BINPERSID"} if persistent else _REFUSED
    stack: list[Extent | None] = []  # None is a mark
    memo: dict[int, Extent] = {}
    hashed = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name = opcode.name
        if name in refused:
            raise pickle.UnpicklingError(f"it has opcode {name}, which files of weights have no use for")
        if count > max_opcodes:
            raise pickle.UnpicklingError(f"it has more than {max_opcodes} opcodes")
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
            pops, marked, pushes = _SHAPES[name]
            above = _pop_to_mark(stack) if marked else []
            operands = [_object(stack.pop()) for _ in range(pops)][::-1] + above[::-1]
            if not operands:
                large = type(argument) is int and abs(argument) >= _MIN_COLLIDING
                stack.extend([_LARGE_NUMBER if large else _PLAIN] * pushes)
                continue
            hashed += sum(size for _, size in _hashed(name, operands) if size > 1)
            if hashed > _MAX_HASHED_PARTS:
                raise pickle.UnpicklingError(f"its keys and members of sets have more than {_MAX_HASHED_PARTS} parts")
            stack.extend([_joined(name, operands)] * pushes)


def _hashed(name: str, operands: list[Extent]) -> list[Extent]:
    """The operands that an opcode hashes."""
    if name in ("SETITEM", "SETITEMS"):
        return operands[1::2]
    if name == "DICT":
        return operands[::2]
    return operands[1:] if name == "ADDITEMS" else operands if name == "FROZENSET" else []


def _joined(name: str, operands: list[Extent]) -> Extent:
    """The extent of an opcode's result."""
    inner, size = max((nesting for nesting, _ in operands[name in _ADDERS :]), default=-1) + 1, 1
    if name in _ADDERS:
        inner, size = max(inner, operands[0][0]), 0
    if inner > _MAX_NESTING:
        raise pickle.UnpicklingError(f"its objects are nested deeper than {_MAX_NESTING}")
    return inner, min(size + sum(size for _, size in operands), _MAX_PARTS)


def _object(item: Extent | None) -> Extent:
    if item is None:
        raise pickle.UnpicklingError("it takes a mark for an object")
    return item


def _pop_to_mark(stack: list[Extent | None]) -> list[Extent]:
    """Pop everything down to the topmost mark, and the mark; the topmost object comes first."""
    popped = []
    while (item := stack.pop()) is not None:
        popped.append(item)
    return popped


def full_name(module: str, name: str) -> str:
    """The full name of a class or function in a pickle.

    Raises:
        pickle.UnpicklingError: it is too long for a name.
    """
    if len(module) + len(name) > _MAX_NAME_LENGTH:
        raise pickle.UnpicklingError(f"it names {name[:60]!r}, which is too long for a name")
    return f"{module}.{name}"


def is_plain(key: Any) -> bool:
    """Whether a key is text, or a number whose hash cannot be chosen to collide."""
    return isinstance(key, str) or (isinstance(key, int) and abs(key) < _MIN_COLLIDING)


def are_axes(value: Any) -> bool:
    """Whether a value of a pickle can be a shape or a stride: a tuple of a few sizes."""
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_AXES
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    )


def shown(value: Any) -> str:
    """A text of a pickle, for a message; for other values the type, since their repr may take for ever."""
    return repr(value[:60]) if isinstance(value, str) else f"of type {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """The message of an error, in one printable line of bounded length."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:300] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def check_names(content: dict[str, Any], path: Any) -> dict[str, Any]:
    """``content``, if its names are printable text of at most 200 characters; else UsageError."""
    for name in content:
        if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
            raise UsageError(f"{path}: {name!r:.60} is no name of a tensor")
    return content
