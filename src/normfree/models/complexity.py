"""Counting parameters and multiply-adds with forward hooks, which also work on the meta device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..nn import WSConvTranspose

_TRANSPOSED = (WSConvTranspose, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def macs_by_module(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for one input of ``input_shape`` (C, H, W)."""
    return _counted(model, (torch.empty(1, *input_shape, device=next(model.parameters()).device),))


def macs_of(model: nn.Module, inputs: Sequence[torch.Tensor]) -> int:
    """Multiply-adds of one example of ``inputs``, the tensors that a network takes.

    Example:
        >>> macs_of(nn.Conv2d(3, 8, 3, padding=1), [torch.randn(4, 3, 16, 16)])
        55296
    """
    return sum(_counted(model, [x[:1] for x in inputs]).values())


def _counted(model: nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    macs: dict[str, int] = {}

    def counter(name: str, weight: torch.Tensor) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
        def count(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            places, fan_in = output.numel() // output.shape[0], weight[0].numel()
            if isinstance(module, _TRANSPOSED):  # each input meets the whole kernel of each output channel
                places, fan_in = args[0].numel() // args[0].shape[0], weight.numel() // module.in_channels
            macs[name] = macs.get(name, 0) + places * fan_in

        return count

    weights = [(name, module, getattr(module, "weight", None)) for name, module in model.named_modules()]
    hooks = [
        module.register_forward_hook(counter(name, weight))
        for name, module, weight in weights
        if isinstance(weight, torch.Tensor) and weight.ndim > 1
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return macs


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds that one input of ``input_shape`` (C, H, W) costs in convolutions and linear layers.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 16, 16))  # 16 * 16 places, 8 * 3 * 3 * 3 each
        55296
    """
    return sum(macs_by_module(model, input_shape).values())


class Complexity:
    """Parameters and multiply-adds of a structure at any depth and size.

    All blocks of a stage except the first cost the same, so a network with two blocks per stage, on the meta device,
    is enough to know the cost of every depth.

    Args:
        short: the network with two blocks in each stage, ``stages.0.0``, ``stages.0.1``, ``stages.1.0``, ...
        in_chans: channels of its images.
        stride: its total stride.
        proportional: whether the multiply-adds of maps grow with their area; not so without padding.
    """

    def __init__(self, short: nn.Module, in_chans: int, stride: int, *, proportional: bool = True):
        self.short, self.in_chans, self.stride, self.proportional = short, in_chans, stride, proportional
        # layers behind a pooling, whose cost does not depend on the image size
        self.pooled = {name for name, module in short.named_modules() if isinstance(module, nn.Linear | nn.Conv1d)}
        if getattr(getattr(short, "head", None), "global_pool", "") == "logits":
            self.pooled.discard("head.fc")
        self.unit_macs = macs_by_module(short, (in_chans, stride, stride))

    def params(self, depths: Sequence[int]) -> int:
        return sum(p.numel() * self._times(name, depths) for name, p in self.short.named_parameters())

    def macs(self, depths: Sequence[int], size: int) -> int:
        """As the papers count them: strides halve maps exactly (a 17 px map becomes 8.5 px)."""
        per_pixel = sum(n * self._times(k, depths) for k, n in self.unit_macs.items() if k not in self.pooled)
        per_image = sum(n * self._times(k, depths) for k, n in self.unit_macs.items() if k in self.pooled)
        return per_pixel * size**2 // self.stride**2 + per_image

    def macs_executed(self, depths: Sequence[int], size: int) -> int:
        """As the network computes them: odd maps are rounded up. The same number if the stride divides the size."""
        if size == self.stride or (self.proportional and size % self.stride == 0):
            return self.macs(depths, size)
        macs = macs_by_module(self.short, (self.in_chans, size, size))
        return sum(n * self._times(name, depths) for name, n in macs.items())

    @staticmethod
    def _times(name: str, depths: Sequence[int]) -> int:
        """How often a layer of the short network occurs in the one of ``depths``."""
        return next((depth - 1 for i, depth in enumerate(depths) if name.startswith(f"stages.{i}.1.")), 1)
