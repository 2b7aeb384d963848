"""The signal's variance along a graph: by theory where there is one, measured on the example elsewhere.

Each node gets the variance that theory expects of it, from those of its inputs, and the one that the example has
there. Where the two agree, theory's is taken; where they do not, or where there is no theory (pooling, depthwise
convolutions of smooth maps, zeros around small maps), the measured one. Constants are set on the way, so that what
follows sees them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import UsageError, check_finite
from ..gain import activation_gain, variance_behind
from ..nn import BATCH_NORM, SkipInit
from .kinds import CONCATENATIONS, Modules, activation_of, is_move, is_product, is_sum, is_weighted, module_of
from .layers import Rescale
from .rebuild import Edited

TOLERANCE = 0.1  # between theory and measurement; gamma's and beta's are of this size
_ENOUGH = 8  # values per channel for a variance


@dataclass(frozen=True)
class Signal:
    """The variance of a node's value.

    Attributes:
        centred: it is about normal with mean 0, so that an activation's variance is known.
        source: "theory" or "measured".
        dim, channels: where its channels are, and how many.
    """

    variance: float
    centred: bool
    source: str
    dim: int = 1
    channels: int = 1


class Walk(fx.Interpreter):
    """Runs an edited graph once and sets its constants."""

    def __init__(self, edited: Edited):
        super().__init__(edited.graph, garbage_collect_values=True)
        self.edited = edited
        self.modules: Modules = dict(edited.graph.named_modules())
        self.signals: dict[fx.Node, Signal] = {}

    def run_node(self, n: fx.Node) -> Any:
        self._set_constant(n)
        out = super().run_node(n)
        if str(n.target) in self.edited.layers and n.op == "call_module":
            out = self._corrected(n, out)
        self.signals[n] = self._signal(n, out)
        return out

    # Constants

    def _set_constant(self, node: fx.Node) -> None:
        name = str(node.target)
        if node.op != "call_module":
            return
        module: Any = self.modules[name]
        before = self._input(node)
        if name in self.edited.layers and name not in self.edited.in_gates:
            module.input_scale = _root(before.variance)
            self._note(name, module.input_scale, before.source)
        elif name in self.edited.units:
            module.factor = _root(before.variance)
            self._note(name, module.factor, before.source)
        elif name in self.edited.restores:
            due = self.signals[self.edited.restores[name]]
            module.factor = math.sqrt(due.variance / before.variance) if before.variance > 0 else 1.0
            self._note(name, module.factor, before.source)

    def _corrected(self, node: fx.Node, out: Tensor) -> Tensor:
        """The layer's output with variance 1, where theory misses it."""
        name = str(node.target)
        measured = _measured(out, _dim_behind(self.modules[name]))
        if name in self.edited.in_gates or measured is None or abs(measured - 1) <= TOLERANCE or measured <= 0:
            return out
        module: Any = self.modules[name]
        module.input_scale *= measured**-0.5
        self._note(name, module.input_scale, "measured")
        return super().run_node(node)

    def _note(self, name: str, factor: float, source: str) -> None:
        change = self.edited.changes.get(name)
        if change is not None:
            change.factor, change.source = factor, source

    # Variances

    def _input(self, node: fx.Node) -> Signal:
        known = [self.signals[x] for x in node.all_input_nodes if x in self.signals]
        return known[0] if known else Signal(1.0, False, "theory")

    def _signal(self, node: fx.Node, out: Any) -> Signal:
        before = self._input(node)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return before
        layer = is_weighted(node, self.modules) or (node.op == "call_module" and node.target in self.edited.layers)
        dim = _dim_behind(self.modules[str(node.target)]) if layer else _moved(node, self.modules, before.dim, out)
        channels = out.shape[dim] if -out.ndim <= dim < out.ndim else 1
        expected, measured = self._expected(node), _measured(out, dim)
        if expected is None:
            value = before.variance if measured is None else measured
            return Signal(value, False, "measured", dim, channels)
        variance, centred, source = expected
        if measured is None or abs(measured - variance) <= TOLERANCE * variance:
            return Signal(variance, centred, source, dim, channels)
        return Signal(measured, centred, "measured", dim, channels)

    def _expected(self, node: fx.Node) -> tuple[float, bool, str] | None:
        """Theory's variance, whether the value is about normal, and where the number comes from; None: no theory."""
        inputs = [self.signals[x] for x in node.all_input_nodes if x in self.signals]
        source = "measured" if any(x.source == "measured" for x in inputs) else "theory"
        module = module_of(node, self.modules)
        if node.op == "placeholder":
            return 1.0, True, "theory"
        if str(node.target) in self.edited.layers and module is not None:
            return 1.0, True, "theory"
        if isinstance(module, Rescale):
            return inputs[0].variance * module.factor**2, inputs[0].centred, source
        if isinstance(module, SkipInit):
            return inputs[0].variance * module.scale().item() ** 2, inputs[0].centred, source
        if activation := activation_of(node, self.modules):
            return self._behind(activation, inputs[0])
        if node.target in CONCATENATIONS:
            return self._concatenated(node, inputs, source)
        if is_sum(node) and len(inputs) == 2:
            return inputs[0].variance + inputs[1].variance, all(x.centred for x in inputs), source
        if is_product(node) or is_weighted(node, self.modules):
            return None
        if is_move(node, self.modules) and inputs:
            return inputs[0].variance, inputs[0].centred, source
        return None

    def _behind(self, activation: Callable[[Tensor], Tensor], before: Signal) -> tuple[float, bool, str] | None:
        if not before.centred:
            return None
        key = repr(activation) if isinstance(activation, nn.Module) else activation
        return _activated(_Function(key, activation), float(f"{before.variance:.3g}")), False, before.source

    def _concatenated(self, node: fx.Node, inputs: list[Signal], source: str) -> tuple[float, bool, str] | None:
        """The mean over channels: each part has a share of them."""
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        if not isinstance(parts, list | tuple) or not all(isinstance(part, fx.Node) for part in parts):
            return None
        signals = [self.signals[part] for part in parts if isinstance(part, fx.Node)]
        total = sum(x.channels * x.variance for x in signals) / sum(x.channels for x in signals)
        return total, all(x.centred for x in inputs), source


