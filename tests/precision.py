"""How near to float64 is near enough: as near as somebody else's float32.

How far float32 is from the true value depends on the order of its sums, and with it on the processor, on the number of
threads and on where in memory a tensor begins. Two computations of the same function with the same number of
roundings, in different orders, are off by amounts of the same distribution: the ratio of these amounts, as norms over n
numbers, follows the square root of Fisher's F(n, n), which is above 2 once in 500 times for n = 20 and practically
never for more. So ours may be ``TIMES`` as far from float64 as theirs, plus the rounding of the result itself.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn

TIMES = 2.0
MIN_NUMBERS = 40  # sqrt(F(40, 40)) is above TIMES once in 100,000 times


def distance(got, exact) -> float:
    """L2 norm of the difference over that of the exact value, in float64."""
    got, exact = (np.asarray(torch.as_tensor(x).detach(), dtype=np.float64) for x in (got, exact))
    assert got.shape == exact.shape
    return float(np.linalg.norm(got - exact) / np.linalg.norm(exact))


def assert_no_farther(ours, theirs, exact, *, times: float = TIMES, extra: float = 0.0) -> None:
    """``ours`` is at most ``times`` as far from ``exact``, a value in float64, as ``theirs``, a peer's or a golden.

    ``extra`` is the relative error of what ours rounds and theirs does not, by theory.
    """
    mine, bound = distance(ours, exact), times * (distance(theirs, exact) + extra) + 2**-24
    assert mine <= bound, f"{mine:.3g} from float64, at most {bound:.3g} with {times} of theirs"


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of a network that computes the same function in float64, of the same weights."""
    return copy.deepcopy(model).double()


def assert_same_function(ours, theirs, exact_model: nn.Module, *inputs: Tensor) -> None:
    """Two float32 networks agree on ``inputs`` as well as float32 can: see :func:`assert_no_farther`.

    The outputs of all inputs are taken together: of a few numbers, theirs may be near by luck.
    """
    pairs = ((ours, inputs), (theirs, inputs), (exact_model, [x.double() for x in inputs]))
    mine, peer, exact = (torch.cat([network(x).flatten() for x in given]) for network, given in pairs)
    assert exact.numel() >= MIN_NUMBERS, f"{exact.numel()} numbers are too few to compare; give more inputs"
    assert_no_farther(mine, peer, exact)
