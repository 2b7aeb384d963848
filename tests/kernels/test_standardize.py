"""Compiled weight standardization against functional.standardize_weight and its autograd."""

import pytest
import torch

from normfree import functional, kernels
from normfree.kernels import standardize

pytestmark = pytest.mark.usefixtures("compiled")
SHAPES = [(4, 3, 3, 3), (5, 7), (1, 1), (3, 1), (2, 9, 1, 1), (7, 1, 3, 3), (3, 2049), (1, 40_001), (64, 33, 3, 3)]


def operands(shape, dtype=torch.float32, with_gain=True, scale="tensor"):
    weight = (torch.randn(shape) * shape[1] ** -0.5 + 0.1).to(dtype).requires_grad_()
    gain = torch.randn(shape[0]).to(dtype).requires_grad_() if with_gain else None
    if scale == "tensor":
        scale = torch.tensor([0.7], dtype=dtype, requires_grad=True)
    return weight, gain, scale


def gradients(out, operands, grad):
    wanted = [x for x in operands if isinstance(x, torch.Tensor)]
    return torch.autograd.grad(out, wanted, grad)


@pytest.mark.sample(0.34, by=("shape", "add_eps"))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("add_eps", [False, True])
@pytest.mark.parametrize(("with_gain", "scale"), [(True, "tensor"), (True, 0.3), (False, None)])
def test_float32(shape, add_eps, with_gain, scale, threads):
    weight, gain, scale = operands(shape, with_gain=with_gain, scale=scale)
    assert standardize.supported(weight, gain, scale, torch.float32)
    ours = kernels.fused_standardize_weight(weight, gain, scale=scale, add_eps=add_eps)
    doubles = [
        x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in (weight, gain, scale)
    ]
    expected = functional.standardize_weight(doubles[0], doubles[1], scale=doubles[2], add_eps=add_eps)
    grad = torch.randn(shape)
    pairs = [(ours, expected)]
    pairs += zip(gradients(ours, (weight, gain, scale), grad), gradients(expected, doubles, grad.double()), strict=True)
    for mine, theirs in pairs:
        # float32 rounding in sums of up to 40,001 terms
        assert (mine - theirs).norm() <= 2e-6 * theirs.norm() + 1e-6


