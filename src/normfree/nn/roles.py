"""Roles of parameters, declared by their module (or by one that contains it)."""

import enum
import inspect
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import UsageError
from .batch_norm import BATCH_NORM


class Role(enum.Enum):
    """Role of a parameter in the optimizer (table "Who gets what" in ``docs/facts.md``).

    A module declares roles in a class or instance attribute ``parameter_roles``: a dict from parameter name, dotted
    for parameters of its children, to role. The outermost declaration of a parameter wins, so that a head can declare
    its linear layer the classifier.
    """

    WEIGHT = "weight"  # of a convolution or linear layer: decayed, clipped per unit
    CLASSIFIER = "classifier"  # weight of the last linear layer: decayed, not clipped
    GAIN = "gain"  # not decayed, clipped as one unit
    BIAS = "bias"  # not decayed, clipped as one unit
    SKIP_GAIN = "skip_gain"  # not decayed, clipped as one unit


class ParameterRole(NamedTuple):
    """A parameter's role and where it comes from.

    Attributes:
        own: the role that the network gives it; None if only the caller does.
        source: of the role: the "caller", a module ("declared"), the type of torch's "layer", "get_classifier", or the
            name of an attribute ("guessed"). "unsure": it is a layer's weight, but may be the classifier.
        reason: the source in a few words.
    """

    name: str
    role: Role
    own: Role | None
    source: str
    reason: str


# Roles of torch's layers.
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORM = (*BATCH_NORM, *_INSTANCE_NORM, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)  # a row of a weight is a unit of a gate
_TORCH_ROLES: dict[tuple[type[nn.Module], ...], dict[str, Role]] = {
    (*_CONV, *_TRANSPOSED, nn.Linear, nn.Bilinear): {"weight": Role.WEIGHT, "bias": Role.BIAS},
    (nn.Embedding, nn.EmbeddingBag): {"weight": Role.WEIGHT},
    (nn.MultiheadAttention,): {f"{part}_proj_weight": Role.WEIGHT for part in ("in", "q", "k", "v")}
    | {name: Role.BIAS for name in ("in_proj_bias", "bias_k", "bias_v")},
    _NORM: {"weight": Role.GAIN, "bias": Role.BIAS},
    (nn.PReLU,): {"weight": Role.GAIN},
}
_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear  # possible classifiers
_CLASSIFIERS = ("classifier", "fc", "head", "heads")  # usual names of attributes
_MAX_NAMES = 8  # in an error


def parameter_roles(model: nn.Module, roles: Mapping[str, Role | str] | None = None) -> dict[str, Role]:
    """Role of every parameter, by its name in ``model.named_parameters()``; see :func:`explain_roles`.

    Example:
        >>> parameter_roles(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        {'0.weight': <Role.WEIGHT: 'weight'>, '0.bias': <Role.BIAS: 'bias'>}
    """
    return {entry.name: entry.role for entry in explain_roles(model, roles)}


