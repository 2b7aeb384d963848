"""Taking normalization out of a network that is to be trained from scratch: the edits of its graph."""

import operator
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from ..nn import SkipInit
from .change import Change, Refusal, is_left
from .fused import parts_behind
from .kinds import activation_of, is_idempotent, is_product, is_sigmoid, is_weighted, module_of
from .layers import Rescale, standardized, why_not
from .structure import Gate, Merge, Structure
from .tracing import free_name, owner_of


@dataclass
class Edited:
    """A graph whose constants are still to be found.

    Attributes:
        layers: standardized layers, by name.
        units: factors that make the variance of their input 1.
        restores: factors behind an activation that give back the variance before it, which is that of the node.
        changes: what was done, by name of the module.
    """

    graph: fx.GraphModule
    layers: set[str] = field(default_factory=set)
    in_gates: set[str] = field(default_factory=set)
    units: set[str] = field(default_factory=set)
    restores: dict[str, fx.Node] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)  # factors that stay even if they are 1
    changes: dict[str, Change] = field(default_factory=dict)


class Rebuilder:
    """Edits a graph in place.

    Args:
        structure: of a graph that belongs to nobody else.
        leave: names or patterns of modules that stay as they are.
        alpha, skip_gain: of each residual branch.
        init: whether the weights of standardized layers are drawn anew.
    """

    def __init__(self, structure: Structure, leave: Collection[str], alpha: float, skip_gain: float, init: bool):
        self.structure, self.leave = structure, leave
        self.alpha, self.skip_gain, self.init = alpha, skip_gain, init
        self.graph, self.modules = structure.graph, structure.modules
        self.norms = [n for n in structure.norms if not is_left(str(n.target), leave)]
        self.edited = Edited(self.graph)
        self.in_branches = self._in_branches()
        self.like = next((p for p in self.graph.parameters() if p.is_floating_point()), torch.zeros(()))
        self.layers = [n for n in structure.nodes if self._is_body(n)]

    def refusals(self) -> list[Refusal]:
        """Layers for which there is no standardized one."""
        found = []
        for node in self.layers:
            layer = self.modules[str(node.target)]
            if reason := why_not(layer):
                found.append(Refusal(str(node.target), reason))
        return found

    def edit(self) -> Edited:
        """Put everything in place, with factors of 1."""
        for merge in self.structure.merges:
            if not is_left(owner_of(merge.node) or "forward", self.leave):
                self._merge(merge)
        for gate in self.structure.gates:
            if gate.node not in self.structure.inside_gates:
                self._gate(gate)
        for norm in self.norms:
            self._remove(norm)
        for node in self.layers:
            name = str(node.target)
            layer = standardized(self.modules[name], init=self.init)
            self.graph.set_submodule(name, layer)
            self.edited.layers.add(name)
            if node in self.structure.inside_gates:
                self.edited.in_gates.add(name)
            was = type(self.modules[name]).__name__
            self._note(name, was, type(layer).__name__, "standardized, with gain and bias")
        return self.edited

    # Which layers

    def _is_body(self, node: fx.Node) -> bool:
        """A layer with a normalization behind it, on its branch, or in front of it without a layer between."""
        if not is_weighted(node, self.modules) or is_left(str(node.target), self.leave):
            return False
        if node in self.structure.inside_gates:  # Squeeze-Excite stays as it is, but for normalizations in it
            return any(user in self.norms for user in node.users)
        behind = any(self.structure.is_above(node, n) for n in self.norms if n not in self.structure.inside_gates)
        return behind or node in self.in_branches or (self._follows_norm(node) and not self._is_last(node))

    def _in_branches(self) -> set[fx.Node]:
        """What lies on residual branches that have a normalization."""
        found: set[fx.Node] = set()
        for merge in self.structure.merges:
            nodes = [*self.structure.between(merge.fork, merge.branch), merge.branch]
            if any(norm in nodes for norm in self.norms):
                found |= set(nodes)
        return found

    def _follows_norm(self, node: fx.Node) -> bool:
        seen, todo = set(), list(node.all_input_nodes)
        while todo:
            above = todo.pop()
            if above in self.norms:
                return not self._is_pooled(node)
            if above not in seen and not is_weighted(above, self.modules):
                seen.add(above)
                todo += above.all_input_nodes
        return False

    def _is_last(self, node: fx.Node) -> bool:
        """A layer with no other one behind it: the head of a dense prediction."""
        layers = (n for n in self.structure.nodes if is_weighted(n, self.modules))
        return not any(self.structure.is_above(node, other) for other in layers)

    def _is_pooled(self, node: fx.Node) -> bool:
        """A layer on pooled features, such as a classifier."""
        module = module_of(node, self.modules)
        shape = self.structure.shape(node)
        flat = shape is None or len(shape) < 3 or all(size == 1 for size in shape[2:])
        return flat or (isinstance(module, nn.Linear) and not any(m for m in self.structure.merges))

    # Edits

    def _merge(self, merge: Merge) -> None:
        """``shortcut + alpha * skip_gain * branch``, whose activation behind it keeps the variance."""
        owner = owner_of(merge.node)
        if not self._has_scale(merge.branch):
            end = self._insert(merge.branch, [merge.node], owner, "branch_scale")
            self.edited.units.add(str(end.target))
            self._note(str(end.target), "end of a branch", "Rescale", "the branch ends with variance 1")
            name = free_name(self.graph, owner, "skip")
            skip = SkipInit(self.alpha, self.skip_gain).to(self.like.device, self.like.dtype)
            self._after(end, name, skip, [merge.node])
            self._note(name, "addition of a branch", "SkipInit", "alpha * skip_gain at the branch's end")
        else:
            self._note(owner or "forward", "scaled branch", "the same", "the branch has a scale of its own")
        self._out_of_place(merge.node)
        self._activation(merge)
        if not merge.transition:
            self._fork(merge)

    def _out_of_place(self, node: fx.Node) -> None:
        if node.target is operator.iadd:
            node.target = operator.add
        elif node.target == "add_":
            node.target = "add"

    def _has_scale(self, branch: fx.Node) -> bool:
        """A branch that ends with a parameter of its own (layer scale)."""
        end = self.structure.through_moves(branch)
        return is_product(end) and any(not self.structure.is_signal(x) for x in end.all_input_nodes)

    def _activation(self, merge: Merge) -> None:
        """The activation behind a merge keeps the variance where it meets a new signal, or changes its own output."""
        for user in list(merge.node.users):
            if activation_of(user, self.modules) is None:
                continue
            if merge.transition or not is_idempotent(user, self.modules):
                factor = self._insert(user, list(user.users), owner_of(merge.node), "act_scale")
                self.edited.restores[str(factor.target)] = merge.node
                self._note(str(factor.target), "activation behind the merge", "Rescale", "gamma of this activation")

    def _fork(self, merge: Merge) -> None:
        """The signal on a shortcut has variance 1 where it starts."""
        origin = self.structure.through_moves(merge.fork)
        starts = [merge.node for merge in self.structure.merges]
        behind = origin.all_input_nodes[0] if activation_of(origin, self.modules) else origin
        own = origin in self.layers or origin in self.norms or origin in starts or behind in starts
        if own or isinstance(module_of(origin, dict(self.graph.named_modules())), Rescale):
            return
        if any(isinstance(module_of(u, dict(self.graph.named_modules())), Rescale) for u in merge.fork.users):
            return
        factor = self._insert(merge.fork, list(merge.fork.users), owner_of(merge.fork), "signal_scale")
        self.edited.units.add(str(factor.target))
        self._note(str(factor.target), "start of a shortcut", "Rescale", "the signal starts with variance 1")

    def _gate(self, gate: Gate) -> None:
        """A gate leaves the variance of its signal; a sigmoid by the factor 2."""
        owner = owner_of(gate.node)
        if is_left(owner or "forward", self.leave):
            return
        if is_sigmoid(self.structure.through_moves(gate.gate), self.modules):
            factor = self._insert(gate.gate, [gate.node], owner, "gate_scale", 2.0)
            why = "a sigmoid is about 1/2 at initialization"
            self._note(str(factor.target), "gate", "Rescale", why, 2.0, "theory")
            return
        factor = self._insert(gate.node, list(gate.node.users), owner, "gate_scale")
        self.edited.restores[str(factor.target)] = gate.signal
        self._note(str(factor.target), "gate", "Rescale", "the gated signal has the variance that it had")

    def _remove(self, norm: fx.Node) -> None:
        """A normalization behind a layer goes into it; another one becomes a factor."""
        name, source = str(norm.target), norm.args[0] if norm.args else norm.kwargs["input"]
        kind = type(self.modules[name]).__name__
        assert isinstance(source, fx.Node)
        gate = norm in self.structure.inside_gates
        parts = parts_behind(self.modules[name])
        if parts:  # they are called by themselves; nothing else of the normalization stays
            holder = nn.Module()
            for key, part in parts.items():
                holder.add_module(key, part)
            self.graph.set_submodule(name, holder)
        if source in self.layers and len(source.users) == 1:
            norm.replace_all_uses_with(source)
            self.graph.graph.erase_node(norm)
            self._note(name, kind, "removed", f"its place is taken by {source.target}")
            return
        path = free_name(self.graph, name, "scale") if parts else name
        self.graph.set_submodule(path, Rescale())
        with self.graph.graph.inserting_after(norm):
            new = self.graph.graph.call_module(path, (source,))
        new.meta = dict(norm.meta)
        self.structure.shapes[new.name] = self.structure.shape(norm)
        norm.replace_all_uses_with(new)
        self.graph.graph.erase_node(norm)
        self.edited.kept.add(path)  # even with a factor of 1, since what follows may change its input in place
        if not gate:
            self.edited.units.add(path)
        self._note(name, kind, "Rescale", "it follows no layer; its input is brought to variance 1")

    # The graph

    def _insert(self, node: fx.Node, users: list[fx.Node], owner: str, name: str, factor: float = 1.0) -> fx.Node:
        path = free_name(self.graph, owner, name)
        return self._after(node, path, Rescale(factor), users)

    def _after(self, node: fx.Node, path: str, module: nn.Module, users: list[fx.Node]) -> fx.Node:
        """A call of a new module behind a node, for some of its users."""
        self.graph.add_submodule(path, module)
        with self.graph.graph.inserting_after(node):
            new = self.graph.graph.call_module(path, (node,))
        new.meta = {}
        self.structure.shapes[new.name] = self.structure.shape(node)
        for user in users:
            user.replace_input_with(node, new)
        return new

    def _note(self, name: str, was: str, now: str, why: str, factor: float | None = None, source: str = "") -> None:
        self.edited.changes[name] = Change(name, was, now, why, factor, source)


def clean(edited: Edited) -> None:
    """Take factors of 1 out again, and modules that nothing calls; compile the graph's code."""
    graph = edited.graph
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        module = module_of(node, modules)
        name = str(node.target)
        if isinstance(module, Rescale) and module.factor == 1.0 and name not in edited.kept:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)
            edited.changes.pop(name, None)
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
