"""Normalizations with an activation inside (timm's BatchNormAct2d, GroupNormAct), taken apart."""

from collections.abc import Collection
from typing import Any

from torch import fx, nn

from .change import is_left
from .kinds import is_normalization, module_of
from .tracing import owner_of


def parts_behind(module: nn.Module) -> dict[str, nn.Module]:
    """Dropout and activation of a fused normalization, by their names, without those that do nothing."""
    children = {name: child for name, child in module.named_children() if name in ("drop", "act")}
    return {name: child for name, child in children.items() if not isinstance(child, nn.Identity)}


def split_fused(graph: fx.GraphModule, shapes: dict[str, Any], leave: Collection[str]) -> None:
    """A node each for the normalization, its dropout and its activation, in place."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        module = module_of(node, modules)
        if module is None or not is_normalization(module) or is_left(str(node.target), leave):
            continue
        last = node
        for name in parts_behind(module):
            with graph.graph.inserting_after(last):
                new = graph.graph.call_module(f"{node.target}.{name}", (node,))
            last.replace_all_uses_with(new)
            new.args = (last,)
            new.meta = dict(node.meta, owner=owner_of(node))
            shapes[new.name] = shapes[node.name]
            last = new
