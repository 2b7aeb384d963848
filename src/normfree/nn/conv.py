"""Convolutions of one to three dimensions with TensorFlow's "SAME" padding, of the raw weight."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError, check_count, check_finite
from ..functional import pad_same, per_axis
from .folded import PADDED, PLAIN
from .recompute import derived
from .roles import Role

Map = Callable[[Tensor], Tensor]
Other = TypeVar("Other", bound=nn.Module)
Size = int | Sequence[int]  # one for all axes, or one for each
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class SameConv(nn.Module):
    """Convolution over ``dims`` axes of the raw weight, padded as TensorFlow does: what all convolutions here share.

    ``(N, in_channels, *places) -> (N, out_channels, *places')``. Parameters: ``weight`` (out, in / groups, *kernel),
    ``bias`` (out,). The dimension is a number of the class; take :class:`SameConv1d`, :class:`SameConv2d` or
    :class:`SameConv3d`.

    Args:
        in_channels, out_channels, groups: as in :class:`torch.nn.Conv2d`.
        kernel_size, stride, dilation: a number for all axes, or one for each.
        padding: "same" pads as TensorFlow does (more behind than before where the total is odd, also under strides),
            "symmetric" by half of the dilated kernel, an int by that many zeros on every side, or one for each axis.
        bias: whether to add a bias.
        init_gain: the weight starts normal with variance ``init_gain ** 2 / fan_in``; sqrt(2) behind a ReLU is He
            initialization.
        input_scale: a constant factor of the input (1 / beta of the block, gamma of the activation), folded into the
            weight.
        atrous: the stride that dilation has replaced; "same" padding then keeps that stride's outputs among the
            outputs.

    Attributes:
        kernel_size, stride, dilation, padding, atrous: a number where all axes have the same, else a tuple.

    Raises:
        UsageError: channels not divisible by groups, a size below 1, sizes of another number of axes, an unknown
            padding, a number that is not finite.
    """

    parameter_roles = {"weight": Role.WEIGHT, "bias": Role.BIAS}
    dims: ClassVar[int]
    _alike = True  # all axes, which a network asks often
    centred = False  # whether the weights of each output have a mean of 0, at least at initialization
    kernel_size: Any  # an int, or a tuple where the axes differ; so are the next
    stride: Any
    padding: Any
    dilation: Any
    atrous: Any

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
        init_gain: float = 1.0,
        input_scale: float = 1.0,
        atrous: Size = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = dict(in_channels=in_channels, out_channels=out_channels)
        for name, value in dict(sizes, groups=groups).items():
            check_count(name, value)
        for name, value in dict(init_gain=init_gain, input_scale=input_scale).items():
            check_finite(name, value)
        for name in ("in_channels", "out_channels"):
            if sizes[name] % groups:
                raise UsageError(f"{name} (={sizes[name]}) must be divisible by groups (={groups})")
        geometry = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, atrous=atrous)
        for name, value in geometry.items():
            setattr(self, name, axes(name, value, self.dims))
        self._alike = all(isinstance(getattr(self, name), int) for name in geometry)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.padding = self._padding(padding)
        self.init_gain, self.input_scale = init_gain, input_scale
        shape = out_channels, in_channels // groups, *per_axis(self.kernel_size, self.dims)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of variance ``init_gain ** 2 / fan_in``, bias 0."""
        nn.init.normal_(self.weight, std=self.init_gain * self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def effective_weight(self, scale: Tensor | None = None) -> Tensor:
        """The weight of the convolution: ``input_scale`` and an optional output scale (one element) included."""
        factor = self._factor(scale)
        return self.weight if factor is None else self.weight * factor

    def _factor(self, scale: Tensor | None) -> float | Tensor | None:
        factor = None if self.input_scale == 1.0 else self.input_scale
        if scale is not None:
            factor = scale if factor is None else scale * factor
        return factor

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """``scale`` (a tensor of one element) multiplies the output, folded into weight and bias."""
        x, padding = self._pad(x)
        stride = self.stride
        if self._thin:
            every = (..., *(slice(None, None, step) for step in per_axis(stride, self.dims)))
            strided = lambda x: x[every].clone()  # noqa: E731
            x, stride = derived(x, strided(x), strided), 1
        elif stride != 1 and self._single_place(x, padding):
            stride = 1
        bias = self.bias if scale is None or self.bias is None else self.bias * scale
        convolve = CONVOLVE[self.dims]
        return self._apply_weight(lambda w: convolve(x, w, bias, stride, padding, self.dilation, self.groups), scale)

    def _apply_weight(self, function: Map, scale: Tensor | None, form: Map = lambda weight: weight) -> Tensor:
        """``function(form(weight))`` of the effective weight."""
        return function(form(self.effective_weight(scale)))

    @property
    def _thin(self) -> bool:
        """Whether to subsample the input first, which is the same function: torch's backward pass of strided 1x1
        convolutions with few channels (2.11 to 2.15, oneDNN, channels last) writes beyond its memory."""
        return self.kernel_size == 1 and self.stride != 1 and self.in_channels < 16 and self._symmetric_padding() == 0

    def _single_place(self, x: Tensor, padding: Size) -> bool:
        """Whether training in bfloat16 on a CPU meets a map on which the kernel has one place, where any stride is the
        same function: torch's weight gradient of the strided convolution (seen with 2.15, oneDNN with AVX512-BF16)
        holds what lay in memory before."""
        if not torch.is_grad_enabled() or x.device.type != "cpu":
            return False
        if x.dtype != torch.bfloat16 and autocast_type(x) != torch.bfloat16:
            return False
        sides = zip(x.shape[-self.dims :], per_axis(padding, self.dims), self._extents(), strict=True)
        return all(side + 2 * pad == extent for side, pad, extent in sides)

    def _extents(self) -> list[int]:
        """Places that the dilated kernel spans, on each axis."""
        kernel, dilation = per_axis(self.kernel_size, self.dims), per_axis(self.dilation, self.dims)
        return [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]

    @torch.no_grad()
    def folded(self, scale: Tensor | None = None, *, plain_type: type[nn.Module] | None = None) -> Any:
        """The same function as a plain convolution of the effective weight, with the same hooks.

        It is a :class:`.PaddedConv2d`, or its like of another dimension, if the padding depends on the size. ``scale``
        multiplies the output. A subclass that overrides ``forward`` must override ``folded``, too.
        """
        symmetric = self._symmetric_padding()
        weight = self.effective_weight(scale)
        kind: Any = PADDED[self.dims] if symmetric is None else plain_type or PLAIN[self.dims]
        plain = kind(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            0 if symmetric is None else symmetric,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        if symmetric is None:
            plain.atrous = self.atrous
        return self._filled(plain, weight, scale)

    def _filled(self, plain: Any, weight: Tensor, scale: Tensor | None) -> Any:
        """A plain layer with this weight and this layer's bias, in this layer's place."""
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.clone() if scale is None else self.bias * scale, requires_grad=False)
        return in_place_of(self, plain)

    def overridden(self) -> str | None:
        """The method that a subclass overrides without overriding :meth:`folded`; None: there is none."""
        computing = ("forward", "__call__", "_apply_weight", "_pad")
        for kind in (None, *type(self).__mro__):
            own = vars(self if kind is None else kind)
            if "folded" in own:
                break
            if method := next((name for name in computing if name in own), None):
                return method
        return None

    def _padding(self, padding: str | Size) -> str | Size:
        """The padding as given, "symmetric" as numbers.

        Raises:
            UsageError: it is none.
        """
        if padding == "symmetric":
            return joined([(extent - 1) // 2 for extent in self._extents()])
        if padding == "same":
            return padding
        try:
            return axes("padding", padding, self.dims, least=0)
        except UsageError as error:
            each = "" if self.dims < 2 else f", or {self.dims} of them"
            what = f'"same", "symmetric" or an integer of at least 0{each}'
            raise UsageError(f"padding (={padding!r}) must be {what}") from error

    def _symmetric_padding(self) -> Any:
        """The padding, an int or one per axis, if it is the same on both sides for every image size; else None."""
        if self.padding != "same":
            return self.padding
        if self._alike:
            reach = (self.kernel_size - 1) * self.dilation
            return reach // 2 if reach == 0 or (self.stride == self.atrous == 1 and reach % 2 == 0) else None
        reaches, steps = [extent - 1 for extent in self._extents()], self._same_steps()
        if all(reach == 0 or (step == 1 and reach % 2 == 0) for reach, step in zip(reaches, steps, strict=True)):
            return joined([reach // 2 for reach in reaches])
        return None

    def _same_steps(self) -> list[int]:
        """The stride of each axis, or the one that dilation has replaced."""
        pairs = zip(per_axis(self.stride, self.dims), per_axis(self.atrous, self.dims), strict=True)
        return [stride * atrous for stride, atrous in pairs]

    def _pad(self, x: Tensor) -> tuple[Tensor, Any]:
        """The input, padded if the padding differs between sides, and the padding that is left to the convolution."""
        symmetric = self._symmetric_padding()
        if symmetric is not None:
            return x, symmetric
        geometry = self.kernel_size, self.stride, self.dilation, self.atrous, self.dims
        padded, padding = pad_same(x, *geometry)
        return derived(x, padded, lambda x: pad_same(x, *geometry)[0]), padding

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding!r}"
        for name, default in dict(dilation=1, groups=1, atrous=1).items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        if not math.isclose(self.input_scale, 1.0):
            text += f", input_scale={self.input_scale:.4g}"
        return text + ("" if self.bias is not None else ", bias=False")


class SameConv1d(SameConv):
    """1-D convolution of the raw weight: (N, in_channels, L) -> (N, out_channels, L'); see :class:`SameConv`.

    Example:
        >>> SameConv1d(3, 8, 5, stride=2)(torch.randn(1, 3, 7)).shape
        torch.Size([1, 8, 4])
    """

    dims = 1


class SameConv2d(SameConv):
    """2-D convolution of the raw weight, padded as TensorFlow does; the control beside :class:`.WSConv2d`.

    ``(N, in_channels, H, W) -> (N, out_channels, H', W')``. Parameters: ``weight`` (out, in / groups, k, k), ``bias``
    (out,). The arguments, and what is refused, are those of :class:`SameConv`.

    Example:
        >>> SameConv2d(3, 8, 3, stride=2)(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 4, 4])
        >>> SameConv2d(3, 8, (1, 5), stride=(1, 2))(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 7, 4])
    """

    dims = 2


class SameConv3d(SameConv):
    """3-D convolution of the raw weight: (N, in_channels, D, H, W) -> (N, out_channels, D', H', W'); see
    :class:`SameConv`.

    Example:
        >>> SameConv3d(3, 8, 3, stride=2)(torch.randn(1, 3, 7, 7, 4)).shape
        torch.Size([1, 8, 4, 4, 2])
    """

    dims = 3


def axes(name: str, value: Any, dims: int, least: int = 1) -> int | tuple[int, ...]:
    """A size of a convolution as a number, where all axes have the same, or a tuple.

    Raises:
        UsageError: it is no integer of at least ``least``, or another number of them.

    Example:
        >>> axes("stride", (2, 2), 2), axes("stride", [1, 2], 2)
        (2, (1, 2))
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != dims:
            raise UsageError(f"{name} (={value!r}) must be one integer, or one for each of {dims} axes")
    else:
        value = (value,) * dims
    for one in value:
        if least or one != 0 or isinstance(one, bool):
            check_count(name, one)
    return joined(value)


def joined(values: Sequence[int]) -> int | tuple[int, ...]:
    """One number where all are the same (1 of none), else the tuple."""
    return tuple(values) if len(set(values)) > 1 else next(iter(values), 1)


def in_place_of(module: nn.Module, other: Other) -> Other:
    """``other`` with the mode and the hooks of ``module``; the handles of the hooks stay valid."""
    hooks = ("_forward_", "_backward_", "_is_full_backward_hook")
    vars(other).update({name: value for name, value in vars(module).items() if name.startswith(hooks)})
    other.training = module.training
    return other


def autocast_type(weight: Tensor) -> torch.dtype | None:
    """The type to which autocast will convert a standardized weight, to write it so at once; None: no conversion."""
    device = weight.device.type
    if weight.dtype == torch.float32 and device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
