"""Convolutions of a reparameterized weight: Scaled Weight Standardization, and the schemes to compare it with.

"NF-ResNets" is arXiv:2101.08692 and "NFNets" is arXiv:2102.06171.
"""

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from ..errors import UsageError, check_finite
from ..functional import normalize_weight, pull_weight
from ..kernels import fused_standardize_weight
from .conv import Map, SameConv, SameConv1d, SameConv2d, SameConv3d, Size, autocast_type
from .recompute import not_kept
from .roles import Role


class ScaleOptions(TypedDict, total=False):
    """Keyword arguments that :class:`GainConv` passes on to :class:`.SameConv`."""

    input_scale: float
    atrous: Size
    device: torch.device | str | None
    dtype: torch.dtype | None


class GainOptions(ScaleOptions, total=False):
    """Keyword arguments of :class:`GainConv`."""

    gain: bool
    eps: float


class GainConv(SameConv):
    """Convolution of the raw weight times a gain per output channel: what the layers of all weight schemes share.

    ``(N, in_channels, *places) -> (N, out_channels, *places')``. Parameters: ``weight`` (out, in / groups, *kernel),
    ``gain`` (out,), ``bias`` (out,). A scheme overrides what it makes of the weight (:meth:`reparameterized`); a class
    of it for each dimension says only the dimension.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in :class:`.SameConv`.
        gain: whether to multiply with a gain.
        input_scale: a constant factor of the input (gamma / beta of the activation before it), folded into the
            weight.
        atrous: as in :class:`.SameConv`.
        eps: lower bound of a unit's squared norm, where the scheme divides by the norm.

    Raises:
        UsageError: as in :class:`.SameConv`; an eps below 0; a fan-in of 1 where the scheme subtracts the mean, which
            would leave 0.
    """

    parameter_roles = {"weight": Role.WEIGHT, "gain": Role.GAIN, "bias": Role.BIAS}
    weight_kept = True  # the effective one, for the backward pass; see recompute_weights

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        gain: bool = True,
        eps: float = 1e-4,
        **options: Unpack[ScaleOptions],
    ):
        check_finite("eps", eps)
        if eps < 0:
            raise UsageError(f"eps (={eps!r}) must be at least 0")
        self.eps = eps  # before the constructor fills the weight, which may need it
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
        if self.centred and self.weight[0].numel() == 1:
            raise UsageError(
                f"in_channels / groups (={in_channels} / {groups}) with kernel_size 1 is one weight per output, which "
                f"standardization makes 0; take fewer groups, a larger kernel, or SameConv{self.dims}d"
            )
        self.gain = nn.Parameter(self.weight.new_ones(out_channels)) if gain else None

    def reset_parameters(self) -> None:
        """Normal weights of variance 1 / fan-in, gain 1, bias 0."""
        super().reset_parameters()
        gain = getattr(self, "gain", None)  # missing in the first call, by the constructor
        if gain is not None:
            nn.init.ones_(gain)

    def reparameterized(
        self, weight: Tensor, gain: Tensor | None, scale: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        """The weight of the convolution from given parameters, in a type (None: the weight's)."""
        factor = self._factor(scale)
        if gain is not None:
            gain = gain.view(-1, *(1,) * (weight.ndim - 1))
            factor = gain if factor is None else gain * factor
        weight = weight if factor is None else weight * factor
        return weight if dtype is None else weight.to(dtype)

    def effective_weight(self, scale: Tensor | None = None) -> Tensor:
        """The weight of the convolution: gain, ``input_scale`` and an optional output scale (one element) included."""
        return self.reparameterized(self.weight, self.gain, scale, autocast_type(self.weight))

    folded = SameConv.folded  # by the weight above

    def _apply_weight(self, function: Map, scale: Tensor | None, form: Map = lambda weight: weight) -> Tensor:
        if self.weight_kept:
            return super()._apply_weight(function, scale, form)
        weight = form(self.effective_weight(scale))
        dtype = weight.dtype  # the backward pass has no autocast

        def recompute(weight: Tensor, gain: Tensor | None, scale: Tensor | None) -> Tensor:
            return form(self.reparameterized(weight, gain, scale, dtype))

        with not_kept(weight, recompute, self.weight, self.gain, scale):
            return function(weight)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.gain is not None else ", gain=False")


