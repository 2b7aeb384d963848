"""Inference between convolutions: means, small linear layers, merges with an activation, against float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from normfree.kernels import inference

SHAPES = [(2, 5, 3, 4), (1, 300, 7, 7), (3, 1, 2, 2), (2, 3, 1, 1), (2, 257, 9, 8), (1, 64, 70, 70)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# float32: some roundings, and an activation's 5e-7; bfloat16: the sum and the activation are rounded once each
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
ACTIVATIONS = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}


def maps(shape, dtype, layout, count=1):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype).to(memory_format=layout) for _ in range(count)]
    return made if count > 1 else made[0]


def differ(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_means(either_path, threads, dtype, shape, layout):
    x = maps(shape, dtype, layout)
    assert inference.supported(x) == (either_path == "compiled")
    found = inference.means(x)
    assert found.dtype is torch.float32
    assert differ(found, x.double().mean((2, 3))) < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_merge_with_an_activation(compiled, threads, activation, gated, dtype, shape, layout):
    shortcut, branch = maps(shape, dtype, layout, 2)
    gate = torch.rand(*shape[:2], 1, 1, generator=torch.Generator().manual_seed(1)) if gated else None
    assert inference.mergeable(shortcut, branch, gate)
    out, activated = inference.merged(shortcut, branch, gate, activation)
    exact = shortcut.double() + branch.double() * (1.0 if gate is None else gate.double())
    assert out.dtype is activated.dtype is dtype
    assert out.stride() == branch.stride()
    assert differ(out, exact) < BOUNDS[dtype]
    assert differ(activated, ACTIVATIONS[activation](out.double())) < BOUNDS[dtype]


# without the cancellation that torch's have for negative values
EXACT = {
    "gelu": lambda x: x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "gelu_erf": lambda x: x * torch.special.erfc(-x / 2**0.5) / 2,
    "silu": F.silu,
    "relu": F.relu,
}


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("activation", list(EXACT))
def test_activations_in_their_tails(compiled, activation, dtype):
    x = torch.linspace(-12, 12, 4801).to(dtype).view(1, 1, 1, -1)
    expected = EXACT[activation](x.double())
    error = (inference.activated(x, activation).double() - expected).abs() / expected.abs().clamp(min=1e-30)
    exponent = 142 * 3 * 6e-8  # the exponent at the end, 142, is rounded three times
    assert error.max() < (exponent if dtype is torch.float32 else 8e-3)


def test_values_that_are_not_numbers(compiled):
    x = torch.tensor([float("nan"), float("inf")]).view(1, 1, 1, 2)
    for activation in ACTIVATIONS:
        found = inference.activated(x, activation).flatten()
        assert found[0].isnan()
        assert found[1] == float("inf")


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (5, 3), (300, 257), (700, 130)])
def test_linear(compiled, threads, inputs, outputs, with_bias, dtype, rows):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator)
    weight = (torch.randn(outputs, inputs, generator=generator) / inputs**0.5).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if with_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert inference.few(x, weight)
    for then, expected in [(None, exact), ("relu", exact.relu()), ("sigmoid", 1.5 * exact.sigmoid())]:
        found = inference.linear(x, weight, bias, then, 1.5)
        assert found.dtype is torch.float32
        # sums of up to 700 products, relative to the layer's outputs
        assert (found.double() - expected).norm() <= 2e-6 * exact.norm() + 1e-12


def test_what_is_left_to_torch(compiled):
    x, weight = torch.randn(1, 4, 3, 3), torch.randn(2, 4)
    assert not inference.supported(x.requires_grad_())
    with torch.no_grad():
        assert inference.supported(x)
    x = x.detach()
    assert not inference.supported(x.double())
    assert not inference.supported(x[0])
    assert not inference.supported(x[:, :, :, ::2])
    assert not inference.supported(x[:0])
    assert not inference.mergeable(x, x, torch.ones(1, 1, 1, 1))
    assert not inference.mergeable(x, x, torch.ones(1, 4, 1, 1, dtype=torch.bfloat16))
    assert not inference.mergeable(x, x.to(memory_format=torch.channels_last))
    assert not inference.mergeable(x, x.bfloat16())
    assert not inference.few(torch.randn(5, 4), weight)
    assert not inference.few(torch.randn(1, 2, 4), weight)
    assert not inference.few(torch.randn(1, 4), weight.t().contiguous().t())


@pytest.mark.parametrize(
    ("x", "bias"),
    [(torch.randn(1, 3), None), (torch.randn(1, 5), None), (torch.randn(1, 4), torch.zeros(2, dtype=torch.bfloat16))],
)
def test_operands_that_do_not_fit_are_not_read(compiled, x, bias):
    weight = torch.randn(2, 4)
    assert not inference.few(x, weight, bias)
    with pytest.raises(RuntimeError, match="do not fit together"):
        inference.linear(x, weight, bias)
