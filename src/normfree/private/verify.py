"""A check of the gradients of examples before they are relied on."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .checks import trained_parameters
from .passes import ExamplePasses, Loss

TOLERANCE = 1e-3  # of a norm in float32; what is wrong differs by far more


def verify(
    model: nn.Module, whole: tuple[Iterable[Any], Loss], each: Sequence[tuple[Iterable[Any], Loss]], *, views: int = 1
) -> bool:
    """Compare the norms of a few examples' gradients with those of one ordinary backward pass for each.

    It finds an operation that mixes examples, one that is not told right, and a loss that is no mean over examples.
    Modules without children, as dropout, are in evaluation mode meanwhile; no random number is drawn, nothing changes.

    Args:
        whole: the network's arguments for all of the examples, and the loss of its output.
        each: the same for every one of them alone.

    Returns:
        Whether gradients were compared, which they are not unless they are finite.

    Raises:
        UsageError: the norms differ, by name of the parameter.

    Example:
        >>> model, x = nn.Linear(3, 1), torch.randn(2, 3)
        >>> loss = lambda output: output.square().mean()
        >>> verify(model, ([x], loss), [([x[:1]], loss), ([x[1:]], loss)])
        True
    """
    parameters = trained_parameters(model)
    device = next(iter(parameters.values())).device
    with _without_chance(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        passes = ExamplePasses(model, whole[0], views=views)
        passes.seed(whole[1])
        found = passes.squared_norms()
        for index, (inputs, loss) in enumerate(each):
            gradients = torch.autograd.grad(loss(model(*inputs)), list(parameters.values()), allow_unused=True)
            of_example = {name: square[index] for name, square in found.items()}
            if not _compare(dict(zip(parameters, gradients, strict=True)), of_example):
                return False
    return True


def _compare(expected: dict[str, Tensor | None], found: dict[str, Tensor]) -> bool:
    norms = {name: 0.0 if g is None else float(g.double().norm()) for name, g in expected.items()}
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    if not math.isfinite(total):
        return False
    others = {name: float(square.sqrt()) for name, square in found.items()}
    worst = max(norms, key=lambda name: abs(others[name] - norms[name]))
    if not abs(others[worst] - norms[worst]) <= TOLERANCE * total:
        raise UsageError(
            f"the gradient of a single example has norm {norms[worst]:.4g} at {worst}, where {others[worst]:.4g} is "
            "found in a batch: the network or the loss mixes examples, or draws at random outside of dropout"
        )
    return True


@contextlib.contextmanager
def _without_chance(model: nn.Module) -> Iterator[None]:
    """Modules without children in evaluation mode."""
    leaves = [module for module in model.modules() if module.training and not any(True for _ in module.children())]
    for module in leaves:
        module.training = False
    try:
        yield
    finally:
        for module in leaves:
            module.training = True
