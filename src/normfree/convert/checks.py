"""What a conversion refuses, each with the name of the place and the reason."""

import operator
from collections import Counter, defaultdict
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import nn

from .change import Refusal, is_left
from .kinds import (
    FUNCTIONAL_NORMS,
    WEIGHTED,
    is_batch_norm,
    is_normalization,
    module_of,
    seems_normalization,
)
from .structure import Structure
from .tracing import owner_of

_TRACKED = "num_batches_tracked"
_ATTENTION = (F.scaled_dot_product_attention, torch.matmul, torch.bmm, operator.matmul, torch.baddbmm, "bmm", "matmul")


def shared(structure: Structure, leave: Collection[str]) -> list[Refusal]:
    """Modules that run twice, and weights that belong to two modules."""
    calls = Counter(str(n.target) for n in structure.nodes if n.op == "call_module")
    norms, layers = [], []
    for name, times in calls.items():
        module = structure.modules[name]
        if times < 2 or is_left(name, leave):
            continue
        if is_normalization(module):
            norms.append(Refusal(name, f"this {type(module).__name__} is used {times} times, on different signals"))
        elif isinstance(module, WEIGHTED):
            layers.append(Refusal(name, f"this {type(module).__name__} is shared: it is used {times} times"))
    return norms + layers


def tied(model: nn.Module, leave: Collection[str]) -> list[Refusal]:
    """Weights that belong to two modules; one module under two names is one module."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append(f"{name}.{key}" if name else key)
    found = []
    for names in owners.values():
        module = names[0].rpartition(".")[0]
        if len(names) > 1 and not is_left(module, leave):
            found.append(Refusal(module, f"its {names[0].rpartition('.')[2]} is tied to {names[1]}"))
    return found


def functional(structure: Structure, leave: Collection[str], *, batch_only: bool = False) -> list[Refusal]:
    """Normalizations that are functions: they have no module that could be replaced."""
    found = []
    for node in structure.nodes:
        if node.op != "call_function" or node.target not in FUNCTIONAL_NORMS:
            continue
        name = getattr(node.target, "__name__", str(node.target))
        place = owner_of(node) or "forward"
        if not is_left(place, leave) and not (batch_only and "batch" not in name and "instance" not in name):
            found.append(Refusal(place, f"it calls the function {name}; use a module, such as nn.BatchNorm2d"))
    return found


def unknown(model: nn.Module, structure: Structure, leave: Collection[str]) -> list[Refusal]:
    """Normalizations of a class that is not known, and those inside of layers that are one operation."""
    found = []
    for name, module in model.named_modules():
        if seems_normalization(module) and name and ".parametrizations." not in name and not is_left(name, leave):
            found.append(Refusal(name, f"{type(module).__name__} is no normalization that is known"))
    called = {str(n.target) for n in structure.nodes if n.op == "call_module"}
    for name in sorted(called):
        inside = [key for key, m in structure.modules[name].named_modules() if is_normalization(m) and key]
        if inside and not is_left(name, leave) and not is_normalization(structure.modules[name]):
            kind = type(structure.modules[name]).__name__
            found.append(Refusal(name, f"{kind} is one operation to torch.fx, with {inside[0]} in it"))
    return found


def attention(structure: Structure, leave: Collection[str]) -> list[Refusal]:
    """Products of two signals over places, for which there is no variance theory here."""
    found = []
    for node in structure.nodes:
        module = module_of(node, structure.modules)
        function = node.op in ("call_function", "call_method") and node.target in _ATTENTION
        if not function and not isinstance(module, nn.MultiheadAttention):
            continue
        place = str(node.target) if module is not None else owner_of(node) or "forward"
        signals = [x for x in node.all_input_nodes if structure.is_signal(x)]
        if (module is not None or len(signals) > 1) and not is_left(place, leave):
            found.append(Refusal(place, "attention needs its normalization; there is no variance theory for it here"))
    return found


def uncollected(model: nn.Module, leave: Collection[str]) -> list[Refusal]:
    """BatchNorms without statistics of a training."""
    found = []
    for name, module in model.named_modules():
        if not is_batch_norm(module) or is_left(name, leave):
            continue
        mean, var, tracked = (module._buffers.get(key) for key in ("running_mean", "running_var", _TRACKED))
        if mean is None or var is None:
            found.append(Refusal(name, "it has no running statistics (track_running_stats=False), nothing to fold"))
        elif tracked is not None and not int(tracked) and not mean.any() and bool((var == 1).all()):
            found.append(Refusal(name, "its running statistics were never collected: no batch has passed in training"))
        elif not bool(var.isfinite().all() and mean.isfinite().all()):
            found.append(Refusal(name, "its running statistics are not finite"))
    return found
