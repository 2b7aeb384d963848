"""Residual networks written out by hand, which keep what they add, and numpy's statistics of it."""

import numpy as np
import torch
from torch import nn


def statistics(x: torch.Tensor, dim: int = 1) -> tuple[float, float]:
    """Average channel squared mean and average channel variance, as NF-ResNets section 3 writes them."""
    a = np.moveaxis(x.detach().double().cpu().numpy(), dim, -1)
    axes = tuple(range(a.ndim - 1))
    return float(np.mean(np.mean(a, axes) ** 2)), float(np.mean(np.var(a, axes)))


class Layout:
    """How activations lie in memory: a layer of 8 channels, an input, and the channels' dimension."""

    def __init__(self, layer, shape, dim, memory_format=torch.preserve_format):
        self.layer, self.shape, self.dim, self.memory_format = layer, shape, dim, memory_format

    def input(self) -> torch.Tensor:
        return torch.randn(self.shape).to(memory_format=self.memory_format)

    def per_channel(self, values: torch.Tensor) -> torch.Tensor:
        """(8,) in the shape that broadcasts."""
        return values.view(8, *(1,) * (len(self.shape) - 2)) if self.dim == 1 else values


def conv2d(i: int, o: int) -> nn.Module:
    return nn.Conv2d(i, o, 1)


def conv1d(i: int, o: int) -> nn.Module:
    return nn.Conv1d(i, o, 1)


# All sizes are 8 where they may be mistaken for channels, and channels are 8.
LAYOUTS = {
    "NCHW": Layout(conv2d, (4, 3, 8, 8), 1),
    "NCHW in channels-last memory": Layout(conv2d, (4, 3, 8, 8), 1, torch.channels_last),
    "NHWC": Layout(nn.Linear, (4, 8, 8, 3), -1),
    "NLC": Layout(nn.Linear, (4, 8, 3), -1),
    "NCL": Layout(conv1d, (4, 3, 8), 1),
    "NC": Layout(nn.Linear, (16, 3), 1),
    "NC11": Layout(conv2d, (16, 3, 1, 1), 1),
    "batch of one": Layout(conv2d, (1, 3, 8, 8), 1),
}


class Block(nn.Module):
    """``merge(block, x, f)`` of the input and of two layers of it."""

    def __init__(self, layout: Layout, merge):
        super().__init__()
        self.layer1, self.layer2 = layout.layer(8, 8), layout.layer(8, 8)
        self.register_buffer("gamma", layout.per_channel(torch.linspace(0.1, 1.5, 8)))
        self.tiny = nn.Parameter(torch.full((8,), 1e-6).view_as(self.gamma))
        self.zero, self.gain = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.tensor(0.3))
        self.merge, self.kept = merge, []

    def forward(self, x):
        f = self.layer2(torch.relu(self.layer1(x)))
        self.kept = [x.clone(), f.clone()]
        out = self.merge(self, x, f)
        self.kept.append(out.clone())
        return out


class Net(nn.Module):
    """A stem and two blocks."""

    def __init__(self, layout: Layout, merge):
        super().__init__()
        self.stem = layout.layer(3, 8)
        self.blocks = nn.Sequential(Block(layout, merge), Block(layout, merge))

    def forward(self, x):
        return self.blocks(self.stem(x))


class SqueezeExcite(nn.Module):
    """``factor * sigmoid(linear(mean)) * x``, the product in the order of ``first``."""

    def __init__(self, channels: int, factor: float = 2.0, first: str = "gate"):
        super().__init__()
        self.fc, self.factor, self.first = nn.Linear(channels, channels), factor, first

    def gate(self, x):
        return self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]

    def forward(self, x):
        gate = self.gate(x)
        if self.first == "gate":
            return x * (self.factor * gate)
        return self.factor * (x * gate) if self.first == "x" else gate.mul_(self.factor) * x


def sequence(*blocks: nn.Module, channels: int = 8) -> nn.Sequential:
    """A stem of one convolution, and blocks: module names "0", "1", ..."""
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *blocks)
