"""A fixed first convolution that whitens patches of the training images."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UsageError
from .conv import SameConv2d

EPS = 5e-4  # added to each variance, so that directions of hardly any variance are not blown up to noise


class PatchWhitening2d(SameConv2d):
    """Convolution whose outputs are the whitened patches of its input, each once as it is and once negated.

    ``(N, in_channels, H, W) -> (N, 2 * in_channels * k * k, H - k + 1, W - k + 1)``. On the images it was fitted to,
    its outputs have variance 1 and are uncorrelated, but for each with its negative: a network that cannot normalize
    gets a normalized input. The weight is not trained. Until :meth:`fit_`, the directions are random.

    The trick is of Page (2019, "How to train your ResNet", part 8); Jordan (2024, arXiv:2404.00498) added the
    negatives.

    Args:
        in_channels: of the images.
        kernel_size: side of the patches.
        eps: added to each direction's variance.

    Raises:
        UsageError: a size below 1.

    Example:
        >>> layer = PatchWhitening2d(3, 2)
        >>> images = torch.randn(100, 3, 32, 32)
        >>> layer.fit_([images])
        >>> layer(images).shape, bool((layer(images).var((0, 2, 3)) - 1).abs().max() < 0.02)
        (torch.Size([100, 24, 31, 31]), True)
    """

    def __init__(self, in_channels: int, kernel_size: int = 2, eps: float = EPS):
        outputs = 2 * in_channels * kernel_size**2
        super().__init__(in_channels, outputs, kernel_size, padding=0, bias=False)
        self.eps = eps
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Random orthonormal directions, and their negatives."""
        half = self.out_channels // 2
        directions = self.weight.new_empty(half, half)
        if not directions.is_meta:
            nn.init.orthogonal_(directions)
        self._set(directions)

    @torch.no_grad()
    def fit_(self, batches: Iterable[Tensor]) -> None:
        """Set the weight to the principal directions of the images' patches, each divided by its deviation.

        Args:
            batches: images (N, in_channels, H, W), as the network sees them.

        Raises:
            UsageError: there are no images, or one is smaller than a patch.
        """
        side = self.out_channels // 2
        total = torch.zeros(side, side, dtype=torch.float64)
        count = 0
        for images in batches:
            if min(images.shape[-2:]) < self.kernel_size:
                shape = " x ".join(map(str, images.shape[-2:]))
                raise UsageError(f"images of {shape} pixels are smaller than a patch of {self.kernel_size}")
            patches = F.unfold(images.cpu().float(), self.kernel_size).transpose(1, 2).reshape(-1, side).double()
            total, count = total + patches.T @ patches, count + len(patches)
        if not count:
            raise UsageError("there are no images to fit the whitening to")
        variances, directions = torch.linalg.eigh(total / count)  # ascending; columns
        whitening = (directions / torch.sqrt(variances.clamp(min=0) + self.eps)).T.flip(0)
        self._set(whitening.to(self.weight))

    def _set(self, rows: Tensor) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.cat([rows, -rows]).view_as(self.weight))


def fit_whitening(model: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Fit every :class:`PatchWhitening2d` of a network to images; returns whether there is one.

    Args:
        batches: images (N, C, H, W) as the network sees them; read only if there is such a layer.

    Example:
        >>> fit_whitening(nn.Sequential(nn.Conv2d(3, 8, 3)), [torch.rand(2, 3, 8, 8)])
        False
    """
    layers = [module for module in model.modules() if isinstance(module, PatchWhitening2d)]
    if layers:
        kept = list(batches)
        for layer in layers:
            layer.fit_(kept)
    return bool(layers)
