"""Counting parameters and multiply-adds where they happen, by hooks, so also on the meta device."""

from collections.abc import Callable, Sequence

import torch
from torch import nn


def macs_by_module(model: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for one input of ``input_shape`` (C, H, W)."""
    macs: dict[str, int] = {}

    def counter(name: str) -> Callable:
        def count(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
            places = output.numel() // output.shape[0]
            macs[name] = macs.get(name, 0) + places * module.weight[0].numel()

        return count

    hooks = [
        module.register_forward_hook(counter(name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.ndim > 1
    ]
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.empty(1, *input_shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return macs


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds that one input of ``input_shape`` (C, H, W) costs in convolutions and linear layers."""
    return sum(macs_by_module(model, input_shape).values())


def complexity(build: Callable[[tuple[int, ...]], nn.Module], depths: Sequence[int], size: int) -> tuple[int, int, int]:
    """Parameters, multiply-adds as the papers count them, and as executed, of a network at ``size`` px.

    The papers' count halves a map of odd size exactly (a 17 px map becomes 8.5 px), the network rounds up; the two
    agree where the total stride divides ``size``. All blocks of a stage but its first cost the same, so a network of
    at most two blocks per stage tells the cost of any depth.

    Args:
        build: from depths to the network; called under the meta device.
        depths: blocks per stage.
        size: side of the image.
    """
    short = tuple(min(depth, 2) for depth in depths)
    with torch.device("meta"):
        model = build(short)
    repeats = {f"stages.{i}.1.": depth - 1 for i, depth in enumerate(depths)}

    def times(name: str) -> int:
        return next((n for prefix, n in repeats.items() if name.startswith(prefix)), 1)

    params = sum(p.numel() * times(name) for name, p in model.named_parameters())
    in_chans = model.default_cfg["input_size"][0]
    stride = model.feature_info[-1]["reduction"]
    unit = macs_by_module(model, (in_chans, stride, stride))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    at_unit = sum(n * times(name) for name, n in unit.items() if name not in linear)
    fixed = sum(n * times(name) for name, n in unit.items() if name in linear)
    papers = at_unit * size**2 // stride**2 + fixed
    if size % stride == 0:
        return params, papers, papers
    executed = macs_by_module(model, (in_chans, size, size))
    return params, papers, sum(n * times(name) for name, n in executed.items())
