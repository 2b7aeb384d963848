"""Does another implementation of Adaptive Gradient Clipping clip what it should? (NFNets, eq. 3)"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import clip_gradient
from ..words import counted

CLIPPING, EPS = 0.02, 1e-3
TOLERANCE = 1e-4  # of a tensor's norm: float32 gives 1e-7, torch's own 1e-6 beside a norm up to 1e-5
_SHAPES = {
    "linear": (6, 10),
    "conv1d": (6, 4, 3),
    "conv2d": (6, 4, 3, 3),
    "conv3d": (6, 4, 2, 3, 3),
    "grouped conv2d": (6, 2, 3, 3),
    "depthwise conv2d": (6, 1, 3, 3),
    "bias": (6,),
    "gain": (6,),
    "gain, (out, 1, 1, 1)": (6, 1, 1, 1),
    "skip gain": (1,),
}
_TRANSPOSED = (4, 6, 3, 3)

Clip = Callable[[Tensor, Tensor], Tensor]  # of a weight and its gradient


@dataclass(frozen=True)
class LayerClipping:
    """What a function does to one kind of parameter.

    Attributes:
        layer: kind; shape: of the tensor.
        reason: how it differs from Adaptive Gradient Clipping; "" where it does not.
    """

    layer: str
    shape: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True)
class ClippingCheck:
    """Result of :func:`check_clipping`; ``str`` of it is a table.

    Attributes:
        function: its name.
        layers: one for each kind of parameter.
        notes: what is no fault, but should be known.
    """

    function: str
    layers: list[LayerClipping]
    notes: list[str] = field(default_factory=list)

    @property
    def differing(self) -> list[LayerClipping]:
        """The kinds of parameters that are clipped otherwise."""
        return [one for one in self.layers if one.reason]

    def __str__(self) -> str:
        head = f"{self.function}: {len(self.differing)} of {counted(len(self.layers), 'kind')} of parameters differ"
        rows = [(f"{one.layer} {_sizes(one.shape)}", one.reason or "as it should be") for one in self.layers]
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:{width}}  {said}" for name, said in rows]
        return "\n".join([head, *lines, *(f"  note: {note}" for note in self.notes)])


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def check_clipping(function: Callable[..., Any], *, clipping: float = CLIPPING, eps: float = EPS) -> ClippingCheck:
    """Compare a function that clips gradients in place with Adaptive Gradient Clipping (NFNets, eq. 3).

    It is called with random weights and gradients of linear layers, convolutions of one to three dimensions, grouped
    and depthwise ones, biases and gains: some units above the bound and some below, weights of 0, gradients of 0. The
    expected result has one norm for each row of a weight, over its whole fan-in, and one for each vector, with
    ``max(|W|, eps)``. Where it differs, what else it may be is tried out.

    Args:
        function: called as ``function(parameters, clipping, eps)``, a list of parameters with ``.grad``; an argument
            whose name has "eps" in it is passed by name, and left out where there is none. One whose first argument is
            called "model" gets a module with the parameters.
        clipping, eps: that it is called with.

    Raises:
        UsageError: it is no function of at least two arguments.

    Example:
        >>> from timm.utils.agc import adaptive_clip_grad
        >>> [(one.layer, one.reason) for one in check_clipping(adaptive_clip_grad).differing]
        [('gain, (out, 1, 1, 1)', 'each element has its own norm; a vector is one unit')]
    """
    call = _caller(function, clipping, eps)
    name = getattr(function, "__name__", type(function).__name__)
    layers = [LayerClipping(layer, shape, _reason(call, layer, clipping, eps)) for layer, shape in _SHAPES.items()]
    return ClippingCheck(name, layers, _notes(function, call, clipping, eps))


def _caller(function: Callable[..., Any], clipping: float, eps: float) -> Callable[[list[nn.Parameter]], Any]:
    """The function of parameters alone."""
    if not callable(function):
        raise UsageError(f"function (={function!r}) must be callable, as function(parameters, clipping, eps)")
    try:
        names = [p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    except (TypeError, ValueError):
        return lambda parameters: function(parameters, clipping, eps)
    if len(names) < 2:
        raise UsageError(f"function (of arguments {names}) must take parameters and a threshold, and may take an eps")
    others = [name for name in names[1:] if "eps" not in name.lower()]
    epsilons = [name for name in names[1:] if "eps" in name.lower()]
    settings = {others[0]: clipping} if others else {}
    settings |= {epsilons[0]: eps} if epsilons else {}
    module = names[0] == "model"
    return lambda parameters: function(nn.ParameterList(parameters) if module else parameters, **settings)


def _expected(weight: Tensor, grad: Tensor, clipping: float, eps: float) -> Tensor:
    """Ours; a vector of whatever shape is one unit."""
    if weight.squeeze().ndim <= 1:
        return clip_gradient(weight.flatten(), grad.flatten(), clipping, eps).view_as(grad)
    return clip_gradient(weight, grad, clipping, eps)


def _example(shape: tuple[int, ...], clipping: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and its gradient, whose norms differ between units, inputs and places; half of the units are clipped."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    weight, grad = 0.2 * draw(*shape), draw(*shape)  # norms about 1, where eps shows beside them
    for dim, size in enumerate(shape):
        view = [size if d == dim else 1 for d in range(len(shape))]
        weight, grad = weight * (0.3 * draw(size).view(view)).exp(), grad * (0.3 * draw(size).view(view)).exp()
    if weight.squeeze().ndim <= 1:
        return weight, grad * 3 * clipping * weight.norm() / grad.norm()
    ratio = clipping * 3.0 ** torch.linspace(-1, 1, shape[0]).view(-1, *(1,) * (len(shape) - 1))
    dims = tuple(range(1, len(shape)))
    norms = [torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (weight, grad)]
    return weight, grad * ratio * norms[0] / norms[1]


def _run(call: Callable[[list[nn.Parameter]], Any], pairs: Iterable[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """The gradients afterwards, of parameters with these values and gradients."""
    parameters = []
    for weight, grad in pairs:
        parameters.append(nn.Parameter(weight.clone()))
        parameters[-1].grad = None if grad is None else grad.clone()
    call(parameters)
    return [p.grad for p in parameters if p.grad is not None]


def _reason(call: Callable[[list[nn.Parameter]], Any], layer: str, clipping: float, eps: float) -> str:
    """How the function differs for one kind of parameter; "" if it does not."""
    weight, grad = _example(_SHAPES[layer], clipping)
    try:
        (alone,) = _run(call, [(weight, grad)])
        others = [_example(shape, clipping, seed) for seed, shape in enumerate(_SHAPES.values(), start=1)]
        together, *_ = _run(call, [(weight, grad), (weight, None), *others])
        zeros, *_ = _run(call, [(torch.zeros_like(weight), grad)])
        small, *_ = _run(call, [(weight, grad * 1e-3)])
        still, *_ = _run(call, [(weight, torch.zeros_like(grad))])
    except Exception as error:  # it is the user's code
        return f"it fails: {type(error).__name__}: {' '.join(str(error).split())}"
    if not _close(together, alone):
        return "it depends on the other gradients: one norm for all, instead of one for each unit"
    if not _close(alone, _expected(weight, grad, clipping, eps)):
        return _otherwise(weight, grad, alone, clipping, eps)
    if not _close(small, grad * 1e-3):
        return "gradients below the bound are changed"
    if not bool(torch.isfinite(still).all()):
        return "gradients of 0 become nan"
    if not _close(zeros, _expected(torch.zeros_like(weight), grad, clipping, eps)):
        return _epsilon(zeros, grad, clipping, eps)
    return ""


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= TOLERANCE * b.norm())


def _otherwise(weight: Tensor, grad: Tensor, found: Tensor, clipping: float, eps: float) -> str:
    """What the function seems to do instead."""
    vector = weight.squeeze().ndim <= 1
    if vector:
        weight, grad, found = weight.flatten(), grad.flatten(), found.flatten()
    for said, clip in _alternatives(weight.ndim, clipping, eps).items():
        if _close(found, clip(weight, grad)):
            return said + ("; a vector is one unit" if vector and said == _EACH else "")
    units = [x.reshape(1, -1) if vector else x.flatten(1) for x in (weight, grad, found)]
    norms = [torch.linalg.vector_norm(x, dim=1) for x in units]
    clipped = norms[2] < norms[1] * (1 - TOLERANCE)
    if not bool(clipped.any()):
        return "gradients are not made smaller"
    ratios = (norms[2] / norms[0].clamp(min=eps))[clipped]
    if bool((ratios - ratios[0]).abs().max() <= TOLERANCE * ratios[0]):
        return f"the threshold is {ratios[0].item():.3g} instead of {clipping:.3g}"
    return "it is clipped in another way, which is none of the usual ones"


_EACH = "each element has its own norm"


def _alternatives(ndim: int, clipping: float, eps: float) -> dict[str, Clip]:
    """Mistakes that are made, as functions of a weight and its gradient."""

    def over(*dims: int) -> Clip:
        def clip(weight: Tensor, grad: Tensor) -> Tensor:
            norms = [torch.linalg.vector_norm(x, dim=dims or None, keepdim=True) for x in (weight, grad)]
            return grad * (clipping * norms[0].clamp(min=eps) / norms[1]).clamp(max=1.0)

        return clip

    def each(weight: Tensor, grad: Tensor) -> Tensor:
        return grad * (clipping * weight.abs().clamp(min=eps) / grad.abs()).clamp(max=1.0)

    def norm_of(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=tuple(range(1, ndim)) if ndim > 1 else None, keepdim=True)

    found: dict[str, Clip] = {"it is not clipped": lambda weight, grad: grad}
    if ndim > 1:
        found["one norm for the whole tensor instead of one for each output unit"] = over()
        found["one norm for each input channel (dimension 1) instead of each output unit (dimension 0)"] = over(
            *(d for d in range(ndim) if d != 1)
        )
    found[_EACH] = each  # so are norms over dimension 1 of a depthwise convolution
    if ndim > 2:
        found["one norm for each kernel instead of the whole fan-in of an output unit"] = over(*range(2, ndim))
        found["norms over dimension 1 alone instead of the whole fan-in"] = over(1)
        found["norms over the last dimension alone instead of the whole fan-in"] = over(ndim - 1)
    found["eps is added to the norm of the weight; it is a lower bound of it"] = lambda weight, grad: (
        grad * (clipping * (norm_of(weight) + eps) / norm_of(grad)).clamp(max=1.0)
    )
    found["gradients below the bound are scaled up to it"] = lambda weight, grad: (
        grad * clipping * norm_of(weight).clamp(min=eps) / norm_of(grad)
    )
    found["gradients are divided by the norm of the weight, and not by their own"] = lambda weight, grad: torch.where(
        norm_of(grad) > clipping * norm_of(weight), grad * clipping / norm_of(weight), grad
    )
    found["the norm of the gradient is held against the threshold alone, not against the weight"] = (
        lambda weight, grad: grad * (clipping / norm_of(grad)).clamp(max=1.0)
    )
    return found


def _epsilon(zeros: Tensor, grad: Tensor, clipping: float, eps: float) -> str:
    """What happens where weights are 0."""
    if not bool(torch.isfinite(zeros).all()):
        return "where weights are 0, gradients become nan"
    if not bool(zeros.any()):
        return "where weights are 0, gradients become 0: the bound has no eps, so that they can never move"
    if _close(zeros, grad):
        return "where weights are 0, gradients are not clipped"
    unit = zeros.flatten(1) if zeros.squeeze().ndim > 1 else zeros.reshape(1, -1)
    return f"eps acts as {torch.linalg.vector_norm(unit, dim=1).max().item() / clipping:.2g} instead of {eps:.2g}"


def _notes(
    function: Callable[..., Any], call: Callable[[list[nn.Parameter]], Any], clipping: float, eps: float
) -> list[str]:
    """What it does to transposed convolutions, whose shape does not say that units lie in dimension 1."""
    notes = []
    weight, grad = _example(_TRANSPOSED, clipping)
    try:
        (found,) = _run(call, [(weight, grad)])
    except Exception:  # the user's code; other layers say so
        return []
    turned = clip_gradient(weight.transpose(0, 1), grad.transpose(0, 1), clipping, eps).transpose(0, 1)
    if not _close(found, turned):
        notes.append(
            "weights of transposed convolutions, (in, out, ...), are not clipped by output channel, which their shape "
            "does not show; normfree.optim.param_groups declares them"
        )
    try:
        names = list(inspect.signature(function).parameters)[1:]
    except (TypeError, ValueError):
        return notes
    if not any("eps" in name.lower() for name in names):
        notes.append(f"it takes no eps; compared with {eps:.2g}")
    return notes