@dataclass(frozen=True)
class _Function:
    """An activation that is compared by its name."""

    key: Any
    function: Callable[[Tensor], Tensor]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=512)
def _activated(activation: _Function, variance: float) -> float:
    """Variance behind a bare activation of a normal signal."""
    function = activation.function
    if isinstance(function, nn.Module) and getattr(function, "inplace", False):
        function = _out_of_place(function)
    return variance_behind(function, variance) / activation_gain(function) ** 2


def _out_of_place(module: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x.clone())


def _root(variance: float) -> float:
    return variance**-0.5 if variance > 0 and math.isfinite(variance) else 1.0


def _measured(x: Any, dim: int) -> float | None:
    """Average channel variance; None: too few values to tell."""
    if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or not -x.ndim <= dim < x.ndim:
        return None
    x = x.detach().movedim(dim, 0).flatten(1)
    if x.shape[1] < _ENOUGH:
        return None
    variance = x.float().var(1).mean().item()
    return variance if math.isfinite(variance) else None


def _dim_behind(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) or "Linear" in type(module).__name__ else 1


def _moved(node: fx.Node, modules: Modules, dim: int, out: Tensor) -> int:
    """The channels' place behind a permutation."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    order: Any = getattr(module_of(node, modules), "dims", None)  # of torchvision's Permute
    if name == "permute":
        order = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], list | tuple) else node.args[1:]
    if order and all(isinstance(i, int) for i in order) and len(order) == out.ndim:
        return [i % out.ndim for i in order].index(dim % out.ndim)
    return dim


@contextmanager
def prepared(graph: fx.GraphModule) -> Iterator[None]:
    """Evaluation mode, but batch statistics for normalizations that were left; skip gains of 1. Restored afterwards."""
    modes = {module: module.training for module in graph.modules()}
    buffers = {name: buffer.clone() for name, buffer in graph.named_buffers()}
    gains = [module.skip_gain for module in graph.modules() if isinstance(module, SkipInit)]
    values = [gain.detach().clone() for gain in gains]
    try:
        graph.eval()
        for module in graph.modules():
            module.training = isinstance(module, BATCH_NORM)
        with torch.no_grad():
            for gain in gains:
                gain.fill_(1.0)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for gain, value in zip(gains, values, strict=True):
                gain.copy_(value)
            for name, buffer in graph.named_buffers():
                buffer.copy_(buffers[name])


@torch.no_grad()
def set_constants(edited: Edited, inputs: tuple[Tensor, ...]) -> None:
    """Find the factors of an edited graph, in one pass of the inputs through it."""
    with prepared(edited.graph), torch.random.fork_rng(devices=[]):
        Walk(edited).run(*(x.clone() for x in inputs))


def take_constants(edited: Edited, constants: Mapping[str, float]) -> None:
    """Give the factors of an edited graph these values; one that is not among them is 1.

    Raises:
        UsageError: a name that has no factor, or a value that is no finite number.
    """
    modules: Modules = dict(edited.graph.named_modules())
    for name, value in constants.items():
        module: Any = modules.get(name)
        check_finite(f"constants[{name!r:.80}]", value)
        if name in edited.layers and name not in edited.in_gates:
            module.input_scale = float(value)
        elif isinstance(module, Rescale):
            module.factor = float(value)
        else:
            raise UsageError(f"constants names {name!r:.80}, which has none in this conversion")
        if (change := edited.changes.get(name)) is not None:
            change.factor, change.source = float(value), "given"
