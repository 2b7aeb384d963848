"""Convolutions and linear layers: gradients of their weights for each example, and the norms of these.

The gradient of a weight for one example is ``D @ U.T``, where ``U`` (K, P) holds what the layer sees at each of its P
places and ``D`` (out, P) the gradient of its output. Its norm can be had without it: ``|D U^T|^2 = <U^T U, D^T D>``
(Goodfellow 2015, arXiv:1510.01799; for convolutions Rochette et al. 2019, arXiv:1912.06015). The cheaper way is taken
for each layer.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

THIN = 8  # channels of a group, below which all offsets of a kernel are taken in one product
Patches = list[Tensor]  # (n, groups, K, P) for each offset of the kernel, or for all of them


@dataclass(frozen=True)
class Linear:
    """``x @ weight.T + bias`` of (rows, ..., in)."""

    groups = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Any, ...]:
        """Gradients of input, weight and bias, those that are wanted."""
        flat = grad.flatten(0, -2)
        return (
            grad @ weight if wanted[0] else None,
            flat.T @ x.flatten(0, -2) if wanted[1] else None,
            flat.sum(0) if wanted[2] else None,
        )

    def places(self, out: Tensor) -> int:
        return out[0].numel() // out.shape[-1]

    def patches(self, x: Tensor, weight: Tensor, out: torch.Size, views: int, centred: bool) -> Patches:
        seen = x - x.mean(-1, keepdim=True) if centred else x
        return [self.columns(seen, views)]

    def columns(self, x: Tensor, views: int) -> Tensor:
        """(examples * views, ..., C) -> (examples, 1, C, views * places)."""
        return x.reshape(x.shape[0] // views, 1, -1, x.shape[-1]).transpose(2, 3)

    def ordered(self, weight: Tensor) -> Tensor:
        """A weight's rows in the order of :meth:`patches`: (groups, out / groups, K)."""
        return weight[None]

    def shaped(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(n, groups, out / groups, K) in the shape of the weight: (n, out, in)."""
        return rows[:, 0]

    def over_places(self, x: Tensor) -> Tensor:
        """(rows, ..., C) summed over places: (rows, C)."""
        return x.flatten(1, -2).sum(1) if x.ndim > 2 else x


@dataclass(frozen=True)
class Convolution:
    """A convolution over any number of dimensions; ``padding`` is symmetric."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        zeros = [0] * len(self.stride)
        how = [*self.stride], [*self.padding], [*self.dilation], False, zeros, self.groups
        return torch.ops.aten.convolution(x, weight, bias, *how)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Any, ...]:
        """Gradients of input, weight and bias, those that are wanted."""
        zeros = [0] * len(self.stride)
        how = [*self.stride], [*self.padding], [*self.dilation], False, zeros, self.groups
        return torch.ops.aten.convolution_backward(grad, x, weight, [weight.shape[0]], *how, list(wanted))

    def places(self, out: Tensor) -> int:
        return out[0, 0].numel()

    def patches(self, x: Tensor, weight: Tensor, out: torch.Size, views: int, centred: bool) -> Patches:
        """What the kernel sees, by offset: (n, groups, C / groups, views * places) each; all at once if C is small.

        Args:
            out: shape of the output's places.
            centred: subtract the mean over channels and offsets, place by place.
        """
        padded = F.pad(x, [side for pad in reversed(self.padding) for side in (pad, pad)]) if any(self.padding) else x
        slices = [padded[index] for index in self._offsets(weight.shape[2:], out)]
        if centred:
            mean = self._mean(padded, weight, out)
            grouped = [part.unflatten(1, (self.groups, -1)) - mean for part in slices]
            slices = [part.flatten(1, 2) for part in grouped]
        if len(slices) > 1 and weight.shape[1] < THIN:
            stacked = torch.stack([part.unflatten(1, (self.groups, -1)) for part in slices], 2)
            return [self.columns(stacked.flatten(1, 3), views)]
        return [self.columns(part, views) for part in slices]

    def _offsets(self, kernel: torch.Size, out: torch.Size) -> Iterator[tuple[slice, ...]]:
        for offset in itertools.product(*map(range, kernel)):
            starts = [at * dilation for at, dilation in zip(offset, self.dilation, strict=True)]
            ends = [first + (size - 1) * step + 1 for first, size, step in zip(starts, out, self.stride, strict=True)]
            yield (slice(None), slice(None), *map(slice, starts, ends, self.stride))

    def _mean(self, padded: Tensor, weight: Tensor, out: torch.Size) -> Tensor:
        """Over channels and offsets: (rows, groups, 1, *places)."""
        sums = padded.unflatten(1, (self.groups, -1)).sum(2)
        total = sum(sums[index] for index in self._offsets(weight.shape[2:], out))
        assert isinstance(total, Tensor)
        return (total / weight[0].numel()).unsqueeze(2)

    def columns(self, x: Tensor, views: int) -> Tensor:
        """(examples * views, C, *places) -> (examples, groups, C / groups, views * places)."""
        n, channels = x.shape[0] // views, x.shape[1]
        x = x.reshape(n, views, self.groups, channels // self.groups, -1)
        return x.squeeze(1) if views == 1 else x.permute(0, 2, 3, 1, 4).flatten(3)

    def ordered(self, weight: Tensor) -> Tensor:
        """A weight's rows in the order of :meth:`patches`: (groups, out / groups, K), offsets before channels."""
        return weight.movedim(1, -1).reshape(self.groups, weight.shape[0] // self.groups, -1)

    def shaped(self, rows: Tensor, weight: Tensor) -> Tensor:
        """(n, groups, out / groups, K) in the shape of the weight: (n, out, C / groups, *kernel)."""
        return rows.reshape(len(rows), weight.shape[0], *weight.shape[2:], weight.shape[1]).movedim(-1, 2)

    def over_places(self, x: Tensor) -> Tensor:
        """(rows, C, *places) summed over places: (rows, C)."""
        return x.flatten(2).sum(2)


Layer = Linear | Convolution


def each_gradient(layer: Layer, x: Tensor, grad: Tensor, weight: Tensor, views: int) -> Tensor:
    """The weight's gradient for each example: (n, groups, out / groups, K), offsets before channels.

    Args:
        x, grad: input and gradient of the output, (n * views, ...).
    """
    outputs = layer.columns(grad, views)
    parts = layer.patches(x, weight, grad.shape[2:], views, centred=False)
    products = [outputs @ part.transpose(2, 3) for part in parts]
    return products[0] if len(products) == 1 else torch.cat(products, 3)


def squared_norm(
    layer: Layer, x: Tensor, grad: Tensor, weight: Tensor, views: int, factor: Tensor | None, centred: bool
) -> Tensor:
    """Squared norm of the weight's gradient for each example, (n,), from products of places.

    Args:
        factor: (out,), multiplies the gradient of each unit; None: 1.
        centred: less its mean over K, for each unit.
    """
    outputs = layer.columns(grad, views)
    if factor is not None:
        outputs = outputs * factor.view(1, layer.groups, -1, 1).to(outputs.dtype)
    seen = None
    for part in layer.patches(x, weight, grad.shape[2:], views, centred):
        product = part.transpose(2, 3) @ part
        seen = product if seen is None else seen.add_(product)
    assert seen is not None
    return ((outputs.transpose(2, 3) @ outputs) * seen).sum((1, 2, 3))


def places_are_cheaper(layer: Layer, weight: Tensor, places: int) -> bool:
    """Whether products of places take fewer operations than the gradient itself.

    Args:
        places: of all views of an example.
    """
    width, height = weight[0].numel(), weight.shape[0] // layer.groups
    return places * (width + height) < width * height


def bytes_per_example(layer: Layer, x: Tensor, grad: Tensor, weight: Tensor, views: int, by_places: bool) -> int:
    """Memory of the temporaries for one example."""
    places = views * layer.places(grad)
    parts = (x[0].numel() + grad[0].numel()) * views + weight[0].numel() * layer.groups * places
    products = 2 * layer.groups * places**2 if by_places else 3 * weight.numel()
    return 4 * (parts + products)
