"""gamma of a nonlinearity: the factor with which it preserves the variance of a standard normal input.

``gamma(g) = Var(g(x)) ** -0.5`` for x ~ N(0, 1) (NF-ResNets, section 4.3). :func:`activation_gain` is exact, by
quadrature. :data:`RELEASED_GAINS` are the authors' Monte-Carlo estimates, about 0.1 % off, with which the released
weights were trained; models use them by default for the names listed there. What is not elementwise (pooling,
Squeeze-Excite) is measured by drawing inputs: :func:`normfree.measured_gain`.
"""

import copy
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UsageError, did_you_mean

RELEASED_GAINS = {
    "identity": 1.0,
    "celu": 1.270926833152771,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "leaky_relu": 1.70590341091156,
    "log_sigmoid": 1.9193484783172607,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "selu": 1.0008515119552612,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "soft_sign": 2.338853120803833,
    "softplus": 1.9203323125839233,
    "tanh": 1.5939117670059204,
}

# "gelu" is the tanh form: it is the function of the released NFNets (the paper's text says only "GELU").
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": functools.partial(F.gelu, approximate="tanh"),
    "gelu_erf": F.gelu,
    "log_sigmoid": F.logsigmoid,
    "sigmoid": torch.sigmoid,
    "soft_sign": F.softsign,
    "tanh": torch.tanh,
} | {
    name: getattr(F, name)
    for name in (
        *("celu", "elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6", "selu", "silu"),
        *("softplus", "tanhshrink"),
    )
}
_ALIASES = {
    "swish": "silu",
    "gelu_tanh": "gelu",
    "logsigmoid": "log_sigmoid",
    "softsign": "soft_sign",
    "linear": "identity",
}

_MAX_UNSCALED = 16.0  # means and standard deviations up to here need no scaling against rounding
_MIN_SPREAD = 1e-14  # standard deviation over the mean: rounding errors
_TINY = 1e-150  # whose square is a float64
_OTHERS = "; normfree.measured_gain(operation, shape) takes others"
_BOUND = 13.0  # the density beyond is 1e-37
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(16))


def activation_names() -> list[str]:
    """Names that :func:`activation_function` knows, aliases left out.

    Example:
        >>> activation_names()[:3]
        ['celu', 'elu', 'gelu']
    """
    return sorted(_FUNCTIONS)


