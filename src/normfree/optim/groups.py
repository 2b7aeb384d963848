"""Parameter groups from roles: every parameter is in exactly one."""

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import UsageError
from ..nn import ParameterRole, Role, explain_roles, transposed_groups
from .clip import check_kind, check_threshold
from .parts import Parts, check_parts
from .sharded import FLAT, is_flat

_DECAYED = (Role.WEIGHT, Role.CLASSIFIER)


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    clipping: float | None = None,
    clipping_kind: str = "unit",
    clipping_parts: Mapping[str, float | bool] | None = None,
    roles: Mapping[str, Role | str] | None = None,
    unclipped: Sequence[str] = (),
    verbose: bool = False,
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

    Roles come from the modules and from the types of torch's layers, see :func:`normfree.nn.explain_roles`. A warning
    names a classifier that was only guessed by the name of an attribute, or a last linear layer that may be one.

    Args:
        weight_decay: coefficient of the decayed groups.
        clipping: threshold lambda; of AGC 0.01 for batch 4096. None clips nothing.
        clipping_kind: what is clipped, see :func:`agc_`.
        clipping_parts: parts of the network that are clipped (True), not clipped (False), or clipped with a threshold
            of their own, ``{"stem": False, "stages.0": 0.02, "classifier": True}``. A part is a module, a parameter, a
            pattern, or ``classifier``: the layer of the classifier with its bias. Of several parts that a parameter is
            in, the most exact one counts: its own name, then the innermost module, then patterns. The decay of weights
            does not depend on it.
        roles: overrides by parameter name or pattern, ``{"fc.weight": "classifier", "*.gain": "gain"}``. A gain, bias
            or skip gain with the role of a classifier is neither clipped nor decayed.
        unclipped: parts that are not clipped, whatever ``clipping_parts`` says.
        verbose: print each parameter with its role, its treatment, and the reason.

    Returns:
        Groups with ``params``, ``name``, ``weight_decay`` and ``clipping`` (None: not clipped); several of one name
        if a role's parameters are not all treated alike. ``one_unit=True`` marks gains and biases with several rows,
        ``transposed`` the weights of torch's transposed convolutions, by their groups: a unit is an output channel.
        Parameters that do not require a gradient are included.

    Raises:
        UsageError: see :func:`normfree.nn.explain_roles`; a negative weight decay; a clipping that is not above 0; an
            unknown kind; a part that the model does not have; two patterns that differ; flat shards (FSDP1); lazy
            layers without a shape.

    Example:
        >>> model = normfree.create_model("nf_resnet26_small", num_classes=10)
        >>> for group in param_groups(model, weight_decay=5e-5, clipping=0.01):
        ...     print(group["name"], len(group["params"]), group["weight_decay"], group["clipping"])
        weight 28 5e-05 0.01
        classifier 1 5e-05 None
        gain 28 0.0 0.01
        bias 29 0.0 0.01
        skip_gain 8 0.0 0.01
    """
    if not weight_decay >= 0:
        raise UsageError(f"weight_decay (={weight_decay}) must be at least 0")
    check_threshold(clipping)
    check_kind(clipping_kind)
    check_parts(clipping_parts or {}, clipping_kind)
    if isinstance(model, nn.Module):
        _check_parameters(model)
    entries, parameters = explain_roles(model, roles), dict(model.named_parameters())
    chosen = _chosen(model, entries, clipping_parts or {}, unclipped)
    transposed = transposed_groups(model)
    rows = []
    for entry in entries:
        p = parameters[entry.name]
        rows.append(_Row(entry, p, _treatment(entry, p, chosen.get(p), transposed.get(p, 0))))
    if clipping is not None:
        _warn_of_classifier([row.entry for row in rows if row.parameter not in chosen])
    if verbose:
        print("\n".join(_table(rows, clipping_kind)))
    return _grouped(rows, weight_decay, clipping, clipping_kind)


class _Treatment(NamedTuple):
    """How the optimizer treats a parameter."""

    decayed: bool
    clipped: bool
    one_unit: bool  # although it has several rows
    threshold: float | None  # of its part; None: the threshold of all
    transposed: int  # groups of torch's transposed convolution, whose units are its second dimension; 0: of no such


class _Row(NamedTuple):
    entry: ParameterRole
    parameter: Tensor
    treatment: _Treatment


def _grouped(rows: Sequence[_Row], weight_decay: float, clipping: float | None, kind: str) -> list[dict[str, Any]]:
    """Groups in the order of the roles, clipped ones first."""
    groups: dict[tuple[Role, _Treatment], dict[str, Any]] = {}
    order = list(Role)
    for entry, parameter, treatment in sorted(rows, key=lambda r: (order.index(r.entry.role), not r.treatment.clipped)):
        group = groups.setdefault(
            (entry.role, treatment),
            dict(
                params=[],
                name=entry.role.value,
                weight_decay=weight_decay if treatment.decayed else 0.0,
                clipping=(treatment.threshold or clipping) if treatment.clipped else None,
            ),
        )
        if treatment.one_unit:
            group["one_unit"] = True
        if treatment.transposed:
            group["transposed"] = treatment.transposed
        if kind != "unit":
            group["clipping_kind"] = kind
        group["params"].append(parameter)
    return list(groups.values())


def _treatment(entry: ParameterRole, p: Tensor, chosen: float | bool | None, transposed: int) -> _Treatment:
    """``chosen``: what the parameter's part says; None: it is in none, and its role decides."""
    clipped = entry.role is not Role.CLASSIFIER if chosen is None else chosen is not False
    threshold = None if chosen is None or isinstance(chosen, bool) else chosen
    # a parameter that is not decayed by its own role stays so as a classifier
    decayed = (entry.own if entry.own and entry.role is Role.CLASSIFIER else entry.role) in _DECAYED
    rows = p.ndim > 1 and p.shape[0] > 1
    one_unit = clipped and rows and not decayed
    return _Treatment(decayed, clipped, one_unit, threshold, 0 if one_unit else transposed)


