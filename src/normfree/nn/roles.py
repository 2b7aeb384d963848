"""What a parameter is, declared by the module that owns it (or by one that contains that module)."""

import enum
from collections.abc import Mapping

from torch import nn

from ..errors import UsageError


class Role(enum.Enum):
    """Role of a parameter in the optimizer (table "Who gets what" in ``docs/facts.md``).

    A module declares roles in a class or instance attribute ``parameter_roles``: a dict from parameter name, dotted
    for parameters of its children, to role. The outermost declaration of a parameter wins, so that a head can say
    that its linear layer is the classifier.
    """

    WEIGHT = "weight"  # of a convolution or linear layer: decayed, clipped per unit
    CLASSIFIER = "classifier"  # weight of the last linear layer: decayed, not clipped
    GAIN = "gain"  # not decayed, clipped as one unit
    BIAS = "bias"  # not decayed, clipped as one unit
    SKIP_GAIN = "skip_gain"  # not decayed, clipped as one unit


# Roles of torch's own layers. A transposed convolution is left out: its units are not its first dimension.
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORM = (*_BATCH_NORM, *_INSTANCE_NORM, nn.LayerNorm, nn.GroupNorm)
_TORCH_ROLES: dict[tuple[type[nn.Module], ...], dict[str, Role]] = {
    (*_CONV, nn.Linear): {"weight": Role.WEIGHT, "bias": Role.BIAS},
    _NORM: {"weight": Role.GAIN, "bias": Role.BIAS},
    (nn.PReLU,): {"weight": Role.GAIN},
}


def parameter_roles(model: nn.Module, roles: Mapping[str, Role | str] | None = None) -> dict[str, Role]:
    """Role of every parameter, by its name in ``model.named_parameters()``.

    ``roles`` (dotted name to role) comes first, then ``parameter_roles`` of the modules, the outermost first, then what
    is known of torch's layers by their type.

    Raises:
        UsageError: parameters without a role, with two that differ (shared between layers), or names in ``roles`` that
            the model does not have; each by name.
    """
    declared: dict[str, Role] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):  # parents before children
        table = dict(getattr(module, "parameter_roles", None) or _torch_roles(module))
        for name, role in table.items():
            path = f"{prefix}.{name}" if prefix else name
            declared.setdefault(path, _as_role(role, path))
    for name, role in (roles or {}).items():  # the caller outranks every module
        declared[name] = _as_role(role, name)
    by_parameter: dict[int, tuple[str, Role]] = {}
    missing, every = [], dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in every.items():
        if name not in declared:
            missing.append(name)
            continue
        first, role = by_parameter.setdefault(id(parameter), (name, declared[name]))
        if role is not declared[name]:
            raise UsageError(
                f"parameter {first} ({role.value}) is shared as {name} ({declared[name].value}); give one role"
            )
    if missing:
        raise UsageError(
            f"no role is known for {', '.join(missing)}; declare it in the module's parameter_roles or pass roles="
        )
    unknown = sorted(set(roles or {}) - set(every))
    if unknown:
        raise UsageError(f"roles names {', '.join(unknown)}, which the model does not have")
    return {name: declared[name] for name, _ in model.named_parameters()}


def _as_role(role: Role | str, name: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        known = ", ".join(item.value for item in Role)
        raise UsageError(f"role of {name} (={role!r}) is unknown; it must be one of {known}") from None


def _torch_roles(module: nn.Module) -> dict[str, Role]:
    return next((table for types, table in _TORCH_ROLES.items() if isinstance(module, types)), {})
