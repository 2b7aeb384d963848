"""Where the parameters of a network meet examples, found while it runs.

A :class:`Tape` sees each function of torch that a forward pass calls. What does not depend on the examples (weights,
their standardization, ``alpha * skip_gain``) is computed once and is left alone. Where it meets examples, the tape puts
its own operation in place: a convolution or linear layer, or a sum or product, with the same values. In the backward
pass this operation either notes what the gradient of each example is (:meth:`Tape.measuring`) or sums over examples as
usual. So parameters that are folded into other layers need no rules of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UsageError
from ..nn import SameConv
from .layers import Convolution, Layer, Linear
from .weights import Source, source_of

_PARAMETER, _EXAMPLES, _LAYERS = 1, 2, 4  # what a tensor depends on; layers: examples behind a first layer
_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
# functions of broadcast tensors, element by element
_ELEMENTWISE = {
    getattr(where, name)
    for name in ("add", "sub", "mul", "div", "true_divide", "addcmul", "lerp", "rsub")
    for where in (torch, Tensor)
    if hasattr(where, name)
} | {
    getattr(Tensor, f"__{prefix}{name}__")
    for name in ("add", "sub", "mul", "truediv")
    for prefix in ("", "r", "i")
    if hasattr(Tensor, f"__{prefix}{name}__")
}


@dataclass
class Use:
    """A layer that uses a weight.

    Attributes:
        source: how the weight depends on parameters; None: it is not trained.
        weight, bias: as the layer uses them, with their graph.
        passes_on: whether a layer lies before it, so that it needs the gradient of its input.
    """

    tape: "Tape"
    layer: Layer
    weight: Tensor
    bias: Tensor | None
    source: Source | None
    passes_on: bool


class _Apply(torch.autograd.Function):
    """A layer whose weight meets examples; ``anchor`` makes it part of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, anchor: Tensor, use: Use) -> Tensor:
        ctx.use, ctx.meets = use, _EXAMPLES | _LAYERS
        ctx.save_for_backward(x, weight)
        return use.layer(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        use: Use = ctx.use
        x, weight = ctx.saved_tensors
        measuring = use.tape.note is not None
        if use.tape.note is not None:
            use.tape.note(use, x, grads[0])
        wanted = use.passes_on, not measuring and ctx.needs_input_grad[1], not measuring and ctx.needs_input_grad[2]
        return *use.layer.backward(grads[0], x, weight, wanted), None, None


class _Spread(torch.autograd.Function):
    """What depends on parameters alone, once for each example: (*shape) -> (rows, 1, ..., *shape)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, tape: "Tape", source: Tensor, ndim: int) -> Tensor:
        ctx.tape, ctx.source, ctx.shape, ctx.meets = tape, source, value.shape, _EXAMPLES | _LAYERS
        inner = value.shape[1:] if value.ndim == ndim else (1,) * (ndim - 1 - value.ndim) + tuple(value.shape)
        if value.ndim == ndim and value.shape[0] != 1:  # a value for each example, as with a mask of stochastic depth
            return value.clone()
        return value.reshape(1, *inner).repeat(tape.rows, *(1,) * len(inner))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), tape = grads, ctx.tape
        each = len(ctx.shape) == grad.ndim and ctx.shape[0] != 1
        if tape.note is None:
            return grad if each else grad.sum(0).reshape(ctx.shape), None, None, None, None
        rows = grad.reshape(tape.rows, *ctx.shape[1:]) if each else grad.reshape(tape.rows, *ctx.shape)
        if each:
            rows = torch.eye(tape.rows, dtype=grad.dtype, device=grad.device).view(
                tape.rows, tape.rows, *(1,) * (grad.ndim - 1)
            ) * rows.unsqueeze(0)
        tape.add(ctx.source, rows)
        return None, None, None, None, None


class _Mark(torch.autograd.Function):
    """The network's inputs: examples."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor) -> Tensor:
        ctx.meets = _EXAMPLES
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class Tape(TorchFunctionMode):
    """Runs a network such that the gradient of each example can be measured; see the module.

    Args:
        parameters: of the network, by name; those that are trained.
        rows: examples in the batch, times their views.

    Attributes:
        note: called in the backward pass with each layer, its input and the gradient of its output; None: gradients
            are summed over examples as usual.
        added: tensors that depend on parameters alone, with their gradients for each row.
        uses: how often each parameter is the weight of a layer, by its ``id``.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rows: int):
        super().__init__()
        self.names = {id(p): name for name, p in parameters.items()}
        self.rows = rows
        device = next(iter(parameters.values())).device
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.leaf = torch.zeros((), device=device, requires_grad=True)
        self.note: Callable[[Use, Tensor, Tensor], None] | None = None
        self.added: list[tuple[Tensor, Tensor]] = []
        self.uses: dict[int, int] = {}
        self.running: list[tuple[nn.Module, Tensor | None]] = []
        self._kinds: dict[Any, int] = {}

    def run(self, model: nn.Module, inputs: Iterable[Any]) -> Tensor:
        """The network's output for a batch.

        Raises:
            UsageError: a parameter meets examples in another way than those that are known; the output is no tensor.
        """
        handles = []
        for module in model.modules():
            if isinstance(module, SameConv):
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
        marked = [_Mark.apply(x, self.leaf) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
        try:
            with self:
                output = model(*marked)
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != self.rows:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UsageError(f"the output ({shape}) must be a tensor with a row for each of {self.rows} examples")
        self.kind(output)
        return output

    @contextmanager
    def measuring(self, note: Callable[[Use, Tensor, Tensor], None]) -> Iterator[None]:
        """Backward passes inside note the gradient of each example, and leave parameters alone."""
        self.note, self.added = note, []
        try:
            yield
        finally:
            self.note = None

    def add(self, tensor: Tensor, rows: Tensor) -> None:
        """Note the gradient (rows, *shape) of a tensor for each row."""
        self.added.append((tensor, rows))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        scale = args[1] if len(args) > 1 else kwargs.get("scale")
        self.running.append((module, scale))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_grad_enabled():
            if func in _CONVOLUTIONS:
                return self._convolution(func, *args, **kwargs)
            if func is F.linear:
                return self._linear(*args, **kwargs)
            if func in _ELEMENTWISE:
                args = self._spread(args, [*args, *kwargs.values()])
            elif func in (F.group_norm, F.layer_norm):
                return self._norm(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _convolution(
        self,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if not self._meet(input, weight, bias):
            return func(input, weight, bias, stride, padding, dilation, groups)
        dims = _CONVOLUTIONS[func]
        stride, dilation = _each(stride, dims), _each(dilation, dims)
        if isinstance(padding, str):
            input, padding = _padded(input, padding, weight.shape[2:], dilation)
        layer = Convolution(stride, _each(padding, dims), dilation, groups)
        return self._apply(layer, input, weight, bias)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self._meet(input, weight, bias) or input.ndim < 2:
            return F.linear(input, weight, bias)
        return self._apply(Linear(), input, weight, bias)

    def _apply(self, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) != self.rows:
            raise UsageError(
                f"a layer with {self._names(weight)} sees {len(x)} rows, where the batch has {self.rows}: the "
                "gradients of its examples cannot be told apart"
            )
        source = None
        if self.kind(weight) & _PARAMETER:
            module, scale = self.running[-1] if self.running else (None, None)
            source = source_of(weight, module, scale, id(weight) in self.names)
            self._count(weight)
        passes_on = bool(self.kind(x) & _LAYERS)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        use = Use(self, layer, weight, bias, source, passes_on)
        with torch.autocast(device, enabled=False):
            return _Apply.apply(x, weight, bias, self.anchor, use)

    def _norm(self, func: Any, input: Tensor, groups: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5):
        """The normalization without gain and bias, then these."""
        out = func(input, groups, None, None, eps)
        last = (-1,) if func is F.group_norm else tuple(groups)
        places = (1,) * (input.ndim - 2) if func is F.group_norm else ()
        for value, function in ((weight, torch.mul), (bias, torch.add)):
            if value is not None:
                value = value.view(*last, *places)
                out = function(*self._spread((out, value), (out, value)))
        return out

    def _spread(self, args: tuple[Any, ...], every: Iterable[Any]) -> tuple[Any, ...]:
        """Arguments with a row for each example in place of what depends on parameters alone, if it meets examples."""
        tensors = [value for value in every if isinstance(value, Tensor)]
        kinds = [self.kind(value) for value in tensors]
        if _PARAMETER not in kinds or not any(kind & _EXAMPLES for kind in kinds):
            return args
        ndim = max(value.ndim for value in tensors)
        for value, kind in zip(tensors, kinds, strict=True):
            if kind & _EXAMPLES and (value.ndim != ndim or len(value) != self.rows):
                raise UsageError(
                    f"{' and '.join(self._names(v) for v, k in zip(tensors, kinds, strict=True) if k == _PARAMETER)} "
                    f"meets a tensor of shape {tuple(value.shape)} that has no row for each of {self.rows} examples"
                )
        for value, kind in zip(tensors, kinds, strict=True):
            if kind == _PARAMETER:
                self._count(value)
                if value.ndim == ndim and len(value) not in (1, self.rows):
                    raise UsageError(
                        f"{self._names(value)} meets examples with {len(value)} rows instead of {self.rows}"
                    )
        return tuple(
            _Spread.apply(value, self.anchor, self, value, ndim)
            if isinstance(value, Tensor) and self.kind(value) == _PARAMETER
            else value
            for value in args
        )

    def _meet(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether examples meet parameters here."""
        used = self.kind(weight) | (0 if bias is None else self.kind(bias))
        return bool(self.kind(x) & _EXAMPLES and used & _PARAMETER)

    def _count(self, tensor: Tensor) -> None:
        for parameter in self.parameters_of(tensor):
            self.uses[id(parameter)] = self.uses.get(id(parameter), 0) + 1

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on parameters alone."""
        return self.kind(tensor) == _PARAMETER

    def kind(self, tensor: Tensor) -> int:
        """Whether a tensor depends on parameters, on examples, or on neither.

        Raises:
            UsageError: an operation that the tape does not know has brought both together.
        """
        if not tensor.requires_grad:
            return 0
        if tensor.grad_fn is None:
            return _PARAMETER if id(tensor) in self.names else 0
        stack = [tensor.grad_fn]
        while stack:
            node = stack[-1]
            if node in self._kinds:
                stack.pop()
                continue
            if (own := self._own_kind(node)) is not None:
                self._kinds[stack.pop()] = own
                continue
            inputs = [child for child, _ in node.next_functions if child is not None]
            unknown = [child for child in inputs if child not in self._kinds]
            stack += unknown
            if not unknown:
                kinds = [self._kinds[child] for child in inputs]
                self._kinds[stack.pop()] = self._joined(node, inputs, kinds)
        return self._kinds[tensor.grad_fn]

    def _joined(self, node: Any, inputs: list[Any], kinds: list[int]) -> int:
        if _PARAMETER in kinds and any(kind & _EXAMPLES for kind in kinds):
            names = {
                name
                for child, kind in zip(inputs, kinds, strict=True)
                if kind == _PARAMETER
                for name in self._parameter_names(child)
            }
            raise UsageError(
                f"{', '.join(sorted(names)[:4])} meets examples in {node.name().removesuffix('Backward0')}, for which "
                "gradients of each example are not known; they are for convolutions, linear layers, sums and products"
            )
        joined = 0
        for kind in kinds:
            joined |= kind
        return joined

    def _own_kind(self, node: Any) -> int | None:
        """Of leaves and of the tape's own operations."""
        variable = getattr(node, "variable", None)
        if variable is not None:
            return _PARAMETER if id(variable) in self.names else 0
        return getattr(node, "meets", None)  # as the tape's operations say when they run

    def parameters_of(self, tensor: Tensor) -> list[Tensor]:
        """The trained parameters that a tensor depends on."""
        if tensor.grad_fn is None:
            return [tensor] if id(tensor) in self.names else []
        return _leaves(tensor.grad_fn, self.names)

    def _parameter_names(self, node: Any) -> list[str]:
        return [self.names[id(p)] for p in _leaves(node, self.names)]

    def _names(self, tensor: Tensor) -> str:
        return ", ".join(self.names[id(p)] for p in self.parameters_of(tensor)) or "a constant"


def _leaves(node: Any, known: Mapping[int, str]) -> list[Tensor]:
    """The parameters in a graph."""
    found: dict[int, Tensor] = {}
    stack, seen = [node], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in known:
            found[id(variable)] = variable
        stack += [child for child, _ in node.next_functions if child is not None]
    return list(found.values())


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """A number, or a sequence of one, for each dimension."""
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _padded(x: Tensor, padding: str, kernel: torch.Size, dilation: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The input for torch's padding "same" or "valid", and what is left to the convolution."""
    total = [(size - 1) * step if padding == "same" else 0 for size, step in zip(kernel, dilation, strict=True)]
    if not any(pad % 2 for pad in total):
        return x, tuple(pad // 2 for pad in total)
    return F.pad(x, [side for pad in reversed(total) for side in (pad // 2, pad - pad // 2)]), (0,) * len(total)
