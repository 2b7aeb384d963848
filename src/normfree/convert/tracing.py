"""Reading a network as a graph: :mod:`torch.fx`, in which some modules stay whole."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from ..errors import UsageError
from .kinds import CONVOLUTIONS, is_normalization, module_of

_DROPOUTS = {"dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d}


class GraphTracer(fx.Tracer):
    """Traces into modules down to those that a conversion replaces, or takes as one operation.

    Whole stay the layers of torch, convolutions and normalizations of any class, what ``whole`` names, and modules
    without parameters and children that take one tensor, such as stochastic depth.
    """

    def __init__(self, whole: Collection[str] = ()):
        super().__init__()
        self.whole = set(whole)
        self.running: list[str] = []  # names of the modules that run; the last one where it failed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.whole or is_normalization(m) or isinstance(m, CONVOLUTIONS):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            name = self.path_of_module(m)
        except NameError as error:
            raise UsageError(_made_in_forward(self.root, self.running[-1] if self.running else "", m)) from error
        if len(args) == 1 and isinstance(args[0], fx.Proxy) and not kwargs and _is_bare(m):
            self.whole.add(name)
        self.running.append(name)
        result = super().call_module(m, forward, args, kwargs)
        self.running.pop()
        return result


def _is_bare(module: nn.Module) -> bool:
    return not module._modules and not module._parameters and not module._buffers


def trace(model: nn.Module, whole: Collection[str] = ()) -> fx.GraphModule:
    """The graph of a network, in which dropout follows the mode; its modules are those of ``model``.

    Args:
        whole: names of the modules that stay whole; their insides are left as they are.

    Raises:
        UsageError: the network decides by values, is not Python, or computes something else in training.
    """
    training = model.training
    graphs = {mode: _graph(model.train(mode), whole) for mode in (False, True)}
    for graph in graphs.values():
        _dropout_as_modules(graph)
    _check_same(graphs[False], graphs[True])
    graph = graphs[True]
    graph.train(training)
    graph.recompile()
    return graph


def read(model: nn.Module, whole: Collection[str] = ()) -> fx.GraphModule:
    """The graph of a network in training, with all that runs then; see :func:`trace`."""
    return _graph(model.train(), whole)


def _graph(model: nn.Module, whole: Collection[str]) -> fx.GraphModule:
    """The graph in the present mode; what cannot be traced and has nothing to convert in it stays whole."""
    whole = set(whole)
    while True:
        tracer = GraphTracer(whole)
        try:
            graph = tracer.trace(model)
        except (TraceError, TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            place = tracer.running[-1] if tracer.running else ""
            module = model.get_submodule(place)
            if place and not any(is_normalization(m) or isinstance(m, CONVOLUTIONS) for m in module.modules()):
                whole.add(place)
                continue
            raise UsageError(_untraceable(model, place, error)) from error
        return fx.GraphModule(tracer.root, graph, class_name=type(model).__name__)


def _untraceable(model: nn.Module, place: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    kind = type(model.get_submodule(place)).__name__
    where = f"{place} ({kind})" if place else kind
    hint = f'; leave=["{place}"] leaves it as it is' if place else ""
    return f"{where} cannot be read as a graph, because its forward depends on values: {reason}{hint}"


def _made_in_forward(model: nn.Module, place: str, made: nn.Module) -> str:
    kind = type(model.get_submodule(place)).__name__
    where = f"{place} ({kind})" if place else kind
    return (
        f"{where} cannot be read as a graph, because its forward makes a {type(made).__name__} each time, as slices of "
        "nn.Sequential do; make it once, in __init__"
    )


def _dropout_as_modules(graph: fx.GraphModule) -> None:
    """``F.dropout(x, p, training)`` has the mode as a constant; as a module it follows the mode."""
    for node in list(graph.graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in _DROPOUTS or not str(node.target.__module__).startswith("torch"):
            continue
        rate = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        path = free_name(graph, owner_of(node), "dropout")
        graph.add_submodule(path, _DROPOUTS[name](float(rate)))
        with graph.graph.inserting_after(node):
            replacement = graph.graph.call_module(path, (node.args[0] if node.args else node.kwargs["input"],))
        replacement.meta = dict(node.meta)
        node.replace_all_uses_with(replacement)
        graph.graph.erase_node(node)


def _check_same(evaluation: fx.GraphModule, training: fx.GraphModule) -> None:
    """Refuse a network whose training differs from its evaluation by more than what its modules do."""
    dead = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    steps = []
    for graph in (evaluation, training):
        modules = dict(graph.named_modules())
        steps.append([n for n in graph.graph.nodes if not isinstance(module_of(n, modules), dead)])
    for one, other in zip(*steps, strict=False):
        if (one.op, one.target) != (other.op, other.target) and one.op != "get_attr":
            place = owner_of(other) or "the network"
            raise UsageError(
                f"{place} computes something else in training ({other.name} where evaluation has {one.name}); "
                "build the network without it, for example without auxiliary classifiers (aux_logits=False)"
            )
    if len(steps[0]) != len(steps[1]):
        raise UsageError(f"{type(training).__name__} has {len(steps[1])} steps in training and {len(steps[0])} without")


def owner_of(node: fx.Node) -> str:
    """Name of the module in whose ``forward`` a node is."""
    if "owner" in node.meta:  # of the parts of a fused normalization
        return node.meta["owner"]
    stack = node.meta.get("nn_module_stack")
    names = [entry[0] if isinstance(entry, tuple) else str(key) for key, entry in (stack or {}).items()]
    name = names[-1] if names else ""
    if node.op == "call_module" and name == node.target:
        return name.rpartition(".")[0]
    return name


def free_name(graph: fx.GraphModule, owner: str, name: str) -> str:
    """A name in ``owner`` that no module or parameter has."""
    parent: Any = graph
    for part in owner.split(".") if owner else ():
        parent = getattr(parent, part, None)
    number, free = 1, name
    while hasattr(parent, free):
        number += 1
        free = f"{name}{number}"
    return f"{owner}.{free}" if owner else free


_PLACES = 2**17  # values of each channel that noise has at least, where 32 images are enough for it
_FEWEST, _MOST = 4, 32


def example_inputs(model: nn.Module, example: Any, *, seed: int = 1234) -> tuple[Tensor, ...]:
    """Inputs of a network: tensors as they are, or unit Gaussian noise of a shape.

    Of small images there is more noise than the shape says, since variances are measured on it.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if isinstance(example, Tensor):
        return (example.to(like.device),)
    if isinstance(example, Sequence) and example and all(isinstance(part, Tensor) for part in example):
        return tuple(part.to(like.device) for part in example)
    sizes = tuple(example) if isinstance(example, Sequence) and not isinstance(example, str) else ()
    if len(sizes) < 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise UsageError(
            f"example (={example!r:.60}) must be a tensor, several, or a shape such as (4, 3, 224, 224), with the batch"
        )
    images = max(sizes[0], _FEWEST, min(_MOST, _PLACES // math.prod(sizes[2:])))
    noise = torch.randn((images, *sizes[1:]), generator=torch.Generator().manual_seed(seed))
    return (noise.to(like.device, like.dtype),)


def node_shapes(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Shape of each node's value, by the node's name: a ``torch.Size``, a list of these, or None."""
    shapes: dict[str, Any] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            try:
                value = super().run_node(n)
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                place = f"{owner_of(n)}.{n.name}".strip(".")
                sizes = [tuple(x.shape) for x in inputs]
                raise UsageError(f"the network fails on example of shape {sizes[0]} at {place}: {reason}") from error
            shapes[n.name] = _shape(value)
            return value

    with evaluation(graph), torch.no_grad(), torch.random.fork_rng(devices=[]):
        Shapes(graph).run(*(x.clone() for x in inputs))
    return shapes


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the mode of each module is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, tuple | list) and value and all(isinstance(part, Tensor) for part in value):
        return [part.shape for part in value]
    return None