def explain_roles(model: nn.Module, roles: Mapping[str, Role | str] | None = None) -> list[ParameterRole]:
    """Role of every parameter and where it comes from, in the order of ``model.named_parameters()``.

    ``roles`` comes first: from dotted name, or pattern such as ``"*.gain"``, to role; a name outranks patterns. Then
    ``parameter_roles`` of the modules, the outermost first, then the types of torch's layers. If these give no
    classifier, it is the last layer of what ``get_classifier()`` returns, or of the attributes
    ``classifier``, ``fc``, ``head`` or ``heads``. A list, tuple or dict of heads has one classifier each. Where a head
    has several branches, as a detector's for classes and boxes, each may be the classifier: they are "unsure".

    Raises:
        UsageError: not a module; parameters without a role, or with two that differ (shared between layers, or matched
            by two patterns); names or patterns in ``roles`` that match none; each by name.

    Example:
        >>> for entry in explain_roles(nn.Sequential(nn.Linear(4, 2)), {"0.weight": "classifier"}):
        ...     print(entry.name, entry.role.value, entry.source)
        0.weight classifier caller
        0.bias bias layer
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a network (torch.nn.Module) is needed, not {type(model).__name__}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = _own_roles(model)
    overrides = _overrides(roles or {}, list(parameters))
    entries: dict[int, ParameterRole] = {}
    missing = []
    for name, parameter in parameters.items():
        if name not in overrides and name not in own:
            missing.append(name)
            continue
        role, source, reason = overrides.get(name) or own[name]
        entry = ParameterRole(name, role, own[name][0] if name in own else None, source, reason)
        first = entries.setdefault(id(parameter), entry)
        if role is not first.role:
            raise UsageError(
                f"parameter {first.name} ({first.role.value}) is shared as {name} ({role.value}); give one role"
            )
    if missing:
        raise UsageError(_without_role(missing, list(parameters)))
    if not any(entry.role is Role.CLASSIFIER for entry in entries.values()):
        _find_classifier(model, entries)
    return [entries[id(parameter)]._replace(name=name) for name, parameter in model.named_parameters()]


_Declaration = tuple[Role, str, str]  # role, source, reason


def _own_roles(model: nn.Module) -> dict[str, _Declaration]:
    """Roles that the modules declare, and those of torch's layers, by name."""
    own: dict[str, _Declaration] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):  # parents before children
        declared = getattr(module, "parameter_roles", None)
        source = "declared" if declared else "layer"
        for name, role in dict(declared or _torch_roles(module)).items():
            path = f"{prefix}.{name}" if prefix else name
            own.setdefault(path, (_as_role(role, path), source, f"{source} {type(module).__name__}"))
    return own


def undeclared(model: nn.Module) -> list[str]:
    """Names of the parameters whose role neither a module nor the type of a layer says.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.factor = nn.Parameter(torch.ones(2))
        >>> undeclared(layer)
        ['factor']
    """
    own = _own_roles(model)
    return [name for name, _ in model.named_parameters() if name not in own]


def _overrides(roles: Mapping[str, Role | str], parameters: list[str]) -> dict[str, _Declaration]:
    """The caller's roles; a name outranks patterns."""
    overrides: dict[str, _Declaration] = {}
    unknown = []
    for key, value in roles.items():
        role, names = _as_role(value, key), matching(key, parameters)
        unknown += [] if names else [key]
        for name in names:
            if name != key and name in roles:
                continue
            previous, _, reason = overrides.setdefault(name, (role, "caller", f"roles {key!r}"))
            if previous is not role:
                raise UsageError(f"{name} is {previous.value} by {reason} and {role.value} by roles {key!r}; name it")
    if unknown:
        raise UsageError(f"roles names {', '.join(sorted(unknown))}, which the model does not have")
    return overrides


def transposed_groups(model: nn.Module) -> dict[Tensor, int]:
    """Weights of torch's transposed convolutions, (in, out / groups, ...), with their groups: their units are output
    channels, which are not the first dimension.

    Example:
        >>> layer = nn.ConvTranspose2d(6, 4, 2, groups=2)
        >>> transposed_groups(nn.Sequential(layer))[layer.weight]
        2
    """
    return {module.weight: module.groups for module in model.modules() if isinstance(module, _TRANSPOSED)}


def matching(pattern: str, names: list[str]) -> list[str]:
    """The parameter of that name, or those that a pattern such as ``"*.gain"`` matches; ``*`` matches dots, too."""
    return [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]


def _find_classifier(model: nn.Module, entries: dict[int, ParameterRole]) -> None:
    """Change the role of an undeclared classifier; or mark the layers that may be one."""
    layers, source, reason = _classifier_layers(model) or (_last_linear(model), "unsure", "")
    for layer in layers:
        entry = entries.get(id(layer.weight))
        if entry is not None and entry.source == "layer":
            role = entry.role if source == "unsure" else Role.CLASSIFIER
            entries[id(layer.weight)] = entry._replace(role=role, source=source, reason=reason or entry.reason)


