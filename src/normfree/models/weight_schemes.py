"""The choice of weight scheme: what a network's convolutions make of their weights (NF-ResNets, appendix G.1)."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from ..errors import UsageError
from ..gain import he_gain
from ..nn import (
    Affine,
    DecoupledWSConv2d,
    GainConv2d,
    SameConv2d,
    SoftWSConv2d,
    WNConv2d,
    WSConv2d,
    affine_conv,
)

WeightScheme = Literal["standardized", "decoupled", "soft", "normalized", "raw"]
CONVOLUTIONS: dict[WeightScheme, type[SameConv2d]] = {
    "standardized": WSConv2d,
    "decoupled": DecoupledWSConv2d,
    "soft": SoftWSConv2d,
    "normalized": WNConv2d,
    "raw": SameConv2d,
}


def convolution_of(scheme: WeightScheme) -> type[SameConv2d]:
    """The convolution of a weight scheme; UsageError if it is unknown.

    Example:
        >>> convolution_of("decoupled").__name__
        'DecoupledWSConv2d'
    """
    if scheme not in CONVOLUTIONS:
        raise UsageError(f"weight_scheme (={scheme!r}) must be one of {', '.join(get_args(WeightScheme))}")
    return CONVOLUTIONS[scheme]


def scheme_conv(scheme: WeightScheme, affine: Affine) -> Callable[..., SameConv2d]:
    """What makes the convolutions of a weight scheme with the gains and biases that ``affine`` leaves them.

    Raises:
        UsageError: an unknown scheme or ``affine``; gains alone of raw weights, which have none.

    Example:
        >>> scheme_conv("normalized", "conv").__name__
        'WNConv2d'
    """
    kind = convolution_of(scheme)
    if affine == "gain" and not issubclass(kind, GainConv2d):
        raise UsageError(f"affine (={affine!r}) must be another one with weight_scheme {scheme}, which has no gains")
    return affine_conv(affine, kind)


def default_gamma(scheme: WeightScheme, activation: str | Callable[[Tensor], Tensor]) -> float | None:
    """The gamma of a weight scheme: that of He initialization (NF-ResNets, figure 2) where weights have a mean, so that
    the second moment is what stays constant; None, the usual one, where they have none.

    Example:
        >>> default_gamma("normalized", "relu"), default_gamma("decoupled", "relu")
        (1.4142135623730951, None)
    """
    return None if convolution_of(scheme).centred else he_gain(activation)
