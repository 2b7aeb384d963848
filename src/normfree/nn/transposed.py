"""Transposed convolutions of a standardized weight, of one to three dimensions."""

import math
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from ..functional import per_axis, standardize_transposed, swap_channels
from .conv import Size, axes, joined
from .folded import CROPPED, TRANSPOSED, cropped
from .weight_schemes import GainOptions, WSConv

CONVOLVE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class WSConvTranspose(WSConv):
    """Transposed convolution of a standardized weight, with a gain and a bias per output channel.

    ``(N, in_channels, *places) -> (N, out_channels, *places * stride)``. Parameters: ``weight`` (out, in / groups,
    *kernel), ``gain`` (out,), ``bias`` (out,). The weight's first dimension is the output channel, unlike torch's
    (:func:`normfree.functional.swap_channels` converts): so a row is a unit, for Adaptive Gradient Clipping and for
    sharding. The weight is standardized for each set of taps that reach the same places
    (:func:`normfree.functional.standardize_transposed`), which keeps the variance at any stride. Take
    :class:`WSConvTranspose1d`, :class:`WSConvTranspose2d` or :class:`WSConvTranspose3d`.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, bias, gain, input_scale, eps, add_eps: as in
            :class:`.WSConv`.
        padding: "same": the output has ``size * stride`` places and the layer is the transposed map of a
            :class:`.SameConv` of the same numbers, as in TensorFlow; "symmetric": as many places, by half of the
            dilated kernel as in most networks of torch; an int, or one for each axis, as in
            :class:`torch.nn.ConvTranspose2d`.
        output_padding: as there, with a padding in numbers.

    Raises:
        UsageError: as in :class:`.WSConv`; places that a single weight reaches, whose standardized weight is 0; an
            output padding with a padding by name, or not below stride or dilation.
    """

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
        output_padding: Size = 0,
        add_eps: bool = False,
        **options: Unpack[GainOptions],
    ):
        if options.get("atrous", 1) != 1:
            raise UsageError(f"atrous (={options.get('atrous')!r}) is for convolutions that are not transposed")
        place = in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        super().__init__(*place, add_eps=add_eps, **options)
        if padding in ("same", "symmetric") and output_padding != 0:
            raise UsageError(f"output_padding (={output_padding!r}) needs padding in numbers; it is {padding!r}")
        self.symmetric = padding == "symmetric"
        self.output_padding = axes("output_padding", output_padding, self.dims, least=0)
        steps = zip(*(per_axis(v, self.dims) for v in (self.output_padding, self.stride, self.dilation)), strict=True)
        if any(more and more >= max(stride, dilation) for more, stride, dilation in steps):
            raise UsageError(f"output_padding (={output_padding!r}) must be below stride or dilation")
        if in_channels == groups and self._fewest_taps() == 1:
            raise UsageError(
                f"kernel_size (={kernel_size!r}) with stride (={stride!r}) and in_channels / groups "
                f"(={in_channels} / {groups}) has places that one weight reaches, which standardization makes 0; take "
                "fewer groups or a larger kernel"
            )

    def _fewest_taps(self) -> int:
        """Taps of the kernel that reach a place, the fewest that are not 0."""
        geometry = (per_axis(v, self.dims) for v in (self.kernel_size, self.stride, self.dilation))
        return math.prod(max(1, k // (s // math.gcd(s, d))) for k, s, d in zip(*geometry, strict=True))

    def reparameterized(
        self, weight: Tensor, gain: Tensor | None, scale: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        """The standardized weight from given parameters, in a type (None: the weight's)."""
        if self.stride == 1:
            return super().reparameterized(weight, gain, scale, dtype)
        standardized = standardize_transposed(
            weight,
            gain,
            stride=self.stride,
            dilation=self.dilation,
            scale=self._factor(scale),
            eps=self.eps,
            add_eps=self.add_eps,
        )
        return standardized if dtype is None else standardized.to(dtype)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """``scale`` (a tensor of one element) multiplies the output, folded into weight and bias."""
        padding, more, crop = self._ends()
        bias = self.bias if scale is None or self.bias is None else self.bias * scale
        how = self.stride, padding, more, self.groups, self.dilation
        convolve = CONVOLVE[self.dims]
        out = self._apply_weight(
            lambda w: convolve(x, w, bias, *how), scale, lambda weight: swap_channels(weight, self.groups)
        )
        return cropped(out, crop)

    def _ends(self) -> tuple[Any, Any, tuple[int, ...]]:
        """The padding and output padding of torch's operation, and how many places to crop behind, on each axis."""
        if self.padding != "same" and not self.symmetric:
            return self.padding, self.output_padding, (0,) * self.dims
        pads, more, crop = [], [], []
        for extent, stride in zip(self._extents(), per_axis(self.stride, self.dims), strict=True):
            over = extent - stride  # places that torch has beyond size * stride
            pad = (extent - 1) // 2 if self.symmetric else max(0, over // 2)
            pads.append(pad)
            more.append(max(0, 2 * pad - over))
            crop.append(0 if self.symmetric else max(0, over - 2 * pad))
        return joined(pads), joined(more), tuple(crop)

    @torch.no_grad()
    def folded(self, scale: Tensor | None = None, *, plain_type: type[nn.Module] | None = None) -> Any:
        """The same function as a plain transposed convolution of the standardized weight, with the same hooks.

        ``scale`` multiplies the output. A subclass that overrides ``forward`` must override ``folded``, too.
        """
        padding, more, crop = self._ends()
        kind: Any = CROPPED[self.dims] if any(crop) else plain_type or TRANSPOSED[self.dims]
        plain = kind(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            padding,
            more,
            self.groups,
            bias=self.bias is not None,
            dilation=self.dilation,
            device="meta",
        )
        if any(crop):
            plain.crop = crop
        weight = swap_channels(self.effective_weight(scale), self.groups)
        return self._filled(plain, weight.contiguous(), scale)

    def extra_repr(self) -> str:
        padding = repr("symmetric") if self.symmetric else repr(self.padding)
        text = super().extra_repr().replace(f"padding={self.padding!r}", f"padding={padding}")
        return text + (f", output_padding={self.output_padding}" if self.output_padding != 0 else "")


class WSConvTranspose1d(WSConvTranspose):
    """1-D: (N, in_channels, L) -> (N, out_channels, L * stride); see :class:`WSConvTranspose`.

    Example:
        >>> WSConvTranspose1d(16, 8, 4, stride=2)(torch.randn(1, 16, 10)).shape
        torch.Size([1, 8, 20])
    """

    dims = 1


class WSConvTranspose2d(WSConvTranspose):
    """2-D: (N, in_channels, H, W) -> (N, out_channels, H * stride, W * stride); see :class:`WSConvTranspose`.

    Example:
        >>> WSConvTranspose2d(16, 8, 2, stride=2)(torch.randn(1, 16, 5, 7)).shape
        torch.Size([1, 8, 10, 14])
    """

    dims = 2


class WSConvTranspose3d(WSConvTranspose):
    """3-D: (N, in_channels, D, H, W) -> (N, out_channels, D * stride, H * stride, W * stride); see
    :class:`WSConvTranspose`.

    Example:
        >>> WSConvTranspose3d(16, 8, 2, stride=(1, 2, 2))(torch.randn(1, 16, 4, 5, 7)).shape
        torch.Size([1, 8, 4, 10, 14])
    """

    dims = 3