def _classifier_layers(model: nn.Module) -> tuple[list[_Layer], str, str] | None:
    """Layers that are or may be the classifier, the source, and the reason; None: unknown."""
    name, get = type(model).__name__, getattr(model, "get_classifier", None)
    if callable(get) and not any(p.default is p.empty for p in inspect.signature(get).parameters.values()):
        layers, sure = _outputs(get())
        return layers, "get_classifier" if sure else "unsure", f"get_classifier() of {name}"
    heads = {key: child for key, child in model.named_children() if key in _CLASSIFIERS and _linear(child)}
    if heads:
        last = _last_of_chains(list(heads.values()))
        layers, sure = _outputs(last)
        attributes = " and ".join(key for key, child in heads.items() if child in last)
        return layers, "guessed" if sure else "unsure", f"attribute {attributes} of {name}"
    owners = [child for child in model.children() if any(True for _ in child.parameters())]
    if len(owners) == 1 and not any(True for _ in model.parameters(recurse=False)):
        return _classifier_layers(owners[0])  # of a wrapper, for example DistributedDataParallel or torch.compile
    return None


def _last_linear(model: nn.Module) -> list[_Layer]:
    """The last linear layer and parallel ones in its module; a single one only if no layer follows."""
    owners = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    last = next((module for module in reversed(owners) if isinstance(module, nn.Linear)), model)
    if last is model:
        return []
    layers, _ = _outputs(next(module for module in model.modules() if last in module.children()))
    return layers if last is owners[-1] or len(layers) > 1 else []


def _outputs(heads: object) -> tuple[list[_Layer], bool]:
    """The last layer of each head, and whether these are certain: they are not if a module has branches."""
    if isinstance(heads, Mapping | nn.ModuleDict):
        heads = list(heads.values())
    if isinstance(heads, list | tuple | nn.ModuleList):
        each = [_outputs(head) for head in heads]
        return [layer for layers, _ in each for layer in layers], all(sure for _, sure in each)
    if not isinstance(heads, nn.Module):
        return [], True
    if isinstance(heads, _Layer):
        return [heads], True
    children = [child for child in heads.children() if _linear(child)]
    last = children[-1:] if isinstance(heads, nn.Sequential) else _last_of_chains(children)
    layers, sure = _outputs(last)
    return layers, sure and len(last) <= 1


def _last_of_chains(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules whose output no later one takes, judged by their sizes."""
    firsts = [_linear(module)[0] for module in modules]
    return [
        module
        for number, module in enumerate(modules)
        if not any(_feeds(layer, first) for layer in _outputs(module)[0] for first in firsts[number + 1 :])
    ]


def _feeds(layer: _Layer, after: _Layer) -> bool:
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if not isinstance(after, nn.Linear):
        return after.in_channels == outputs
    flattened = not isinstance(layer, nn.Linear) and after.in_features % outputs == 0
    return after.in_features == outputs or flattened


def _linear(module: nn.Module) -> list[_Layer]:
    return [m for m in module.modules() if isinstance(m, _Layer)]


def _without_role(missing: list[str], parameters: list[str]) -> str:
    """The message: the first names, and patterns that match only such names."""
    patterns = {}
    for name in missing:
        pattern = f"*.{name.rpartition('.')[2]}"
        fits = "." in name and set(matching(pattern, parameters)) <= set(missing)
        patterns[pattern if fits else name] = None
    shown = ", ".join(missing[:_MAX_NAMES]) + (
        f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
    )
    example = ", ".join(f'"{pattern}": ...' for pattern in list(patterns)[:_MAX_NAMES])
    return (
        f"no role is known for {shown}; pass roles={{{example}}} or declare it in the module's parameter_roles; "
        f"a role is one of {', '.join(role.value for role in Role)}"
    )


def _as_role(role: Role | str, name: str) -> Role:
    try:
        return Role(role)
    except ValueError:
        known = ", ".join(item.value for item in Role)
        raise UsageError(f"role of {name} (={role!r}) is unknown; it must be one of {known}") from None


def _torch_roles(module: nn.Module) -> dict[str, Role]:
    if isinstance(module, _RECURRENT):
        return {name: Role.WEIGHT if name.startswith("weight") else Role.BIAS for name in module._parameters}
    return next((table for types, table in _TORCH_ROLES.items() if isinstance(module, types)), {})
