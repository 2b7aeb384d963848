"""What a graph consists of: residual merges, plain sums, gates, and the layers between them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from .kinds import (
    CONCATENATIONS,
    Modules,
    activation_of,
    is_move,
    is_normalization,
    is_product,
    is_resizing,
    is_sigmoid,
    is_sum,
    is_weighted,
    module_of,
)


@dataclass(frozen=True)
class Merge:
    """A residual merge.

    Attributes:
        node: the addition.
        shortcut, branch: its operands.
        fork: the value that both come from.
        transition: the shortcut has a layer of its own.
    """

    node: fx.Node
    shortcut: fx.Node
    branch: fx.Node
    fork: fx.Node
    transition: bool


@dataclass(frozen=True)
class Gate:
    """A product of a signal with a gate, which has one value per channel or place: ``signal * gate``."""

    node: fx.Node
    signal: fx.Node
    gate: fx.Node


@dataclass
class Structure:
    """A graph, read.

    Attributes:
        norms: nodes that call a normalization, in order.
        inside_gates: nodes from which only gates are computed.
    """

    graph: fx.GraphModule
    shapes: dict[str, Any]
    modules: Modules = field(init=False)
    nodes: list[fx.Node] = field(init=False)
    norms: list[fx.Node] = field(init=False)
    gates: list[Gate] = field(init=False)
    inside_gates: set[fx.Node] = field(init=False)
    merges: list[Merge] = field(init=False)

    def __post_init__(self) -> None:
        self.modules = dict(self.graph.named_modules())
        self.nodes = list(self.graph.graph.nodes)
        self._number = {node: i for i, node in enumerate(self.nodes)}
        self._above = self._ancestors()
        self.norms = [n for n in self.nodes if _calls_norm(n, self.modules)]
        self.gates = [gate for node in self.nodes if (gate := self._gate(node))]
        self.inside_gates = set().union(*(self._only_gate(gate) for gate in self.gates)) if self.gates else set()
        self.merges = [merge for node in self.nodes if is_sum(node) and (merge := self._merge(node))]

    def _ancestors(self) -> dict[fx.Node, int]:
        """Of each node, a set of numbers in one integer: those of the nodes that it is computed from."""
        above: dict[fx.Node, int] = {}
        for node in self.nodes:
            above[node] = 0
            for source in node.all_input_nodes:
                above[node] |= above[source] | 1 << self._number[source]
        return above

    def is_above(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether ``other`` is computed from ``node``."""
        return bool(self._above[other] >> self._number[node] & 1)

    def shape(self, node: fx.Node) -> Any:
        return self.shapes.get(node.name)

    @cached_property
    def _inputs(self) -> int:
        return sum(1 << i for i, node in enumerate(self.nodes) if node.op == "placeholder")

    def is_signal(self, node: fx.Node) -> bool:
        """Whether it is computed from the network's input, not from parameters alone."""
        return node.op == "placeholder" or bool(self._above[node] & self._inputs)

    def through_moves(self, node: fx.Node) -> fx.Node:
        """The node whose values this one has, behind what only moves them (dropout, permutation, stochastic depth)."""
        while is_move(node, self.modules) and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    # Gates

    def _gate(self, node: fx.Node) -> Gate | None:
        if not is_product(node):
            return None
        a, b = node.all_input_nodes if len(node.all_input_nodes) == 2 else (node, node)
        if a is b or not (self.is_signal(a) and self.is_signal(b)):
            return None
        one, two = self.shape(a), self.shape(b)
        if not hasattr(one, "numel") or not hasattr(two, "numel") or len(one) != len(two) or len(one) < 3:
            return None
        own = [size.numel() for size in (one, two)]
        if own[0] == own[1]:  # expanded, as in SENet's scale of some networks, or an activation x * sigmoid(x)
            sure = [self._is_gate_function(x) and not self._is_gate_function(y) for x, y in ((a, b), (b, a))]
            if sure[0] == sure[1]:
                return None
            return Gate(node, b, a) if sure[0] else Gate(node, a, b)
        return Gate(node, b, a) if own[0] < own[1] else Gate(node, a, b)

    def _is_gate_function(self, node: fx.Node) -> bool:
        return is_sigmoid(self.through_moves(node), self.modules)

    def _only_gate(self, gate: Gate) -> set[fx.Node]:
        """Nodes that the gate is computed from, and its signal is not."""
        numbers = (self._above[gate.gate] | 1 << self._number[gate.gate]) & ~self._above[gate.signal]
        numbers &= ~(1 << self._number[gate.signal])
        return {self.nodes[i] for i in _bits(numbers)}

    # Merges

    def _merge(self, node: fx.Node) -> Merge | None:
        """The residual merge of an addition; None: a plain sum of signals, or a shift."""
        a, b = node.args
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        if a is b or not (self.is_signal(a) and self.is_signal(b)) or node in self.inside_gates:
            return None
        shape = self.shape(a)
        if not hasattr(shape, "numel") or shape != self.shape(b) or len(shape) < 3:
            return None
        above_a, above_b = (self._above[x] | 1 << self._number[x] for x in (a, b))
        common = above_a & above_b
        if not common:
            return None
        fork = self.nodes[common.bit_length() - 1]
        if not hasattr(self.shape(fork), "numel"):  # parts of one value, as in Res2Net: none of them is a shortcut
            return None
        depths = [self.depth(fork, x) for x in (a, b)]
        if depths[0] == depths[1]:
            return None
        shortcut, branch = (a, b) if depths[0] < depths[1] else (b, a)
        between = [*self.between(fork, branch), branch]
        if any(is_resizing(n, self.modules) for n in between) or not self._is_shortcut(fork, shortcut):
            return None
        return Merge(node, shortcut, branch, fork, min(depths) > 0)

    def depth(self, fork: fx.Node, node: fx.Node) -> int:
        """Layers with weights on the longest way from one node to another."""
        depths = {fork: 0}
        for other in [*self.between(fork, node), node]:
            known = [depths[n] for n in other.all_input_nodes if n in depths]
            if known and other is not fork:
                depths[other] = max(known) + is_weighted(other, self.modules)
        return depths.get(node, 0)

    def between(self, fork: fx.Node, node: fx.Node) -> list[fx.Node]:
        """Nodes on the ways from one node to another, both left out."""
        first = self._number[fork]
        numbers = self._above[node] >> (first + 1) << (first + 1)
        return [self.nodes[i] for i in _bits(numbers) if self.is_above(fork, self.nodes[i])]

    def _is_shortcut(self, fork: fx.Node, shortcut: fx.Node) -> bool:
        """The signal, or at most two layers of it without an activation between."""
        way = self.between(fork, shortcut) + ([shortcut] if shortcut is not fork else [])
        if self.depth(fork, shortcut) > 2 or any(is_sum(n) or is_product(n) for n in way):
            return False
        if any(n.target in CONCATENATIONS and self.depth(fork, n) for n in way):
            return False
        return not any(activation_of(n, self.modules) and self.depth(fork, n) for n in way)


def _calls_norm(node: fx.Node, modules: Modules) -> bool:
    module = module_of(node, modules)
    return module is not None and is_normalization(module)


def _bits(numbers: int) -> list[int]:
    """The numbers of a set in one integer, in order."""
    found, at = [], 0
    while numbers:
        skip = (numbers & -numbers).bit_length() - 1
        at += skip
        found.append(at)
        numbers >>= skip + 1
        at += 1
    return found