def activation_function(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The elementwise function of a name, or the callable itself, without gamma.

    Raises:
        UsageError: the name is unknown (the nearest ones are suggested); a class instead of an object of it.

    Example:
        >>> activation_function("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if isinstance(activation, type):
        raise UsageError(
            f"activation (={activation.__name__}) is a class; pass an object of it, {activation.__name__}()"
        )
    if callable(activation):
        return activation
    name = _ALIASES.get(activation, activation) if isinstance(activation, str) else repr(activation)
    if name not in _FUNCTIONS:
        hint = did_you_mean(str(name), _FUNCTIONS, f"there are {', '.join(activation_names())}.")
        raise UsageError(f"activation (={activation!r}) is unknown; {hint} Or pass a callable")
    return _FUNCTIONS[name]


def activation_gain(activation: str | Callable[[Tensor], Tensor]) -> float:
    """Exact gamma of a named or callable elementwise nonlinearity (NF-ResNets, section 4.3).

    Adaptive Gauss-Legendre quadrature in float64, with a relative error of about 1e-12; kinks are found by bisection.
    For a function far from zero, such as ``1e7 + relu(x)``, the rounding of its own values limits the precision to
    about 1e-16 of its mean over its standard deviation. Features narrower than 0.03 may be missed, which is the
    distance of the first samples.

    Args:
        activation: a name (see :func:`activation_names`) or a callable from a float64 tensor to one of the same shape.
            A module is measured with its parameters, in float64.

    Raises:
        UsageError: unknown name; the callable is not elementwise, fails, is not finite, or is constant.

    Example:
        >>> round(activation_gain("relu"), 6)
        1.712859
        >>> round(activation_gain(lambda x: x * torch.sigmoid(x)), 6)
        1.787187
    """
    if isinstance(activation, str):
        return _named_gain(activation)
    return _quadrature_gain(activation_function(activation), in_words(activation))


def he_gain(activation: str | Callable[[Tensor], Tensor]) -> float:
    """He initialization's gain, ``E[g(x)^2] ** -0.5``: sqrt(2) for ReLU (He et al. 2015; NF-ResNets, figure 8).

    It keeps the second moment; with a positive mean, the variance then falls. Raises as :func:`activation_gain`.

    Example:
        >>> round(he_gain("relu"), 6)
        1.414214
    """
    mean, variance = _normal_moments(activation_function(activation), in_words(activation))
    return (mean**2 + variance) ** -0.5


def variance_behind(activation: str | Callable[[Tensor], Tensor], variance: float) -> float:
    """Variance of ``gamma * g(x)`` for x ~ N(0, variance), with exact gamma; for variance 1 it is 1.

    ReLU keeps every variance. Smooth activations lose more of a small signal than of one with variance 1.

    Example:
        >>> round(variance_behind("relu", 4.0), 6), round(variance_behind("silu", 0.25), 2)
        (4.0, 0.22)
    """
    function = _in_float64(activation_function(activation))
    _, behind = _normal_moments(lambda x: function(x * variance**0.5), in_words(activation))
    return activation_gain(activation) ** 2 * behind


def moment_behind(activation: str | Callable[[Tensor], Tensor], moment: float) -> float:
    """Second moment of ``gamma * g(x)`` for x ~ N(0, moment), with He's gamma; for a moment of 1 it is 1.

    This is what weights with a mean keep, which pass on the mean of their inputs, too.

    Example:
        >>> round(moment_behind("relu", 4.0), 6), round(moment_behind("silu", 0.25), 2)
        (4.0, 0.2)
    """
    function = _in_float64(activation_function(activation))
    mean, variance = _normal_moments(lambda x: function(x * moment**0.5), in_words(activation))
    return he_gain(activation) ** 2 * (mean**2 + variance)


def normal_mean(activation: str | Callable[[Tensor], Tensor], function: Callable[[Tensor, Tensor], Tensor]) -> float:
    """``E[function(g(x), x)]`` for x ~ N(0, 1), by the same quadrature, for moments of an activation's output.

    Example:
        >>> round(normal_mean("relu", lambda y, x: y**2), 6)
        0.5
    """
    g = _in_float64(activation_function(activation))
    return _normal_moments(lambda x: function(g(x), x), f"a function of {activation!r}")[0]


@functools.cache
def _named_gain(name: str) -> float:
    return _quadrature_gain(activation_function(name), repr(name))


def model_gain(activation: str | Callable[[Tensor], Tensor]) -> float:
    """gamma that models use: the released constant if there is one, else the exact value.

    Example:
        >>> model_gain("relu")
        1.7139588594436646
    """
    if isinstance(activation, str):
        released = RELEASED_GAINS.get(_ALIASES.get(activation, activation))
        if released is not None:
            return released
    return activation_gain(activation)


def _quadrature_gain(function: Callable[[Tensor], Tensor], name: str) -> float:
    return _normal_moments(function, name)[1] ** -0.5


def in_words(activation: str | Callable[[Tensor], Tensor]) -> str:
    """An activation for an error message; only the class of a module that contains others.

    Example:
        >>> in_words(torch.nn.ELU()), in_words(torch.nn.Sequential(torch.nn.ELU()))
        ('ELU(alpha=1.0)', 'Sequential')
    """
    text = repr(activation)
    return text if "\n" not in text else type(activation).__name__


def _in_float64(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A module with parameters (PReLU) computes in their type; a copy, the caller's module stays unchanged."""
    return copy.deepcopy(function).double().cpu() if isinstance(function, torch.nn.Module) else function


@torch.no_grad()
def _normal_moments(function: Callable[[Tensor], Tensor], name: str) -> tuple[float, float]:
    """Mean and variance of g(x) for x ~ N(0, 1); g must be elementwise, finite and not constant."""
    function = _in_float64(function)
    edges = torch.linspace(-_BOUND, _BOUND, 53, dtype=torch.float64, device="cpu")
    left, right = edges[:-1], edges[1:]
    y, weight = _sampled(function, name, left, right)
    shift = (weight * y).sum().item()
    scale = (weight * (y - shift).square()).sum().item() ** 0.5
    if scale <= _MIN_SPREAD * max(abs(shift), _TINY):
        raise UsageError(
            f"activation {name} has variance {scale**2:.1e} on a normal input; gamma needs one that varies"
        )
    # numbers of usual size are not scaled; powers of two change no digit
    shift = shift if abs(shift) > _MAX_UNSCALED * scale else 0.0
    scale = 1.0 if 1 / _MAX_UNSCALED < scale < _MAX_UNSCALED else 2.0 ** round(math.log2(scale))
    rounding = (
        1e-14 + 2**-52 * abs(shift) / scale
    )  # smaller differences come from the rounding of the function's values

    def moments(left: Tensor, right: Tensor) -> Tensor:
        """(panels, 2) integrals of (g - shift) / scale and its square against the normal density over each panel."""
        y, weight = _sampled(function, name, left, right)
        y = (y - shift) / scale
        return torch.stack([(weight * y).sum(1), (weight * y * y).sum(1)], 1)

    total = _integral(moments, left, right, rounding)
    mean, variance = total[0].item(), (total[1] - total[0] ** 2).item()
    return shift + scale * mean, scale**2 * variance


def _integral(integrate: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor, rounding: float) -> Tensor:
    """Sum of ``integrate``'s (panels, 2); each panel is halved until this changes it by at most ``rounding``."""
    whole = integrate(left, right)
    total = whole.new_zeros(2)
    for _ in range(48):
        middle = (left + right) / 2
        first, second = integrate(left, middle), integrate(middle, right)
        done = ((first + second - whole).abs() <= rounding).all(1)
        total += (first + second)[done].sum(0)
        if done.all():
            return total
        left, right = torch.cat([left[~done], middle[~done]]), torch.cat([middle[~done], right[~done]])
        whole = torch.cat([first[~done], second[~done]])
    return total + whole.sum(0)  # panels of width 1e-14 around a jump: their integral is below rounding


def _sampled(function: Callable[[Tensor], Tensor], name: str, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(panels, nodes) values of g, and their weights under the normal density."""
    half = (right - left) / 2
    x = (left + right)[:, None] / 2 + half[:, None] * _NODES
    y = _values(function, name, x)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        result = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise UsageError(f"activation {name} maps shape {tuple(x.shape)} to {result}; it must be elementwise{_OTHERS}")
    flat = _values(function, name, x.flatten())
    alike = isinstance(flat, Tensor) and flat.shape == (x.numel(),)
    if not alike or not torch.allclose(flat.view_as(y), y, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise UsageError(f"activation {name} depends on more than one value at a time; it must be elementwise{_OTHERS}")
    if not torch.isfinite(y).all():
        raise UsageError(f"activation {name} is not finite between -{_BOUND:g} and {_BOUND:g}; gamma needs it to be")
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return y.double(), density * _WEIGHTS * half[:, None]


def _values(function: Callable[[Tensor], Tensor], name: str, x: Tensor) -> Tensor:
    try:
        return function(x.clone())  # a clone: an in-place activation must not move the nodes
    except Exception as error:  # a user's function may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"activation {name} fails on a tensor of shape {tuple(x.shape)}; it must be elementwise, for any shape "
            f"({reason}){_OTHERS}"
        ) from error
