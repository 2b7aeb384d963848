"""Bicubic resizing exactly as the papers' pipelines do it, and the evaluation preprocessing built on it."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cubic_taps(size: int, out_size: int, start: int = 0, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Source positions and weights of each output place along one axis: (out_size, 4) int64 and float32.

    Keys' cubic with a = -0.5 at half-pixel centres, not widened when shrinking (no antialiasing). Taps outside the
    image get weight 0 and the rest is normalized to 1. This is TensorFlow's bicubic resize; torch's uses a = -0.75.

    Args:
        size: places along the axis of the image.
        out_size: places of the output.
        start, length: the window of the image that is resized; None: all of it from ``start`` on.
    """
    length = size - start if length is None else length
    scale = torch.tensor(length / out_size, dtype=torch.float32)
    centre = (torch.arange(out_size, dtype=torch.float32) + 0.5) * scale - 0.5  # within the window
    base = centre.floor()
    offset = torch.round((centre - base) * 1024) / 1024  # TensorFlow looks the kernel up in a table of 1024 steps
    index = base.long()[:, None] + torch.arange(-1, 3) + start
    t = (offset[:, None] - torch.arange(-1, 3)).abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t <= 1, near, far)
    inside = (index >= start) & (index < start + length)
    weight = torch.where(inside, weight, 0.0)
    weight = weight / weight.sum(1, keepdim=True)
    return index.clamp(0, size - 1), weight


def resize_bicubic(image: Tensor, height: int, width: int, window: tuple[int, int, int, int] | None = None) -> Tensor:
    """Resize a (C, H, W) image, or a window of it, to (C, height, width), float32 on the input's scale.

    Values may overshoot the input's range a little, as a cubic's do; they are not clipped.

    >>> resize_bicubic(torch.rand(3, 40, 60), 20, 30).shape
    torch.Size([3, 20, 30])

    Args:
        image: any numeric type.
        window: (top, left, height, width) in pixels; None is the whole image.
    """
    top, left, window_height, window_width = window or (0, 0, *image.shape[-2:])
    image = image[:, top : top + window_height, left : left + window_width]
    # both passes mix whole rows, which lie together in memory: (y, x, c), then (x, c, y), and back
    mixed = _mix_rows(image.permute(1, 2, 0).to(torch.float32).reshape(window_height, -1), height)
    mixed = _mix_rows(mixed.t().reshape(window_width, -1), width)
    return mixed.t().contiguous().view(-1, height, width)


def _mix_rows(matrix: Tensor, out_size: int) -> Tensor:
    """(size, length) float32 -> (out_size, length): the resize of the first axis."""
    index, weight = _taps(len(matrix), out_size)
    return F.embedding_bag(index, matrix, per_sample_weights=weight, mode="sum")


@functools.lru_cache(maxsize=1024)  # 10 KiB each at 224 pixels; random windows come in a few hundred lengths
def _taps(size: int, out_size: int) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.device("cpu"):  # kept beyond the caller's mode and default device
        return cubic_taps(size, out_size)


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The middle (C, size, size) of a (C, H, W) image."""
    top, left = (image.shape[-2] - size) // 2, (image.shape[-1] - size) // 2
    return image[:, top : top + size, left : left + size]


def evaluation_view(image: Tensor, size: int, margin: int = 32) -> Tensor:
    """The NFNets' evaluation preprocessing: squash to (size + margin) squared, then the centre crop of ``size``.

    (C, H, W) -> (C, size, size), float32 on the input's scale. The aspect is not kept and nothing is antialiased: this
    is how the published accuracies of NFNets were measured (released ``resize_crop_32``).

    >>> evaluation_view(torch.rand(3, 40, 60), 32, margin=8).shape
    torch.Size([3, 32, 32])
    """
    return centre_crop(resize_bicubic(image, size + margin, size + margin), size)


def padded_centre_window(height: int, width: int, size: int, margin: int = 32) -> tuple[int, int, int, int]:
    """Top, left, height and width of the middle square of ``size / (size + margin)`` of an image's shorter side."""
    side = max(1, int(min(height, width) / (size + margin) * size))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def centre_view(image: Tensor, size: int, margin: int = 32) -> Tensor:
    """The first paper's evaluation preprocessing: the padded centre window, resized to ``size`` squared.

    (C, H, W) -> (C, size, size), float32 on the input's scale. The aspect is kept and nothing is antialiased. The
    released NF-ResNets, NF-RegNets and controls were evaluated so (``crop_resize``).

    >>> centre_view(torch.rand(3, 40, 60), 32, margin=8).shape
    torch.Size([3, 32, 32])
    """
    height, width = image.shape[-2:]
    return resize_bicubic(image, size, size, padded_centre_window(height, width, size, margin))


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image / 255 - mean) / std per channel, of a (C, H, W) image on the 0..255 scale.

    >>> normalize(torch.full((1, 1, 1), 255), mean=[0.5], std=[0.25])
    tensor([[[2.]]])
    """
    scale = torch.tensor([1 / (255 * s) for s in std])
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)])
    return (image * scale[:, None, None]).sub_(shift[:, None, None])


def pixels_of(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The (C, H, W) uint8 image that :func:`normalize` made a float32 one of."""
    scale, shift = (torch.tensor(values)[:, None, None] for values in (std, mean))
    return ((image * scale + shift) * 255).round_().clamp_(0, 255).byte()