class WSConv(GainConv):
    """Convolution of a standardized weight, with a gain and a bias per output channel (NFNets, eq. 1).

    ``(N, in_channels, *places) -> (N, out_channels, *places')``. Parameters: ``weight`` (out, in / groups, *kernel),
    ``gain`` (out,), ``bias`` (out,). A standardized weight is computed in float32 and keeps the signal's variance, in
    any number of dimensions: a unit is an output channel, its fan-in ``in / groups * prod(kernel)``. Take
    :class:`WSConv1d`, :class:`WSConv2d` or :class:`WSConv3d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in :class:`.SameConv`.
        gain: whether to multiply with a gain.
        input_scale: a constant factor of the input (gamma / beta of the activation before it), folded into the
            standardized weight.
        atrous: as in :class:`.SameConv`.
        eps: lower bound of ``var * N`` in the standardization; with ``add_eps`` it is added to ``var`` (timm).

    Raises:
        UsageError: channels not divisible by groups, a size below 1, an unknown padding, a number that is not finite, a
            fan-in of 1 (whose standardized weight is 0).
    """

    centred = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        add_eps: bool = False,
        **options: Unpack[GainOptions],
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, **options)
        self.add_eps = add_eps

    def standardized_weight(self, scale: Tensor | None = None) -> Tensor:
        """The weight of the convolution, ``input_scale`` and an optional output scale (one element) included."""
        return self.reparameterized(self.weight, self.gain, scale, autocast_type(self.weight))

    effective_weight = standardized_weight

    def reparameterized(
        self, weight: Tensor, gain: Tensor | None, scale: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        """The standardized weight from given parameters, in a type (None: the weight's)."""
        return fused_standardize_weight(
            weight, gain, scale=self._factor(scale), eps=self.eps, add_eps=self.add_eps, dtype=dtype
        )


class WNConv(GainConv):
    """Convolution of a normalized weight: each output's weights, means included, have norm 1 (Salimans & Kingma 2016;
    named beside Weight Standardization in NF-ResNets, appendix G.1).

    Shapes, arguments and parameters are those of :class:`GainConv`; ``eps`` bounds the squared norm. With the mean, a
    unit also passes on the mean of its inputs: behind an activation whose mean is not 0, what stays constant is the
    second moment, with the ``gamma`` of :func:`normfree.gain.he_gain`.
    """

    def reparameterized(
        self, weight: Tensor, gain: Tensor | None, scale: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        """The normalized weight from given parameters, in a type (None: the weight's)."""
        weight = normalize_weight(weight, gain, scale=self._factor(scale), eps=self.eps)
        return weight if dtype is None else weight.to(dtype)


class DecoupledWSConv(GainConv):
    """Convolution of a weight that the optimizer keeps standardized (Decoupled Weight Standardization, NF-ResNets,
    appendix G.1).

    Shapes, arguments and parameters are those of :class:`GainConv`. The layer convolves with the weight as it is. It
    starts standardized, and :class:`normfree.optim.WeightPull` standardizes it again after each update: no gradient
    goes through the standardization.
    """

    centred = True
    soft = False  # whether an update pulls the weight only a part of the way

    def reset_parameters(self) -> None:
        """Normal weights, standardized; gain 1, bias 0."""
        super().reset_parameters()
        self.standardize_()

    @torch.no_grad()
    def standardize_(self) -> None:
        """Standardize the weight, for example after loading that of a :class:`WSConv2d`."""
        self.weight.copy_(pull_weight(self.weight, eps=self.eps))


class GainConv1d(GainConv, SameConv1d):
    """1-D convolution of the raw weight times a gain per output channel, see :class:`GainConv`."""


class GainConv2d(GainConv, SameConv2d):
    """2-D convolution of the raw weight times a gain per output channel, see :class:`GainConv`.

    Example:
        >>> conv = GainConv2d(16, 32, 3, stride=2)
        >>> conv(torch.randn(1, 16, 8, 8)).shape, torch.equal(conv.effective_weight(), conv.weight)
        (torch.Size([1, 32, 4, 4]), True)
    """


class GainConv3d(GainConv, SameConv3d):
    """3-D convolution of the raw weight times a gain per output channel, see :class:`GainConv`."""


class WSConv1d(WSConv, GainConv1d):
    """1-D convolution of a standardized weight: (N, in_channels, L) -> (N, out_channels, L'); see :class:`WSConv`.

    Example:
        >>> WSConv1d(16, 32, 9, stride=4)(torch.randn(1, 16, 100)).shape
        torch.Size([1, 32, 25])
    """


class WSConv2d(WSConv, GainConv2d):
    """2-D convolution of a standardized weight, with a gain and a bias per output channel (NFNets, eq. 1).

    ``(N, in_channels, H, W) -> (N, out_channels, H', W')``. Parameters: ``weight`` (out, in / groups, k, k), ``gain``
    (out,), ``bias`` (out,). The arguments, and what is refused, are those of :class:`WSConv`.

    Example:
        >>> conv = WSConv2d(16, 32, 3, stride=2)
        >>> conv(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 4, 4])
        >>> conv.standardized_weight().mean((1, 2, 3)).abs().max() < 1e-6
        tensor(True)
    """


class WSConv3d(WSConv, GainConv3d):
    """3-D convolution of a standardized weight: (N, in_channels, D, H, W) -> (N, out_channels, D', H', W').

    See :class:`WSConv`.

    Example:
        >>> WSConv3d(16, 32, (1, 3, 3), stride=(1, 2, 2))(torch.randn(1, 16, 4, 8, 8)).shape
        torch.Size([1, 32, 4, 4, 4])
    """


class WNConv1d(WNConv, GainConv1d):
    """1-D convolution of a normalized weight, see :class:`WNConv`."""


class WNConv2d(WNConv, GainConv2d):
    """2-D convolution of a normalized weight: each output's weights, means included, have norm 1; see :class:`WNConv`.

    Example:
        >>> conv = WNConv2d(16, 32, 3)
        >>> conv.effective_weight().square().sum((1, 2, 3)).allclose(torch.ones(32))
        True
    """


class WNConv3d(WNConv, GainConv3d):
    """3-D convolution of a normalized weight, see :class:`WNConv`."""


class DecoupledWSConv1d(DecoupledWSConv, GainConv1d):
    """1-D convolution of a weight that the optimizer keeps standardized, see :class:`DecoupledWSConv`."""


class DecoupledWSConv2d(DecoupledWSConv, GainConv2d):
    """2-D convolution of a weight that the optimizer keeps standardized, see :class:`DecoupledWSConv`.

    Example:
        >>> conv = DecoupledWSConv2d(16, 32, 3)
        >>> conv.weight.square().sum((1, 2, 3)).allclose(torch.ones(32)), conv.weight.mean((1, 2, 3)).abs().max() < 1e-6
        (True, tensor(True))
    """


class DecoupledWSConv3d(DecoupledWSConv, GainConv3d):
    """3-D convolution of a weight that the optimizer keeps standardized, see :class:`DecoupledWSConv`."""


class SoftWSConv(DecoupledWSConv):
    """The same as :class:`DecoupledWSConv`, of which each update is followed by only a part of the standardization:
    ``W - strength * (W - standardized W)`` (Soft WS, NF-ResNets, appendix G.1).
    """

    soft = True


class SoftWSConv1d(SoftWSConv, DecoupledWSConv1d):
    """1-D convolution of a weight that each update pulls a part of the way, see :class:`SoftWSConv`."""


class SoftWSConv2d(SoftWSConv, DecoupledWSConv2d):
    """2-D convolution of a weight that each update pulls a part of the way, see :class:`SoftWSConv`.

    Example:
        >>> conv = SoftWSConv2d(16, 32, 3)
        >>> conv(torch.randn(1, 16, 8, 8)).shape
        torch.Size([1, 32, 8, 8])
    """


class SoftWSConv3d(SoftWSConv, DecoupledWSConv3d):
    """3-D convolution of a weight that each update pulls a part of the way, see :class:`SoftWSConv`."""


def recompute_weights(model: nn.Module, enable: bool = True) -> None:
    """Whether the backward pass computes the weights of all :class:`WSConv`, or of another scheme, again.

    Keeping them takes as much memory as the parameters, and a little less time.

    Example:
        >>> recompute_weights(nn.Sequential(WSConv2d(3, 8, 3)))
    """
    for module in model.modules():
        if isinstance(module, GainConv):
            module.weight_kept = not enable
