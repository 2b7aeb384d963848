"""The convolution with TensorFlow's "SAME" padding, of the raw weight; what it becomes once it is folded."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError, check_count, check_finite
from ..functional import pad_same
from .recompute import derived
from .roles import Role

Map = Callable[[Tensor], Tensor]
Other = TypeVar("Other", bound=nn.Module)


class SameConv2d(nn.Module):
    """2-D convolution of the raw weight, padded as TensorFlow does; the control beside :class:`.WSConv2d`.

    ``(N, in_channels, H, W) -> (N, out_channels, H', W')``. Parameters: ``weight`` (out, in / groups, k, k), ``bias``
    (out,).

    Args:
        in_channels, out_channels, stride, dilation, groups: as in :class:`torch.nn.Conv2d`.
        kernel_size: side of the square kernel.
        padding: "same" pads as TensorFlow does (more behind than before where the total is odd, also under strides),
            "symmetric" by half of the dilated kernel, an int by that many zeros on every side.
        bias: whether to add a bias.
        init_gain: the weight starts normal with variance ``init_gain ** 2 / fan_in``; sqrt(2) behind a ReLU is He
            initialization.
        input_scale: a constant factor of the input (1 / beta of the block, gamma of the activation), folded into the
            weight.
        atrous: the stride that dilation has replaced; "same" padding then keeps that stride's outputs among the
            outputs.

    Raises:
        UsageError: channels not divisible by groups, a size below 1, an unknown padding, a number that is not finite.

    Example:
        >>> SameConv2d(3, 8, 3, stride=2)(torch.randn(1, 3, 7, 7)).shape
        torch.Size([1, 8, 4, 4])
    """

    parameter_roles = {"weight": Role.WEIGHT, "bias": Role.BIAS}
    centred = False  # whether the weights of each output have a mean of 0, at least at initialization

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: str | int = "same",
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        init_gain: float = 1.0,
        input_scale: float = 1.0,
        atrous: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = dict(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, stride=stride)
        for name, value in dict(sizes, dilation=dilation, groups=groups, atrous=atrous).items():
            check_count(name, value)
        for name, value in dict(init_gain=init_gain, input_scale=input_scale).items():
            check_finite(name, value)
        for name in ("in_channels", "out_channels"):
            if sizes[name] % groups:
                raise UsageError(f"{name} (={sizes[name]}) must be divisible by groups (={groups})")
        if padding == "symmetric":
            padding = (kernel_size - 1) * dilation // 2
        if padding != "same" and (not isinstance(padding, int) or isinstance(padding, bool) or padding < 0):
            raise UsageError(f'padding (={padding!r}) must be "same", "symmetric" or an integer of at least 0')
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.init_gain, self.input_scale, self.atrous = init_gain, input_scale, atrous
        shape = out_channels, in_channels // groups, kernel_size, kernel_size
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
            strided = lambda x: x[..., :: self.stride, :: self.stride].clone()  # noqa: E731
            x, stride = derived(x, strided(x), strided), 1
        elif stride > 1 and self._single_place(x, padding):
            stride = 1
        bias = self.bias if scale is None or self.bias is None else self.bias * scale
        return self._apply_weight(lambda w: F.conv2d(x, w, bias, stride, padding, self.dilation, self.groups), scale)

    def _apply_weight(self, function: Map, scale: Tensor | None, form: Map = lambda weight: weight) -> Tensor:
        """``function(form(weight))`` of the effective weight."""
        return function(form(self.effective_weight(scale)))

    @property
    def _thin(self) -> bool:
        """Whether to subsample the input first, which is the same function: torch's backward pass of strided 1x1
        convolutions with few channels (2.11 to 2.15, oneDNN, channels last) writes beyond its memory."""
        return self.kernel_size == 1 and self.stride > 1 and self.in_channels < 16 and self._symmetric_padding() == 0

    def _single_place(self, x: Tensor, padding: int) -> bool:
        """Whether training in bfloat16 on a CPU meets a map on which the kernel has one place, where any stride is the
        same function: torch's weight gradient of the strided convolution (seen with 2.15, oneDNN with AVX512-BF16)
        holds what lay in memory before."""
        if not torch.is_grad_enabled() or x.device.type != "cpu":
            return False
        bfloat16 = x.dtype == torch.bfloat16 or autocast_type(x) == torch.bfloat16
        extent = (self.kernel_size - 1) * self.dilation + 1
        return bfloat16 and all(side + 2 * padding == extent for side in x.shape[-2:])

    @torch.no_grad()
    def folded(self, scale: Tensor | None = None, *, plain_type: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
        """The same function as a plain convolution of the effective weight, with the same hooks.

        It is a :class:`PaddedConv2d` if the padding depends on the size. ``scale`` multiplies the output. A subclass
        that overrides ``forward`` must override ``folded``, too.
        """
        symmetric = self._symmetric_padding()
        weight = self.effective_weight(scale)
        kind = PaddedConv2d if symmetric is None else plain_type
        plain = kind(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            symmetric or 0,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            device="meta",
        )
        if isinstance(plain, PaddedConv2d):
            plain.atrous = self.atrous
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

    def _symmetric_padding(self) -> int | None:
        """The padding if it is the same on all sides for every image size; else None."""
        if not isinstance(self.padding, str):
            return self.padding
        reach = (self.kernel_size - 1) * self.dilation
        if reach == 0 or (self.stride == self.atrous == 1 and reach % 2 == 0):
            return reach // 2
        return None

    def _pad(self, x: Tensor) -> tuple[Tensor, int]:
        """The input, padded if the padding differs between sides, and the padding that is left to the convolution."""
        symmetric = self._symmetric_padding()
        if symmetric is not None:
            return x, symmetric
        geometry = self.kernel_size, self.stride, self.dilation, self.atrous
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


def in_place_of(module: nn.Module, other: Other) -> Other:
    """``other`` with the mode and the hooks of ``module``; the handles of the hooks stay valid."""
    hooks = ("_forward_", "_backward_", "_is_full_backward_hook")
    vars(other).update({name: value for name, value in vars(module).items() if name.startswith(hooks)})
    other.training = module.training
    return other


class FoldedConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` with the interface of the :class:`SameConv2d` that it was folded from."""

    def standardized_weight(self, scale: Tensor | None = None) -> Tensor:
        """As in :class:`.WSConv2d`; the weight is standardized already."""
        return self.weight if scale is None else self.weight * scale

    effective_weight = standardized_weight

    def forward(self, input: Tensor, scale: Tensor | None = None) -> Tensor:
        """``scale`` (a tensor of one element) multiplies the output."""
        out = self._convolve(input)
        return out if scale is None else out * scale

    def _convolve(self, x: Tensor) -> Tensor:
        return super().forward(x)


class PaddedConv2d(FoldedConv2d):
    """:class:`torch.nn.Conv2d` with TensorFlow's "SAME" padding at any stride and size; a result of folding.

    Example:
        >>> SameConv2d(3, 8, 3, stride=2).folded()
        PaddedConv2d(3, 8, kernel_size=(3, 3), stride=(2, 2))
    """

    atrous = 1

    @property
    def same(self) -> tuple[int, int, int, int]:
        """The arguments of the padding beside the size: kernel size, stride, dilation, atrous."""
        return self.kernel_size[0], self.stride[0], self.dilation[0], self.atrous

    def _convolve(self, x: Tensor) -> Tensor:
        x, padding = pad_same(x, *self.same)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def autocast_type(weight: Tensor) -> torch.dtype | None:
    """The type to which autocast will convert a standardized weight, to write it so at once; None: no conversion."""
    device = weight.device.type
    if weight.dtype == torch.float32 and device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None
