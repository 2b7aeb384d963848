"""Elementwise nonlinearities, bare or scaled by gamma."""

from collections.abc import Callable

from torch import Tensor, nn

from .. import kernels
from ..errors import check_finite
from ..gain import activation_function, model_gain

_FAST = dict(gelu=kernels.gelu_tanh, gelu_tanh=kernels.gelu_tanh, gelu_erf=kernels.gelu)
_FAST |= dict(silu=kernels.silu, swish=kernels.silu)
# Their backward pass needs their input; that of others (ReLU) the output, which the next layer keeps in any case.
_KEEPING_INPUT = ("gelu", "gelu_tanh", "gelu_erf", "silu", "swish", "mish")


class Activation(nn.Module):
    """Bare nonlinearity with its gamma as an attribute: ``forward(x) = g(x)``, any shape.

    The models fold ``gamma`` into the weight of the convolution that follows, since
    ``conv(gamma * g(x), W) = conv(g(x), gamma * W)``.

    Args:
        activation: a name (:func:`normfree.gain.activation_names`) or an elementwise callable.
        gamma: the scale that restores unit variance; None: the released constant if the name has one, else the exact
            value.

    Example:
        >>> act = Activation("relu")
        >>> act(torch.tensor([-1.0, 2.0])), round(act.gamma, 4)
        (tensor([0., 2.]), 1.714)
    """

    def __init__(self, activation: str | Callable[[Tensor], Tensor] = "relu", gamma: float | None = None):
        super().__init__()
        self.activation = activation
        self.name = activation if isinstance(activation, str) else getattr(activation, "__name__", repr(activation))
        fast = _FAST.get(activation) if isinstance(activation, str) else None
        self.function = fast or activation_function(activation)
        self.keeps_input = activation in _KEEPING_INPUT
        if gamma is not None:
            check_finite("gamma", gamma)
        self.gamma = model_gain(activation) if gamma is None else float(gamma)

    def clone(self) -> "Activation":
        """Another module of the same function and gamma."""
        return Activation(self.activation, self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return f"{self.name}, gamma={self.gamma:.6g}"


class ScaledActivation(Activation):
    """Variance-preserving nonlinearity, for your own networks: ``gamma * g(x)`` (NF-ResNets, section 4.3).

    Example:
        >>> ScaledActivation("silu")(torch.randn(100_000)).var() > 0.95
        tensor(True)
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) * self.gamma