@pytest.mark.parametrize("shape", SHAPES[:-1])
@pytest.mark.parametrize("add_eps", [False, True])
@pytest.mark.parametrize("eps", [1e-4, 3.0])  # the second bounds about half of the rows
def test_float64_is_autograds(shape, add_eps, eps):
    weight, gain, scale = operands(shape, torch.float64)
    ours = standardize._Standardize.apply(weight, gain, scale, eps, add_eps, torch.float64)
    theirs = functional.standardize_weight(weight, gain, scale=scale, eps=eps, add_eps=add_eps)
    grad = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    both = (gradients(out, (weight, gain, scale), grad) for out in (ours, theirs))
    for mine, expected in zip(*both, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("add_eps", [False, True])
@pytest.mark.parametrize("eps", [1e-4, 3.0])
def test_gradcheck(add_eps, eps):
    weight, gain, scale = operands((4, 3, 2, 1), torch.float64)

    def function(weight, gain, scale):
        return standardize._Standardize.apply(weight, gain, scale, eps, add_eps, torch.float64)

    squares = (weight - weight.mean((1, 2, 3), keepdim=True)).square().sum((1, 2, 3))
    assert add_eps or eps < 1 or (squares < eps).any()
    assert torch.autograd.gradcheck(function, (weight, gain, scale))
    assert torch.autograd.gradgradcheck(function, (weight, gain, scale))


def test_only_the_gradients_that_are_wanted():
    weight, gain, scale = operands((4, 3, 3, 3))
    expected = gradients_of_sum(kernels.fused_standardize_weight(weight, gain, scale=scale), (weight, gain, scale))
    for chosen in range(1, 8):
        wanted = [bool(chosen >> i & 1) for i in range(3)]
        mine = [x.detach().requires_grad_(want) for x, want in zip((weight, gain, scale), wanted, strict=True)]
        kernels.fused_standardize_weight(mine[0], mine[1], scale=mine[2]).sum().backward()
        for x, want, its in zip(mine, wanted, expected, strict=True):
            assert (x.grad is not None) == want
            if want:
                torch.testing.assert_close(x.grad, its, rtol=1e-5, atol=1e-5)


def gradients_of_sum(out, operands):
    return torch.autograd.grad(out.sum(), operands)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_result_is_rounded_once(shape):
    weight, gain, scale = operands(shape)
    ours = kernels.fused_standardize_weight(weight, gain, scale=scale, dtype=torch.bfloat16)
    assert ours.dtype is torch.bfloat16
    exact = kernels.fused_standardize_weight(weight, gain, scale=scale)
    assert torch.equal(ours, exact.to(torch.bfloat16))
    grad = torch.randn(shape).bfloat16()
    theirs = gradients(exact, (weight, gain, scale), grad.float())
    for mine, expected in zip(gradients(ours, (weight, gain, scale), grad), theirs, strict=True):
        assert mine.dtype is torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_formats(weight_format, grad_format, dtype):
    weight, gain, scale = operands((6, 5, 3, 3))
    laid = weight.detach().contiguous(memory_format=weight_format).requires_grad_()
    grad = torch.randn(6, 5, 3, 3).to(dtype)
    ours = kernels.fused_standardize_weight(laid, gain, scale=scale, dtype=dtype)
    assert ours.stride() == laid.stride()
    theirs = kernels.fused_standardize_weight(weight, gain, scale=scale, dtype=dtype)
    mine = gradients(ours, (laid, gain, scale), grad.contiguous(memory_format=grad_format))
    assert mine[0].stride() == laid.stride()
    for a, b in zip((ours, *mine), (theirs, *gradients(theirs, (weight, gain, scale), grad)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype is torch.bfloat16 else 1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [1e-4, 0.0])
def test_a_constant_row(eps):
    weight = torch.full((2, 8), 0.5)
    weight[1] = torch.randn(8)
    weight.requires_grad_()
    ours = kernels.fused_standardize_weight(weight, eps=eps)
    theirs = functional.standardize_weight(weight, eps=eps)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    if eps:  # its bound is active: the gradient is that of a constant factor
        grad = torch.randn(2, 8)
        mine, expected = (torch.autograd.grad(out, weight, grad)[0] for out in (ours, theirs))
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_row_that_is_not_finite_stays_alone(value):
    weight = torch.randn(3, 20)
    weight[1, 4] = value
    ours, theirs = kernels.fused_standardize_weight(weight), functional.standardize_weight(weight)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert ours[1].isnan().all()
    assert ours[::2].isfinite().all()


def test_large_means_and_small_weights():
    weight = torch.randn(4, 500) * 1e-3 + 10
    exact = functional.standardize_weight(weight.double(), eps=1e-12)
    ours, theirs = (f(weight, eps=1e-12) for f in (kernels.fused_standardize_weight, functional.standardize_weight))
    assert (theirs - exact).norm() > 1e-4 * exact.norm()  # the mean's own rounding
    assert (ours - exact).norm() <= 1e-6 * exact.norm()  # its rest is kept
    tiny = torch.randn(4, 50) * 1e-30  # squares are denormal or 0, the bound holds
    torch.testing.assert_close(kernels.fused_standardize_weight(tiny), functional.standardize_weight(tiny))


def test_threads_do_not_change_a_bit():
    weight, gain, scale = operands((128, 33, 3, 3))
    grad, results = torch.randn(weight.shape), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        out = kernels.fused_standardize_weight(weight, gain, scale=scale)
        results.append((out, *gradients(out, (weight, gain, scale), grad)))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_what_is_not_supported_takes_the_portable_path():
    weight, gain = torch.randn(6, 4, 3, 3), torch.randn(6)
    cases = [
        (weight.double(), gain.double(), None),
        (weight.bfloat16(), gain.bfloat16(), None),
        (weight.permute(1, 0, 2, 3), gain[:4], None),
        (weight[:, ::2], gain, 0.5),
        (weight, gain, torch.tensor(0.5, dtype=torch.float64)),
        (weight, gain[::2].repeat_interleave(2).expand(2, 6)[1].flip(0)[:6], None),
        (weight.to("meta"), gain.to("meta"), None),
    ]
    for w, g, scale in cases:
        ours = kernels.fused_standardize_weight(w, g, scale=scale)
        theirs = functional.standardize_weight(w, g, scale=scale).to(w.dtype)
        assert ours.dtype == theirs.dtype
        if ours.device.type == "cpu":
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not standardize.supported(weight.permute(1, 0, 2, 3), None, None, torch.float32)
    assert not standardize.supported(weight, gain.double(), None, torch.float32)
    assert not standardize.supported(weight, None, None, torch.float16)


def test_compiled_graphs_and_transforms():
    weight, gain = torch.randn(4, 3, 3, 3), torch.randn(4)

    def function(weight, gain):
        return kernels.fused_standardize_weight(weight, gain, scale=0.5)

    expected = functional.standardize_weight(weight, gain, scale=0.5)
    traced = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(weight, gain), expected)
    torch.testing.assert_close(torch.func.vmap(function)(weight[None], gain[None])[0], expected)


def test_gradient_in_pieces_adds_up():
    """As in gradient accumulation: a second backward pass adds to .grad."""
    weight, gain, scale = operands((4, 3, 3, 3))
    for _ in range(2):
        kernels.fused_standardize_weight(weight, gain, scale=scale).square().sum().backward()
    once = gradients_of_sum(kernels.fused_standardize_weight(weight, gain, scale=scale).square(), (weight, gain, scale))
    for x, its in zip((weight, gain, scale), once, strict=True):
        torch.testing.assert_close(x.grad, 2 * its)
