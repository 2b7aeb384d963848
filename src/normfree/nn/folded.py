"""Plain convolutions that stand in the place of folded ones."""

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import pad_same


class FoldedConv(nn.Module):
    """A plain convolution of torch with the interface of the :class:`.SameConv` that it was folded from."""

    weight: Tensor

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


class FoldedConv1d(FoldedConv, nn.Conv1d):
    """:class:`torch.nn.Conv1d` that takes ``scale``, as the layer that it was folded from."""


class FoldedConv2d(FoldedConv, nn.Conv2d):
    """:class:`torch.nn.Conv2d` that takes ``scale``, as the layer that it was folded from."""


class FoldedConv3d(FoldedConv, nn.Conv3d):
    """:class:`torch.nn.Conv3d` that takes ``scale``, as the layer that it was folded from."""


class FoldedLinear(FoldedConv, nn.Linear):
    """:class:`torch.nn.Linear` that takes ``scale``, as the layer that it was folded from."""


class PaddedConv(FoldedConv):
    """A plain convolution with TensorFlow's "SAME" padding at any stride and size; a result of folding."""

    atrous: Any = 1
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: Tensor | None

    @property
    def same(self) -> tuple[Any, Any, Any, Any]:
        """The arguments of the padding beside the size: kernel size, stride, dilation, atrous."""
        return self.kernel_size, self.stride, self.dilation, self.atrous

    def _convolve(self, x: Tensor) -> Tensor:
        x, padding = pad_same(x, *self.same, len(self.kernel_size))
        convolve = CONVOLVE[len(self.kernel_size)]
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class PaddedConv1d(PaddedConv, FoldedConv1d):
    """:class:`torch.nn.Conv1d` with TensorFlow's "SAME" padding at any stride and size; a result of folding."""


class PaddedConv2d(PaddedConv, FoldedConv2d):
    """:class:`torch.nn.Conv2d` with TensorFlow's "SAME" padding at any stride and size; a result of folding.

    Example:
        >>> normfree.nn.SameConv2d(3, 8, 3, stride=2).folded()
        PaddedConv2d(3, 8, kernel_size=(3, 3), stride=(2, 2))
    """


class PaddedConv3d(PaddedConv, FoldedConv3d):
    """:class:`torch.nn.Conv3d` with TensorFlow's "SAME" padding at any stride and size; a result of folding."""


class CroppedTranspose(nn.Module):
    """A plain transposed convolution without its last places; a result of folding.

    Attributes:
        crop: number of the places, on each axis.
    """

    crop: tuple[int, ...] = ()

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return cropped(super().forward(input, output_size), self.crop)


class CroppedConvTranspose1d(CroppedTranspose, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d` without its last places; a result of folding."""


class CroppedConvTranspose2d(CroppedTranspose, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d` without its last places; a result of folding."""


class CroppedConvTranspose3d(CroppedTranspose, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d` without its last places; a result of folding."""


def cropped(x: Tensor, crop: tuple[int, ...]) -> Tensor:
    """``x`` without the last places of its last axes."""
    for axis, places in enumerate(crop, start=-len(crop)):
        x = x.narrow(axis, 0, x.shape[axis] - places) if places else x
    return x


CONVOLVE = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
PLAIN: dict[int, type[nn.Module]] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FOLDED: dict[int, type[nn.Module]] = {0: FoldedLinear, 1: FoldedConv1d, 2: FoldedConv2d, 3: FoldedConv3d}
PADDED: dict[int, type[nn.Module]] = {1: PaddedConv1d, 2: PaddedConv2d, 3: PaddedConv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CROPPED: dict[int, type[nn.Module]] = {1: CroppedConvTranspose1d, 2: CroppedConvTranspose2d, 3: CroppedConvTranspose3d}
