"""Muon: the iteration against its polynomial of singular values, the steps against torch's and by hand."""

import pytest
import torch
from torch import nn

from normfree import UsageError
from normfree.optim import Muon, param_groups
from normfree.optim.muon import COEFFICIENTS, orthogonalize
from normfree.optim.optimizers import options_of

FLOAT64 = dict(rtol=1e-11, atol=1e-12)  # sums in another order


def by_singular_values(matrix, steps=5):
    """What the iteration says of the singular values, applied to them alone."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / s.square().sum().sqrt()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 6), (6, 1)])
def test_the_iteration_is_its_polynomial_of_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(matrix), by_singular_values(matrix), **FLOAT64)
    torch.testing.assert_close(orthogonalize(matrix, 2), by_singular_values(matrix, 2), **FLOAT64)
    torch.testing.assert_close(orthogonalize(1e6 * matrix), orthogonalize(matrix), **FLOAT64)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.2


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torch(nesterov):
    """Matrices, and weights of convolutions as matrices; torch's iteration is of bfloat16, 8 bits, in five steps."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (4, 8), (6, 3, 3, 3))]
    theirs = [nn.Parameter(p.detach().flatten(1).clone()) for p in ours]
    common = dict(lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.3)
    optimizers = Muon(ours, relative=False, **common), torch.optim.Muon(theirs, **common)
    for _ in range(4):
        before = [p.detach().flatten(1).clone() for p in ours]
        for p, q in zip(ours, theirs, strict=True):
            q.data.copy_(p.detach().flatten(1))
            p.grad = torch.randn_like(p)
            q.grad = p.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
        for p, q, start in zip(ours, theirs, before, strict=True):
            step, expected = p.detach().flatten(1) - start, q.detach() - start
            assert (step - expected).norm() < 0.03 * expected.norm()
            assert (p.detach().flatten(1) - q.detach()).abs().max() < 0.01
    for p, q in zip(ours, theirs, strict=True):  # momentum, to float32 rounding
        buffers = (its.state[own]["momentum_buffer"].flatten(1) for its, own in zip(optimizers, (p, q), strict=True))
        torch.testing.assert_close(*buffers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (8, 2), (5,)])
def test_a_relative_step_has_its_part_of_the_weights_length(scale, shape):
    torch.manual_seed(0)
    p = nn.Parameter(scale * torch.randn(shape, dtype=torch.float64))
    before = p.detach().clone()
    p.grad = torch.randn_like(p)
    Muon([p], lr=0.05, momentum=0.0, nesterov=False).step()
    change = p.detach() - before
    assert change.norm().item() == pytest.approx(0.05 * before.norm().item(), rel=1e-12)
    direction = by_singular_values(p.grad.reshape(len(p), -1)).view(shape)
    torch.testing.assert_close(change / change.norm(), -direction / direction.norm(), **FLOAT64)


def test_momentum_and_decay_by_hand():
    """Two steps of one matrix, Nesterov's form; the decay comes first and stands beside the step."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    expected, grads = p.detach().clone(), [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]
    optimizer = Muon([p], lr=0.1, momentum=0.6, weight_decay=0.5)
    momentum = torch.zeros_like(expected)
    for grad in grads:
        p.grad = grad
        optimizer.step()
        momentum = 0.6 * momentum + 0.4 * grad
        step = by_singular_values(0.4 * grad + 0.6 * momentum)
        expected = 0.95 * expected - 0.1 * expected.norm() * step / step.norm()
        torch.testing.assert_close(p.detach(), expected, **FLOAT64)


def test_a_weight_of_norm_zero_moves():
    p = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))
    p.grad = torch.eye(4, 2, dtype=torch.float64)
    Muon([p], lr=0.1).step()
    torch.testing.assert_close(p.detach(), -0.1 * 2**0.5 * by_singular_values(p.grad), **FLOAT64)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e15])
def test_a_gradient_of_zero_moves_nothing(size):
    """That of a branch behind a skip gain of 0, for example."""
    p = nn.Parameter(torch.full((2, 2), size))
    p.grad = torch.zeros(2, 2)
    Muon([p], lr=0.1).step()
    assert torch.equal(p, torch.full((2, 2), size))
    p.grad = torch.tensor([[1e-30, 0.0], [0.0, 1e-30]])  # and the smallest one is a direction
    Muon([p], lr=0.1, momentum=0.0, nesterov=False).step()
    assert p.isfinite().all()


def test_other_groups_take_steps_of_sgd():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    for nesterov in (True, False):
        common = dict(lr=0.1, momentum=0.7, nesterov=nesterov, weight_decay=0.3)
        optimizers = Muon([ours], orthogonalized=False, **common), torch.optim.SGD([theirs], **common)
        for _ in range(3):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(ours, theirs, **FLOAT64)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("unclipped", [(), ("weight",)])
def test_transposed_convolutions_are_matrices_of_their_outputs(groups, unclipped):
    """The step of the same map with outputs first."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False).double()
    layer.weight.grad = torch.randn_like(layer.weight)

    def outputs_first(w):  # (in, out / groups, 3, 3) -> (out, in / groups, 3, 3)
        return torch.cat([part.transpose(0, 1) for part in w.chunk(groups)])

    plain = nn.Parameter(outputs_first(layer.weight.detach()).clone())
    plain.grad = outputs_first(layer.weight.grad)
    given = param_groups(layer, clipping=0.1, unclipped=unclipped, roles={"weight": "weight"})
    for params in (given, [plain]):
        Muon(params, lr=0.1).step()
    torch.testing.assert_close(outputs_first(layer.weight.detach()), plain.detach(), **FLOAT64)


def test_half_types_keep_their_type():
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        p = nn.Parameter(torch.randn(4, 6).to(dtype))
        before = p.detach().clone()
        p.grad = torch.randn_like(p)
        Muon([p], lr=0.5).step()
        assert p.dtype == dtype
        length = (p.detach() - before).float().norm() / before.float().norm()
        assert length.item() == pytest.approx(0.5, rel=2e-2)  # bfloat16 has 8 bits


def test_what_is_refused():
    p = [nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(UsageError, match=r"nesterov \(=True\) needs momentum above 0"):
        Muon(p, momentum=0.0)
    with pytest.raises(UsageError, match=r"steps \(=0\) must be at least 1"):
        Muon(p, steps=0)
    for given, message in (
        (dict(steps=0), r"options.steps \(=0\) must be a number at least 1 and below 100"),
        (dict(steps=2.5), r"options.steps \(=2.5\) must be a whole number"),
        (dict(relative=1), r"options.relative \(=1\) must be true or false"),
        (dict(orthogonalized="weight"), r"options.orthogonalized \(='weight'\) must be a list of roles: weight, "),
    ):
        with pytest.raises(UsageError, match=message):
            options_of("muon", given)
