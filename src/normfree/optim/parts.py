"""Parts of a network, by name or pattern, and which of them are clipped."""

from collections.abc import Mapping, Sequence
from numbers import Real

from torch import nn

from ..errors import UsageError
from ..nn import ParameterRole, Role
from ..nn.roles import matching

CLASSIFIER = "classifier"
_PATTERN, _MODULE, _PARAMETER = range(3)  # what a name is; the later kinds are more exact
_Rank = tuple[int, float]  # kind and, of a module, how deep it lies


class Parts:
    """The parts that a network has: modules, parameters, patterns of them, and ``classifier``.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> parts = Parts(model, normfree.nn.explain_roles(model, {"1.weight": "classifier"}))
    >>> parts.names("0"), parts.names("*.bias"), parts.names("classifier")
    (['0.weight', '0.bias'], ['0.bias', '1.bias'], ['1.weight', '1.bias'])

    Args:
        entries: of :func:`normfree.nn.explain_roles`.
    """

    def __init__(self, model: nn.Module, entries: Sequence[ParameterRole]):
        self.parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        self.modules = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
        self.children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
        self.classifiers = [entry.name for entry in entries if entry.role is Role.CLASSIFIER]

    def names(self, part: str) -> list[str]:
        """Names of the parameters of a part; none if the network has no such part."""
        return self._look_up(part)[0]

    def _look_up(self, part: str) -> tuple[list[str], _Rank]:
        if part in self.parameters:
            return [part], (_PARAMETER, 0)
        if part in self.modules:
            return self._inside(part), (_MODULE, part.count("."))
        if part == CLASSIFIER:  # with the bias beside the weight
            owners = [weight.rpartition(".")[0] for weight in self.classifiers]
            names = [name for owner in owners if owner for name in self._inside(owner)]
            return list(dict.fromkeys([*self.classifiers, *names])), (_MODULE, float("inf"))
        return matching(part, self.parameters), (_PATTERN, 0)

    def _inside(self, module: str) -> list[str]:
        return [name for name in self.parameters if name.startswith(f"{module}.")]

    def thresholds(self, clipping: Mapping[str, float | bool]) -> dict[str, float | bool]:
        """Whether parameters are clipped, or with which threshold, by their names; without those of no part.

        Of several parts that a parameter is in, the most exact one counts: its own name, then the innermost module
        (``classifier`` is one), then patterns.

        Raises:
            UsageError: a part that the network does not have; two patterns that differ.
        """
        found: dict[str, tuple[_Rank, float | bool, str]] = {}
        for part, value in clipping.items():
            names, rank = self._look_up(part)
            if not names:
                has = ", ".join([*self.children, *([CLASSIFIER] if self.classifiers else [])])
                raise UsageError(f"clipping_parts names {part!r}, which the network does not have; it has {has}")
            for name in names:
                before = found.get(name)
                if before is not None and before[0] == rank and not _same(before[1], value):
                    raise UsageError(f"clipping_parts {before[2]!r} and {part!r} differ on {name}; name it, too")
                if before is None or before[0] < rank:
                    found[name] = rank, value, part
        return {name: value for name, (_, value, _) in found.items()}


def _same(a: float | bool, b: float | bool) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def check_parts(parts: Mapping[str, float | bool], kind: str) -> None:
    """A part is clipped (true), not clipped (false), or clipped with a threshold of its own.

    Raises:
        UsageError: another value, or a threshold with clipping by the norm of the whole gradient.
    """
    for part, value in parts.items():
        if not isinstance(part, str):
            raise UsageError(f"clipping_parts names {part!r}; the name of a part must be text")
        where = f"clipping_parts.{part} (={value!r})"
        if isinstance(value, bool):
            continue
        if not isinstance(value, Real) or not 0 < value <= 1e20:
            raise UsageError(f"{where} must be true (clipped), false (not clipped), or a threshold above 0")
        if kind == "norm":
            raise UsageError(f"{where} must be true or false with clipping_kind norm, which has one threshold for all")
