"""Volumes that are too large to be seen at once: in windows that overlap, blended smoothly."""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = 2**21  # voxels of a volume that is seen at once, such as 128 x 128 x 128: about 1 GB in `nf_unet3d`


def in_windows(
    run: Callable[[Tensor], Tensor], volumes: Tensor, window: tuple[int, int, int], whole: int = WHOLE
) -> Tensor:
    """The output of a network for volumes of any size: (N, C, D, H, W) -> (N, K, D, H, W).

    Up to ``whole`` voxels, the network sees a volume at once. Else it sees windows that overlap by half or more, and
    the output at a voxel is the mean of theirs, weighted by :func:`window_weights`. A volume that is smaller than the
    window along an axis lies in the middle of zeros there, which are the mean.

    Args:
        run: the network, (N, C, d, h, w) -> (N, K, d, h, w).
        window: its sides; of a network that takes volumes of one size, that size.
        whole: 0: always in windows.

    Example:
        >>> volumes = torch.randn(1, 1, 9, 12, 7)
        >>> twice = in_windows(lambda x: 2 * x, volumes, (4, 4, 8), whole=0)
        >>> torch.allclose(twice, 2 * volumes)
        True
    """
    places = volumes.shape[2:]
    if places.numel() <= whole:
        return run(volumes)
    missing = [max(0, side - has) for side, has in zip(window, places, strict=True)]
    sides = [part for more in reversed(missing) for part in (more // 2, more - more // 2)]
    volumes = F.pad(volumes, sides) if any(sides) else volumes
    axes = [window_weights(has, side) for has, side in zip(volumes.shape[2:], window, strict=True)]
    blended: Tensor | None = None
    for (z, a), (y, b), (x, c) in itertools.product(*axes):
        at = (..., slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2]))
        output = run(volumes[at].contiguous())
        if blended is None:
            blended = output.new_zeros(*output.shape[:2], *volumes.shape[2:], dtype=torch.float32)
        weights = a[:, None, None] * b[:, None] * c
        blended[at] += output.float() * weights.to(output.device)
    assert blended is not None  # there is a window at least
    for axis, (more, has) in enumerate(zip(missing, places, strict=True)):
        blended = blended.narrow(axis + 2, more // 2, has)
    return blended


def window_weights(length: int, window: int) -> list[tuple[int, Tensor]]:
    """Where windows begin along an axis, and the weight of each of their places, (window,) float32.

    As few windows as overlap by half, at equal distances; the last one ends with the axis. Weights rise and fall as
    ``sin**2``, so that a window counts little at its border, where it sees less. At each place of the axis, those of
    all windows add up to 1.

    Args:
        length: of the axis, at least ``window``.

    Example:
        >>> [start for start, _ in window_weights(10, 4)]
        [0, 2, 4, 6]
    """
    count = 1 + -(-(length - window) // max(1, window // 2))
    starts = [round(i * (length - window) / max(1, count - 1)) for i in range(count)]
    bump = torch.sin(torch.pi * (torch.arange(window, dtype=torch.float64) + 0.5) / window) ** 2
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += bump
    return [(start, (bump / total[start : start + window]).float()) for start in starts]
