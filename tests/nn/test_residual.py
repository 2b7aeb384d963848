"""SkipInit and stochastic depth."""

import math

import pytest
import torch

from normfree import UsageError
from normfree.nn import Activation, Role, ScaledActivation, SkipInit, StochasticDepth


def test_skip_init_is_one_element_and_starts_at_zero():
    skip = SkipInit()
    assert tuple(skip.skip_gain.shape) == (1,)  # FSDP2 refuses 0-dimensional parameters
    assert skip.parameter_roles == {"skip_gain": Role.SKIP_GAIN}
    assert not skip(torch.randn(2, 3, 4, 4)).any()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_skip_init_scales_by_alpha_times_gain(alpha):
    skip, x = SkipInit(alpha, init=0.7).double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    gain = torch.tensor(0.7).double()  # 0.7 as float32 holds it
    torch.testing.assert_close(skip(x), x * alpha * gain, rtol=1e-14, atol=0)  # float64 rounding
    torch.testing.assert_close(skip.scale(), (alpha * gain).view(1), rtol=1e-14, atol=0)


def test_skip_gain_learns_from_zero():
    skip, x = SkipInit(0.2), torch.randn(2, 3)
    skip(x).sum().backward()
    torch.testing.assert_close(skip.skip_gain.grad, 0.2 * x.sum().view(1), rtol=1e-6, atol=1e-7)  # float32 rounding


@pytest.mark.parametrize("shape", [(20_000, 3), (20_000, 2, 2, 1)])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drops_whole_examples_and_does_not_rescale(shape, rate):
    x = torch.randn(shape)
    out = StochasticDepth(rate).train()(x)
    dropped = (out == 0).flatten(1).all(1)
    assert torch.equal(out[~dropped], x[~dropped])  # bit for bit: neither rescaled nor partly dropped
    assert abs(dropped.double().mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / len(x))  # five standard errors


def test_expectation_is_the_survival_rate_times_the_input():
    x, rate, n = torch.ones(1, 3), 0.25, 40_000
    mean = StochasticDepth(rate).train()(x.expand(n, 3)).double().mean(0)
    assert (mean - (1 - rate)).abs().max() < 5 * math.sqrt(rate * (1 - rate) / n)  # five standard errors


def test_draws_anew_each_time():
    layer, x = StochasticDepth(0.5).train(), torch.ones(64, 1)
    assert not torch.equal(layer(x), layer(x))


def test_evaluation_and_rate_zero_return_the_input_itself():
    x = torch.randn(4, 2, 3, 3)
    assert StochasticDepth(0.5).eval()(x) is x
    assert StochasticDepth(0.0).train()(x) is x
    assert StochasticDepth(0.5).eval().mask(x) is None


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_bad_rate_is_quoted(rate):
    with pytest.raises(UsageError, match=rf"\(={rate}\)"):
        StochasticDepth(rate)


@pytest.mark.parametrize(
    "make",
    [
        lambda nan: SkipInit(nan),
        lambda nan: SkipInit(0.2, nan),
        lambda nan: Activation("gelu", nan),
        lambda nan: ScaledActivation("relu", gamma=nan),
    ],
)
def test_factors_must_be_finite(make):
    with pytest.raises(UsageError, match=r"\(=nan\) must be a finite number"):
        make(float("nan"))
