"""Four parameters, their gradients, and what optax makes of them, for tests of clipping and of optimizers."""

import golden_data as gd
import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = gd.load("optax")
SHAPES = {"conv": (2, 2, 3, 4), "linear": (5, 4), "gain": (6,), "zero": (3,)}  # HWIO and IO, as there
RATES = [0.5, 1.0, 1.0, 0.6, 0.3, 0.1]
WEIGHTS = ("conv", "linear")


def ours(array: np.ndarray) -> Tensor:
    """A float64 tensor whose first dimension is that of the outputs."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return torch.from_numpy(np.array(array, dtype=np.float64).transpose(*axes).copy())


def parameters() -> dict[str, nn.Parameter]:
    scales = {"gain": 0.1, "zero": 0.0}
    values = {name: gd.rng(f"optax/{name}").standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: nn.Parameter(ours(z * scales.get(name, 0.5) + (name == "gain"))) for name, z in values.items()}


def set_gradients(params: dict[str, nn.Parameter], step: int) -> None:
    """Norms of units from 0.001 to 10; the gain's first gradient is 0."""
    for name, parameter in params.items():
        z = gd.rng(f"optax/{name}/{step}").standard_normal(SHAPES[name])
        if name == "gain" and step == 0:
            z = np.zeros_like(z)
        parameter.grad = ours(z * 10.0 ** np.linspace(-3, 1, z.shape[-1]) if z.ndim > 1 else z)


def theirs(what: str, step: int) -> dict[str, Tensor]:
    return {name: ours(GOLDEN[f"{what}/{step}/{name}"]) for name in SHAPES}
