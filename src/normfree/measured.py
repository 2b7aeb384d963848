"""gamma of any operation, by measurement (NF-ResNets, sections 4.3 and 4.4, appendix D.1).

The exact gamma of an elementwise function is :func:`normfree.activation_gain`. Pooling, Squeeze-Excite, a gated linear
unit or a softmax mix values and may change the shape; their variance is measured on unit Gaussian inputs.
"""

import copy
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError, check_count
from .gain import in_words

MIN_DRAWS = 16  # of which the standard error is known to a fifth of itself
_MIN_SPREAD = 1e-28  # variance over the squared mean: rounding errors of float64


def measured_gain(
    operation: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    *,
    precision: float = 1e-3,
    max_draws: int = 1000,
    channels: int | None = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> float:
    """gamma of any operation: ``Var(y) ** -0.5`` of its outputs y for unit Gaussian inputs of ``shape``.

    Var is the average channel variance, over images, places and draws, as in signal propagation plots: constants that
    an operation adds to its channels do not count. Inputs are drawn until the standard error of gamma is at most
    ``precision`` times gamma, 16 at a time. The operation is measured in its mode, with its parameters, as a
    copy: nothing of it changes, nor the state of torch's random numbers. (NF-ResNets, sections 4.3 and 4.4; the
    procedure of appendix D.1 with a stated precision.)

    Args:
        operation: a module or function from one tensor to one tensor of any shape.
        shape: of its input, with the batch: (N, C, H, W) for images. The more values it has, the fewer draws are
            needed: the standard error is about ``(2 * values) ** -0.5`` for independent outputs.
        precision: relative standard error, above 0. 1e-3 is that of the authors' constants.
        max_draws: of inputs; an error says what precision they gave.
        channels: the output's dimension of channels; 1 for images, -1 for tokens. An output without it has one
            channel, and so has any with None: the variance is then over all values.
        seed: of the inputs, and of the operation's own random numbers.
        dtype: of inputs and parameters: torch.float64, or what the operation is used in. Statistics are float64.

    Raises:
        UsageError: the operation fails, returns no real tensor or an empty one, is not finite, or is constant;
            ``max_draws`` do not give ``precision``; an argument that is none of the above.

    Example:
        >>> round(measured_gain(nn.AvgPool2d(2), (8, 16, 32, 32)), 2)
        2.0
        >>> round(measured_gain(normfree.nn.SqueezeExcite(64, factor=1.0), (8, 64, 16, 16)), 1)
        2.0
    """
    shape = _checked_shape(shape)
    _check_settings(operation, precision, max_draws, channels, seed, dtype)
    name, function = in_words(operation), _copied(operation, dtype)
    moments: list[tuple[Tensor, Tensor]] = []
    error = math.inf
    with torch.no_grad(), _seeded(seed) as generator:
        while len(moments) < max_draws:
            x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)
            moments.append(_channel_moments(_output(function, name, x), name, channels))
            if len(moments) % MIN_DRAWS == 0 or len(moments) == max_draws:
                variance, error = _variance(moments, name)
                if error <= precision:
                    return variance**-0.5
    raise UsageError(
        f"gamma of operation {name} has a relative standard error of {error:.1e} after {max_draws} inputs of shape "
        f"{shape}; precision (={precision:g}) needs a larger shape, or about "
        f"{math.ceil(max_draws * (error / precision) ** 2)} draws (max_draws)"
    )


def _variance(moments: list[tuple[Tensor, Tensor]], name: str) -> tuple[float, float]:
    """The variance, without bias, and the relative standard error of its root."""
    means, variances = (torch.stack(columns) for columns in zip(*moments, strict=True))  # (draws, channels)
    draws, mean = len(means), means.mean(0)
    # by the law of total variance; the second term has draws - 1 degrees of freedom
    apart = (means - mean).square() * (draws / (draws - 1))
    each = (variances + apart).mean(1)
    variance = each.mean().item()
    if variance <= _MIN_SPREAD * mean.square().mean().item() or variance == 0:
        raise UsageError(f"operation {name} has variance {variance:.1e} on a normal input; gamma needs one that varies")
    return variance, each.std().item() / draws**0.5 / variance / 2


def _output(function: Callable[[Tensor], Tensor], name: str, x: Tensor) -> Tensor:
    """What the operation makes of an input, checked."""
    shape = tuple(x.shape)  # the operation may change it in place
    try:
        y = function(x)
    except Exception as error:  # a user's function may raise anything
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"operation {name} fails on a tensor of shape {shape} and type {x.dtype} ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(y, Tensor) or y.is_complex() or not y.numel():
        what = type(y).__name__ if not isinstance(y, Tensor) else f"{y.dtype} of shape {tuple(y.shape)}"
        raise UsageError(f"operation {name} maps shape {shape} to {what}; it must return one tensor of real numbers")
    if not torch.isfinite(y).all():
        raise UsageError(f"operation {name} is not finite on a normal input of shape {shape}; gamma needs it to be")
    return y


def _channel_moments(y: Tensor, name: str, channels: int | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel: (C,) float64."""
    y = y.detach().to("cpu", torch.float64)
    if channels is None or not -y.ndim <= channels < y.ndim:
        y = y.reshape(1, -1)
    else:
        y = y.movedim(channels, 0).reshape(y.shape[channels], -1)
    var, mean = torch.var_mean(y, 1, correction=0)
    return mean, var


def _copied(operation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A module's copy on the CPU in ``dtype``: its parameters and buffers (running statistics) stay as they are."""
    return copy.deepcopy(operation).to("cpu", dtype) if isinstance(operation, nn.Module) else operation


@contextmanager
def _seeded(seed: int) -> Iterator[torch.Generator]:
    """A generator for inputs; the operation's own random numbers (dropout) come from another one, seeded by it."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        # not from the same seed: a mask drawn with the input's numbers would depend on the input
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device="cpu")))
        yield generator


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(n) for n in shape if not isinstance(n, bool))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1 or len(sizes) != len(shape):
        raise UsageError(f"shape (={shape!r:.80}) must be the input's with its batch, such as (8, 64, 16, 16)")
    return sizes


def _check_settings(
    operation: Any, precision: Any, max_draws: Any, channels: Any, seed: Any, dtype: torch.dtype
) -> None:
    if isinstance(operation, type) or not callable(operation):
        hint = f"pass an object of it, {operation.__name__}()" if isinstance(operation, type) else "pass a callable"
        raise UsageError(f"operation (={operation!r:.80}) is no module and no function; {hint}")
    check_count("max_draws", max_draws)
    if max_draws < 2:
        raise UsageError(f"max_draws (={max_draws}) must be at least 2: one draw has no standard error")
    if not isinstance(precision, float | int) or not precision > 0:
        raise UsageError(f"precision (={precision!r}) must be a relative standard error above 0, such as 1e-3")
    if channels is not None and (not isinstance(channels, int) or isinstance(channels, bool)):
        raise UsageError(f"channels (={channels!r}) must be a dimension of the output, such as 1, or None")
    if not isinstance(seed, int) or abs(seed) >= 2**63:
        raise UsageError(f"seed (={seed!r:.80}) must be an integer below 2**63")
    if not dtype.is_floating_point:
        raise UsageError(f"dtype (={dtype}) must be a type of floating-point numbers, such as torch.float64")
