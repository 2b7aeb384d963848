"""Inference on the CPU: weights laid out for oneDNN once, activations computed inside its convolutions."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .fold import fold
from .packed import pack

_TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
}  # packed against plain, on noise; a wrong operator differs far more


@torch.no_grad()
def prepack(model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224)) -> nn.Module:
    """A copy of a network for inference on this CPU with inputs of one shape: folded, prepacked, activations fused.

    The same function at any shape; weights are laid out as oneDNN wants them for ``input_shape``. They exist in this
    process alone: save the network itself and pack after loading. Packing uses private operators of PyTorch: where they
    are missing or compute something else, the plain folded network is returned, with a warning.

    >>> model = normfree.create_model("nf_resnet50", num_classes=10).eval()
    >>> fast = prepack(model, (1, 3, 64, 64))
    >>> x = torch.randn(1, 3, 64, 64)
    >>> torch.allclose(fast(x), model(x), atol=1e-4)
    True

    Args:
        model: in evaluation mode, on the CPU, float32 or bfloat16; folded already or not.
        input_shape: (N, C, H, W).

    Raises:
        UsageError: a network in training mode, on another device, of another type, or an input that it does not take.
    """
    folded = fold(model)
    parameter = next(folded.parameters(), None)
    if parameter is None or parameter.device.type != "cpu" or parameter.dtype not in _TOLERANCE:
        found = "nothing" if parameter is None else f"{parameter.dtype} on {parameter.device}"
        raise UsageError(f"prepack takes float32 or bfloat16 parameters on the CPU; the network has {found}")
    if not (isinstance(input_shape, Sequence) and len(input_shape) == 4 and all(_positive(n) for n in input_shape)):
        raise UsageError(f"input_shape (={input_shape!r}) must be (N, C, H, W), each at least 1")
    noise = torch.randn(*input_shape, generator=torch.Generator().manual_seed(0)).to(parameter.dtype)
    try:
        expected, shapes = _run(folded, noise)
    except RuntimeError as error:
        raise UsageError(f"the network does not take input_shape (={tuple(input_shape)}): {error}") from error
    try:
        packed = pack(folded, shapes)
        difference = max(_difference(*pair) for pair in zip(_maps(packed(noise)), _maps(expected), strict=True))
    except (AttributeError, RuntimeError, TypeError) as error:  # private operators may change in any way
        warnings.warn(f"oneDNN's operators cannot be used, the folded network is not packed: {error}", stacklevel=2)
        return fold(model)
    if not difference <= _TOLERANCE[parameter.dtype]:
        warnings.warn(f"the packed network differs by {difference:.2g}, the folded one is not packed", stacklevel=2)
        return fold(model)
    return packed


def _positive(number: object) -> bool:
    return isinstance(number, int) and number > 0


def _maps(output: Any) -> list[Tensor]:
    """The outputs of a network as a list: one tensor, or a pyramid of them."""
    return [output] if isinstance(output, Tensor) else list(output)


def _difference(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-30)).item()


def _run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[nn.Module, torch.Size]]:
    """The output, and the shape of the input of every convolution."""
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[module] = args[0].shape

    hooks = [module.register_forward_pre_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        return model(x), shapes
    finally:
        for hook in hooks:
            hook.remove()
