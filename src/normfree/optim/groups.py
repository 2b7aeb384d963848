"""From roles to parameter groups: every parameter in exactly one."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import UsageError
from ..nn import Role, parameter_roles


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    clipping: float | None = None,
    roles: Mapping[str, Role | str] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer: the released table "Who gets what" (NFNets, sections 4.1 and 5.1,
    appendix A.1).

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
        UsageError: see :func:`normfree.nn.parameter_roles`; a negative weight decay; a clipping that is not above 0.
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


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Take parameters out of training: those of the modules named, ``["stem", "stages.0"]`` for example.

    Raises:
        UsageError: a name that is no module's with parameters, or nothing left to train.
    """
    parameters = dict(model.named_parameters())
    for prefix in prefixes:
        found = [p for name, p in parameters.items() if name == prefix or name.startswith(f"{prefix}.")]
        if not found:
            parts = sorted({name.split(".")[0] for name in parameters})
            raise UsageError(
                f"optim.frozen names {prefix!r}, which the network does not have; it has {', '.join(parts)}"
            )
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise UsageError(f"optim.frozen (={list(prefixes)}) leaves nothing to train")
