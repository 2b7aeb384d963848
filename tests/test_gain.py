"""gamma: against FACTS' table, closed forms and sampling."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normfree import UsageError, activation_gain
from normfree.gain import (
    RELEASED_GAINS,
    activation_function,
    activation_names,
    he_gain,
    model_gain,
    moment_behind,
    variance_behind,
)
from normfree.nn import Activation, ScaledActivation, SqueezeExcite

# docs/facts.md, to its ten decimals: name -> (exact, released)
TABLE = {
    "identity": (1.0, 1.0),
    "relu": (1.7128585504, 1.7139588594436646),
    "relu6": (1.7128585550, 1.7131484746932983),
    "leaky_relu": (1.7048316272, 1.70590341091156),
    "elu": (1.2708434179, 1.2716004848480225),
    "celu": (1.2708434179, 1.270926833152771),
    "selu": (1.0000000000, 1.0008515119552612),
    "silu": (1.7871872221, 1.7881293296813965),
    "sigmoid": (4.8013133720, 4.803835391998291),
    "tanh": (1.5925374197, 1.5939117670059204),
    "softplus": (1.9191259801, 1.9203323125839233),
    "log_sigmoid": (1.9191259801, 1.9193484783172607),
    "soft_sign": (2.3375333631, 2.338853120803833),
    "gelu": (1.7009165617, 1.7015043497085571),
}
CALLABLES = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": torch.nn.LeakyReLU(0.01),
    "silu": lambda x: x * torch.sigmoid(x),
    "softplus": lambda x: torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0),
    "soft_sign": lambda x: x / (1 + x.abs()),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu_": torch.relu_,  # in place: must not move the nodes
}
DIGITS = 1e-9  # the table has ten decimals


def normal_density(t):
    return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def normal_tail(t):
    return math.erfc(t / math.sqrt(2)) / 2


@pytest.mark.parametrize("name", TABLE)
def test_exact_column(name):
    assert activation_gain(name) == pytest.approx(TABLE[name][0], rel=DIGITS)


def test_both_forms_of_gelu():
    assert activation_gain("gelu_erf") == pytest.approx(1.7009262434, rel=DIGITS)
    assert activation_gain(F.gelu) == pytest.approx(1.7009262434, rel=DIGITS)
    assert activation_gain("gelu_tanh") == activation_gain("gelu") != activation_gain("gelu_erf")


def test_released_column():
    assert {name: released for name, (_, released) in TABLE.items()} == RELEASED_GAINS


@pytest.mark.parametrize("name", TABLE)
def test_released_constants_are_estimates_of_the_exact_ones(name):
    assert RELEASED_GAINS[name] == pytest.approx(activation_gain(name), rel=2e-3)  # their Monte-Carlo error


@pytest.mark.parametrize("name", CALLABLES)
def test_callable_equals_name(name):
    # float64 rounding of another expression of the same function
    assert activation_gain(CALLABLES[name]) == pytest.approx(activation_gain(name.strip("_")), rel=1e-11)


@pytest.mark.parametrize("alias", ["swish", "logsigmoid", "linear", "softsign"])
def test_aliases(alias):
    name = {"swish": "silu", "logsigmoid": "log_sigmoid", "linear": "identity", "softsign": "soft_sign"}[alias]
    assert activation_gain(alias) == activation_gain(name)


@pytest.mark.parametrize("name", activation_names())
def test_sampling(name):
    x = torch.randn(1_000_000, dtype=torch.float64)
    sampled = activation_function(name)(x).var().item() ** -0.5
    # the standard error of the variance is at most 0.28 % (tanhshrink, kurtosis 8.7), half of that for its root
    assert activation_gain(name) == pytest.approx(sampled, rel=0.007)  # five of them


@pytest.mark.parametrize("t", [math.sqrt(2) / 3, -1 / math.pi, math.e])
def test_kink_at_an_irrational_place(t):
    mean = normal_density(t) - t * normal_tail(t)
    square = (1 + t * t) * normal_tail(t) - t * normal_density(t)
    assert activation_gain(lambda x: torch.relu(x - t)) == pytest.approx((square - mean**2) ** -0.5, rel=1e-10)


@pytest.mark.parametrize("t", [math.sqrt(2) / 3, 0.0, -1 / math.pi])
def test_jump(t):
    tail = normal_tail(t)
    # bisection leaves the jump within a panel of 1e-14
    assert activation_gain(lambda x: (x > t).to(x.dtype)) == pytest.approx((tail * (1 - tail)) ** -0.5, rel=1e-10)


@pytest.mark.parametrize("factor", [1e-4, 3.0, 1e4])
def test_gamma_undoes_a_factor(factor):
    got = activation_gain(lambda x: factor * F.silu(x))
    assert got * factor == pytest.approx(activation_gain("silu"), rel=1e-9)


def test_growing_functions():
    assert activation_gain(lambda x: x**5) == pytest.approx(945**-0.5, rel=1e-11)
    exact = (math.exp(8) - math.exp(4)) ** -0.5
    assert activation_gain(lambda x: torch.exp(2 * x)) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x[..., :3], "elementwise"),
        (torch.sum, "elementwise"),
        (lambda x: x * 0 + 3, "variance"),
        (torch.zeros_like, "variance"),
        (torch.log, "not finite"),
        (lambda x: torch.where(x > 2, math.inf, x), "not finite"),
        (lambda x: 1.0, "elementwise"),
    ],
    ids=["slice", "sum", "constant", "zero", "log", "inf", "number"],
)
def test_unusable_callables(function, message):
    with pytest.raises(UsageError, match=message):
        activation_gain(function)


@pytest.mark.parametrize(("name", "near"), [("rellu", "relu"), ("GELU", "gelu"), ("sillu", "silu")])
def test_unknown_name_suggests(name, near):
    with pytest.raises(UsageError, match=rf"'{name}'.*\b{near}\b"):
        activation_gain(name)
    with pytest.raises(UsageError, match=near):
        Activation(name)


def test_models_take_the_released_constant_of_a_name_and_the_exact_one_of_a_callable():
    assert model_gain("silu") == model_gain("swish") == RELEASED_GAINS["silu"]
    assert model_gain(F.silu) == activation_gain("silu")
    assert model_gain("mish") == activation_gain("mish")


def test_activation_modules():
    x = torch.randn(3, 4)
    assert torch.equal(Activation("relu")(x), x.relu())
    assert torch.equal(ScaledActivation("relu")(x), x.relu() * RELEASED_GAINS["relu"])
    assert torch.equal(ScaledActivation(torch.tanh, gamma=2.0)(x), x.tanh() * 2)
    assert Activation("gelu").gamma == RELEASED_GAINS["gelu"]
    assert "tanh" in repr(Activation("tanh"))


@pytest.mark.parametrize("name", ["relu", "silu", "gelu", "tanh", "mish"])
def test_scaled_activation_keeps_unit_variance(name):
    y = ScaledActivation(name, gamma=activation_gain(name))(torch.randn(1_000_000, dtype=torch.float64))
    assert y.var().item() == pytest.approx(1, rel=0.0125)  # five standard errors of 0.25 %


def test_functions_of_several_values_are_refused():
    with pytest.raises(UsageError, match="more than one value at a time"):
        activation_gain(lambda x: torch.softmax(x, -1))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", math.sqrt(2)),
        (torch.relu, math.sqrt(2)),
        (torch.relu_, math.sqrt(2)),
        ("leaky_relu", math.sqrt(2 / (1 + 0.01**2))),
        ("identity", 1.0),
        (lambda x: x**3, 15**-0.5),
        (lambda x: x + 2, 5**-0.5),  # the mean counts, too
    ],
    ids=["relu", "torch.relu", "relu_", "leaky_relu", "identity", "cube", "shifted"],
)
def test_he_gain_in_closed_form(activation, expected):
    assert he_gain(activation) == pytest.approx(expected, rel=1e-12)  # float64 quadrature


@pytest.mark.parametrize("name", activation_names())
def test_he_gain_sampled(name):
    x = torch.randn(1_000_000, dtype=torch.float64)
    sampled = activation_function(name)(x).square().mean().item() ** -0.5
    assert he_gain(name) == pytest.approx(sampled, rel=0.007)  # five standard errors, as for gamma


@pytest.mark.parametrize("name", ["identity", "tanh", "soft_sign", "hardtanh", "tanhshrink"])
def test_he_gain_of_an_odd_function_is_gamma(name):
    assert he_gain(name) == pytest.approx(activation_gain(name), rel=1e-12)  # its mean is 0 up to rounding


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "sigmoid"])
def test_he_gain_of_a_function_with_a_mean_is_smaller(name):
    assert he_gain(name) < 0.95 * activation_gain(name)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("gain", [he_gain, activation_gain])
def test_gains_do_not_depend_on_the_default_device(gain, device):
    expected = gain(torch.relu)
    with torch.device(device):
        assert gain(torch.relu) == expected


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("rellu", r"'rellu'.*\brelu\b"),
        (torch.zeros_like, "variance"),
        (torch.log, "not finite"),
        (torch.sum, "element"),
    ],
    ids=["unknown", "zero", "log", "sum"],
)
def test_he_gain_refuses_what_gamma_refuses(activation, message):
    with pytest.raises(UsageError, match=message):
        he_gain(activation)


@pytest.mark.parametrize(
    "function",
    [activation_gain, he_gain, lambda f: variance_behind(f, 2.0), Activation],
    ids=["activation_gain", "he_gain", "variance_behind", "Activation"],
)
@pytest.mark.parametrize(
    ("activation", "named"),
    [
        (SqueezeExcite(16), r"SqueezeExcite fails on a tensor of shape \(52, 16\); it must be elementwise"),
        (nn.Conv2d(3, 3, 1), r"Conv2d\(3, 3, .* fails on a tensor of shape \(52, 16\)"),
        (nn.BatchNorm1d(16), r"BatchNorm1d\(16, .* fails on a tensor of shape \(832,\)"),
        (nn.Softmax(1), r"Softmax\(dim=1\) fails on a tensor of shape \(832,\)"),
        (nn.GLU(), r"GLU\(dim=-1\) maps shape \(52, 16\) to \(52, 8\)"),
        (nn.Flatten(0), r"Flatten\(.*\) maps shape"),
        (lambda x, y: x + y, r"fails on a tensor .*missing 1 required positional argument"),
        (nn.ReLU, r"activation \(=ReLU\) is a class; pass an object of it, ReLU\(\)"),
        (None, r"activation \(=None\) is unknown"),
        ([1], r"activation \(=\[1\]\) is unknown"),
    ],
    ids=["gate", "convolution", "BatchNorm", "softmax", "GLU", "flatten", "two inputs", "class", "None", "list"],
)
def test_what_is_no_activation_is_named(function, activation, named):
    with pytest.raises(UsageError, match=named) as caught:
        function(activation)
    assert "\n" not in str(caught.value)


def test_activations_with_parameters_of_their_own():
    act = nn.PReLU(init=0.01)
    # 0.01 in float32 is off by 2e-8 of itself
    assert activation_gain(act) == pytest.approx(activation_gain("leaky_relu"), rel=1e-8)
    assert act.weight.dtype is torch.float32  # the caller's own is as it was
    assert variance_behind(act, 4.0) == pytest.approx(variance_behind("leaky_relu", 4.0), rel=1e-8)
    assert activation_gain(act.half()) == pytest.approx(activation_gain("leaky_relu"), rel=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-11, 1e-8, 1e8, 1e30])
@pytest.mark.parametrize("function", [lambda x: F.relu(x - 0.3), lambda x: (x > 0.3).to(x.dtype), torch.tanh])
def test_the_size_of_a_function_does_not_matter(function, size):
    expected = activation_gain(function)
    assert activation_gain(lambda x: size * function(x)) * size == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shift", "digits"), [(-1e3, 1e-12), (1e5, 2e-11), (1e7, 2e-9), (1e10, 2e-6)])
def test_a_shift_costs_no_more_than_the_rounding_of_the_values(shift, digits):
    assert activation_gain(lambda x: shift + F.relu(x)) == pytest.approx(activation_gain("relu"), rel=digits)
    moments = 1 / he_gain(lambda x: shift + F.relu(x)) ** 2
    mean = shift + (2 * math.pi) ** -0.5
    assert moments == pytest.approx(mean**2 + activation_gain("relu") ** -2, rel=1e-13)


def test_a_constant_is_refused_whatever_its_size():
    for value in (1e-30, 1e10):
        with pytest.raises(UsageError, match="gamma needs one that varies"):
            activation_gain(lambda x, value=value: x * 0 + value)


@pytest.mark.parametrize("moment", [0.3, 1.0, 4.0])
def test_moments_behind_an_activation(moment):
    x, weight = np.polynomial.hermite_e.hermegauss(200)
    y = torch.nn.functional.silu(torch.from_numpy(x * moment**0.5)).numpy()
    expected = (weight * y**2).sum() / weight.sum() * he_gain("silu") ** 2
    assert moment_behind("silu", moment) == pytest.approx(expected, rel=1e-9)
    assert moment_behind("tanh", moment) == pytest.approx(variance_behind("tanh", moment), rel=1e-9)  # its mean is 0