def _chosen(
    model: nn.Module, entries: Sequence[ParameterRole], clipped: Mapping[str, float | bool], unclipped: Sequence[str]
) -> dict[Tensor, float | bool]:
    """What the parts say, by parameter."""
    parts, parameters = Parts(model, entries), dict(model.named_parameters(remove_duplicate=False))
    chosen: dict[Tensor, float | bool] = {parameters[name]: v for name, v in parts.thresholds(clipped).items()}
    for part in [unclipped] if isinstance(unclipped, str) else unclipped:
        names = parts.names(part)
        if not names:
            raise UsageError(f"unclipped names {part}, which the model does not have")
        chosen |= {parameters[name]: False for name in names}
    return chosen


def _check_parameters(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if is_flat(p):
            raise UsageError(f"{name} is of the {FLAT}")
        if is_lazy(p):
            raise UsageError(f"{name} of a lazy layer has no shape yet; call the network on an input before")


def _warn_of_classifier(entries: Sequence[ParameterRole]) -> None:
    """Warn about a guessed classifier, and about layers that may be one."""
    messages = [
        f"{entry.name} is taken for the classifier's weight and not clipped ({entry.reason}); to decide it, pass "
        f'roles={{"{entry.name}": "classifier"}}, or "weight" to clip it'
        for entry in entries
        if entry.source == "guessed"
    ]
    names = [entry.name for entry in entries if entry.source == "unsure"]
    if len(names) == 1:
        messages.append(
            f"no classifier is declared, and {names[0]} of the last linear layer is clipped like any other; if it is "
            f'the classifier\'s, pass roles={{"{names[0]}": "classifier"}}, else "weight"'
        )
    elif names:
        example = ", ".join(f'"{name}": ...' for name in names)
        messages.append(
            f"no classifier is declared, and {', '.join(names)} are clipped like any other, though each may be one; "
            f'pass roles={{{example}}}, each "classifier" or "weight"'
        )
    for message in messages:
        warnings.warn(message, stacklevel=3)


def _table(rows: Sequence[_Row], kind: str) -> list[str]:
    lines = [("parameter", "shape", "role", "decayed", "clipped", "why")]
    for entry, parameter, treatment in rows:
        shape = "x".join(map(str, parameter.shape)) or "1"
        clipped = "as one" if kind == "layer" or treatment.one_unit or parameter.ndim < 2 else "per unit"
        clipped = "with all" if kind == "norm" else clipped
        clipped += "" if treatment.threshold is None else f" {treatment.threshold:g}"
        decayed = "yes" if treatment.decayed else "no"
        lines.append(
            (entry.name, shape, entry.role.value, decayed, clipped if treatment.clipped else "no", entry.reason)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Freeze the parameters of modules, for example of ``["stem", "stages.0"]``, or by patterns such as ``"*.gain"``.

    Raises:
        UsageError: a name without parameters, or nothing left to train.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> freeze(model, ["0"])
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
    """
    parameters = dict(model.named_parameters())
    for prefix in prefixes:
        chosen = [p for name, p in parameters.items() if fnmatchcase(name, prefix) or fnmatchcase(name, f"{prefix}.*")]
        if not chosen:
            parts = sorted({name.split(".")[0] for name in parameters})
            raise UsageError(
                f"optim.frozen names {prefix!r}, which the network does not have; it has {', '.join(parts)}"
            )
        for parameter in chosen:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise UsageError(f"optim.frozen (={list(prefixes)}) leaves nothing to train")
