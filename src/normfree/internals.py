"""What is used of torch beyond its public interface, found by name: a torch that has renamed it is still imported."""

import importlib
from typing import Any

import torch

from .errors import UsageError


class Missing:
    """Stands for something private that this torch does not have: false, and an error to call or to derive from."""

    def __init__(self, name: str):
        self.reason = f"torch {torch.__version__} has no {name}"

    def __bool__(self) -> bool:
        return False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError(f"{self.reason}, which this needs: another version of torch has it")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type]:
        refuse = self.__call__
        return (type("Missing", (), dict(__init__=lambda self, *args, **kwargs: refuse())),)


def private(name: str) -> Any:
    """What lies at a dotted name, ``torch.`` included; :class:`Missing` where there is none.

    Example:
        >>> private("torch.nn.functional").__name__
        'torch.nn.functional'
        >>> bool(private("torch.no_such_thing"))
        False
    """
    value: Any = torch
    path = name.split(".")
    for i in range(1, len(path)):
        try:
            value = getattr(value, path[i])
        except AttributeError:
            try:
                value = importlib.import_module(".".join(path[: i + 1]))
            except ImportError:
                return Missing(name)
    return value
