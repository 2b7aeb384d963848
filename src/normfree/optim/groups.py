"""From roles to parameter groups: every parameter in exactly one."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import UsageError
from ..nn import Role

# Roles of torch's own layers. A transposed convolution is left out: its units are not its first dimension.
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORM = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_TORCH_ROLES: dict[tuple[type[nn.Module], ...], dict[str, Role]] = {
    (*_CONV, nn.Linear): {"weight": Role.WEIGHT, "bias": Role.BIAS},
    _NORM: {"weight": Role.GAIN, "bias": Role.BIAS},
    (nn.PReLU,): {"weight": Role.GAIN},
}


def parameter_roles(model: nn.Module, roles: Mapping[str, Role] | None = None) -> dict[str, Role]:
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
        if not prefix:
            table |= roles or {}
        for name, role in table.items():
            declared.setdefault(f"{prefix}.{name}" if prefix else name, role)
    for name in roles or {}:  # the caller outranks every module
        declared[name] = roles[name]
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


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    clipping: float | None = None,
    roles: Mapping[str, Role] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: the released table "Who gets what" (NFNets, sections 4.1 and 5.1).

    ==============================  ============  ===========================
    group ``name``                  weight decay  clipping
    ==============================  ============  ===========================
    ``weight``                      yes           yes, per unit
    ``classifier``                  yes           no
    ``gain``, ``bias``,             no            yes, each tensor one unit
    ``skip_gain``
    ==============================  ============  ===========================

    Args:
        weight_decay: coefficient of the decayed groups.
        clipping: AGC's threshold lambda, 0.01 for batch 4096; None clips nothing.
        roles: overrides by parameter name, for networks whose modules do not declare them.

    Returns:
        Groups with ``params``, ``name``, ``weight_decay`` and ``clipping`` (None: not clipped). Parameters that do not
        require a gradient are in their group, too.

    Raises:
        UsageError: see :func:`parameter_roles`; a negative weight decay; a clipping that is not above 0.
    """
    if not weight_decay >= 0:
        raise UsageError(f"weight_decay (={weight_decay}) must be at least 0")
    if clipping is not None and not clipping > 0:
        raise UsageError(f"clipping (={clipping}) must be above 0, or None for no clipping")
    found, parameters = parameter_roles(model, roles), dict(model.named_parameters())
    groups = []
    for role in Role:
        params = [parameters[name] for name, its in found.items() if its is role]
        if params:
            decayed, clipped = role in (Role.WEIGHT, Role.CLASSIFIER), role is not Role.CLASSIFIER
            groups.append(
                dict(
                    params=params,
                    name=role.value,
                    weight_decay=weight_decay if decayed else 0.0,
                    clipping=clipping if clipped else None,
                )
            )
    return groups


def _torch_roles(module: nn.Module) -> dict[str, Role]:
    return next((table for types, table in _TORCH_ROLES.items() if isinstance(module, types)), {})
