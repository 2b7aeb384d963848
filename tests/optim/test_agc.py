"""agc_: the bound, unit by unit, against an independent count and timm's function."""

import math

import pytest
import torch
from small_models import SMALL, small
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from normfree import RunFailed, UsageError
from normfree.optim import agc_, param_groups

SHAPES = [(6, 3, 3, 3), (8, 1, 5, 5), (5, 7), (4, 2, 3)]


def parameter(*shape, scale=1.0, gradient=1.0, dtype=torch.float64):
    """Weights and gradients whose units differ a thousandfold in norm."""
    spread = 10 ** torch.linspace(-2, 1, shape[0], dtype=dtype).view(-1, *(1,) * (len(shape) - 1)) if shape else 1.0
    p = nn.Parameter(scale * torch.randn(shape, dtype=dtype))
    p.grad = gradient * spread * torch.randn(shape, dtype=dtype)
    return p


def units(tensor):
    """Rows of a matrix, one per unit."""
    return tensor.detach().flatten(1) if tensor.ndim > 1 else tensor.detach().reshape(1, -1)


def bounds(p, clipping, eps=1e-3):
    """Largest gradient norm of each unit."""
    return torch.stack([clipping * max(row.square().sum().sqrt(), torch.tensor(eps)) for row in units(p)])


def norms(tensor):
    return torch.stack([row.square().sum().sqrt() for row in units(tensor)])


@pytest.mark.parametrize("clipping", [0.01, 0.16, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (9,), (1,), ()])
def test_clipped_units_are_on_the_bound_and_others_untouched(shape, clipping):
    p = parameter(*shape)
    before, bound = p.grad.clone(), bounds(p, clipping)
    clipped = norms(before) > bound
    statistics = agc_(p, clipping)
    for old, new, unit_bound, was_clipped in zip(units(before), units(p.grad), bound, clipped, strict=True):
        if was_clipped:
            torch.testing.assert_close(new, old * unit_bound / old.norm(), rtol=1e-12, atol=0)  # float64 rounding
        else:
            assert torch.equal(new, old)  # bit for bit
    assert statistics.units == {"params": len(bound)}
    assert statistics.clipped_units["params"].item() == clipped.sum()
    assert statistics.fraction == {"params": clipped.double().mean().item()}


def test_both_sides_of_the_bound_are_tested_above():
    for shape in SHAPES:
        p = parameter(*shape)
        assert len({bool(c) for c in norms(p.grad) > bounds(p, 0.16)}) == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_clipping_twice_is_clipping_once(shape):
    p = parameter(*shape)
    agc_(p, 0.1)
    once = p.grad.clone()
    agc_(p, 0.1)
    torch.testing.assert_close(p.grad, once, rtol=1e-14, atol=0)  # rounding at the bound


@pytest.mark.parametrize("shape", [*SHAPES, (9,)])
@pytest.mark.parametrize("clipping", [0.01, 0.3])
def test_agrees_with_timm(shape, clipping):
    p = parameter(*shape)
    peer = nn.Parameter(p.detach().clone())
    peer.grad = p.grad.clone()
    agc_(p, clipping)
    adaptive_clip_grad(peer, clipping)
    torch.testing.assert_close(p.grad, peer.grad, rtol=1e-12, atol=0)  # float64 rounding; its 1e-6 is far below


def test_zero_gradients_stay_zero():
    p = parameter(6, 3, 3, 3)
    p.grad.zero_()
    p.grad[2] = 1.0
    statistics = agc_(p, 0.01)
    assert not p.grad[torch.arange(6) != 2].any()
    assert statistics.clipped_units["params"] == 1


@pytest.mark.parametrize("eps", [1e-3, 0.5])
@pytest.mark.parametrize("shape", [(4, 3), (1,), (7,)])
def test_zero_weights_are_held_by_eps(shape, eps):
    p = parameter(*shape, scale=0.0, gradient=100.0)
    agc_(p, 0.1, eps=eps)
    bound = torch.full_like(norms(p.grad), 0.1 * eps)
    torch.testing.assert_close(norms(p.grad), bound, rtol=1e-12, atol=0)  # float64 rounding


def test_default_eps_is_the_released_one():
    p = parameter(3, 4, scale=0.0)
    agc_(p, 1.0)
    torch.testing.assert_close(norms(p.grad), torch.full_like(norms(p.grad), 1e-3), rtol=1e-12, atol=0)  # rounding


def test_gradients_that_are_not_finite_stay_so_and_spoil_no_other_unit():
    p = parameter(5, 4)
    p.grad[1, 0], p.grad[3, 2] = math.nan, math.inf
    agc_(p, 0.01)
    assert not p.grad[1].isfinite().any()
    assert not p.grad[3].isfinite().all()
    others = torch.tensor([0, 2, 4])
    assert p.grad[others].isfinite().all()
    assert (norms(p.grad[others]) <= bounds(p.detach()[others], 0.01) * (1 + 1e-12)).all()  # rounding


def gradients(model):
    x = torch.randn(4, 3, 32, 32)
    torch.nn.functional.cross_entropy(model(x) * 30, torch.arange(4)).backward()


@pytest.mark.parametrize("name", SMALL)
def test_fractions_are_those_of_an_independent_count(name):
    model = small(name)
    gradients(model)
    groups = param_groups(model, clipping=0.05)
    before = {p: p.grad.clone() for p in model.parameters()}
    statistics = agc_(groups)
    total = clipped = 0
    for group in groups:
        if group["clipping"] is None:
            assert group["name"] not in statistics.fraction
            assert all(torch.equal(p.grad, before[p]) for p in group["params"])
            continue
        flags = torch.cat([norms(before[p]) > bounds(p, 0.05) for p in group["params"]])
        assert statistics.units[group["name"]] == len(flags)
        assert statistics.fraction[group["name"]] == flags.double().mean().item()
        for p in group["params"]:
            assert (norms(p.grad) <= bounds(p, 0.05) * (1 + 1e-6)).all()  # float32 rounding
        total, clipped = total + len(flags), clipped + flags.sum().item()
    assert statistics.total_fraction == clipped / total
    assert 0 < clipped < total


def test_inputs_may_be_a_tensor_parameters_or_groups():
    def run(pass_on):
        torch.manual_seed(3)
        layer = nn.Linear(4, 3)
        layer.weight.grad, layer.bias.grad = torch.randn(3, 4), torch.randn(3)
        statistics = pass_on(layer)
        return layer.weight.grad, layer.bias.grad, statistics.units

    weight, bias, seen = run(lambda layer: agc_(layer.parameters(), 0.01))
    assert seen == {"params": 4}
    for pass_on in (
        lambda layer: agc_(list(layer.parameters()), clipping=0.01),
        lambda layer: agc_([dict(params=[layer.weight], clipping=0.01), dict(params=[layer.bias], clipping=0.01)]),
        lambda layer: agc_([dict(params=[layer.weight]), dict(params=[layer.bias], clipping=0.01)], clipping=0.01),
        lambda layer: agc_(torch.optim.SGD([dict(params=layer.parameters(), clipping=0.01)], lr=1).param_groups),
    ):
        got = run(pass_on)
        assert torch.equal(got[0], weight)
        assert torch.equal(got[1], bias)
        assert got[2] == seen
    only_weight = run(lambda layer: agc_(layer.weight, 0.01))
    assert torch.equal(only_weight[0], weight)
    assert not torch.equal(only_weight[1], bias)


def test_groups_may_exclude_themselves():
    layer = nn.Linear(4, 3)
    layer.weight.grad, layer.bias.grad = torch.randn(3, 4), torch.randn(3)
    before = layer.weight.grad.clone()
    groups = [dict(params=[layer.weight], clipping=None), dict(params=[layer.bias], clipping=0.5, name="bias")]
    statistics = agc_(groups, clipping=0.01)
    assert torch.equal(layer.weight.grad, before)
    assert statistics.units == {"bias": 1}


def test_parameters_without_gradient_are_passed_over():
    with_gradient, without = parameter(3, 4), nn.Parameter(torch.randn(2))
    assert agc_([with_gradient, without], 0.01).units == {"params": 3}
    assert without.grad is None
    assert agc_([without], 0.01).units == {}
    assert agc_([], 0.01).total_fraction == 0.0


def test_groups_of_one_name_are_counted_together():
    groups = [dict(params=[parameter(n, 4)], clipping=c, name="weight") for n, c in ((3, 1e-6), (5, 1e6))]
    statistics = agc_(groups)
    assert statistics.units == {"weight": 8}
    assert statistics.clipped_units["weight"] == 3


def test_memory_layout_does_not_matter():
    p = parameter(6, 4, 3, 3)
    other = nn.Parameter(p.detach().to(memory_format=torch.channels_last))
    other.grad = p.grad.to(memory_format=torch.channels_last)
    agc_(p, 0.1)
    agc_(other, 0.1)
    torch.testing.assert_close(other.grad, p.grad, rtol=1e-13, atol=0)  # order of the sum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mixed_dtypes(dtype):
    low = parameter(4, 5, dtype=torch.float32)
    p = nn.Parameter(low.detach().to(dtype))
    p.grad = low.grad.to(dtype)
    agc_([p, parameter(3, dtype=torch.float32)], 0.1)
    assert p.grad.dtype is dtype
    assert (norms(p.grad.double()) <= bounds(p.double(), 0.1) * (1 + 4 * torch.finfo(dtype).eps)).all()  # its rounding


@pytest.mark.parametrize(
    "items", [[torch.zeros(2)], torch.zeros(2), [dict(params=[])]], ids=["list", "tensor", "groups"]
)
def test_missing_clipping_is_an_error(items):
    with pytest.raises(UsageError, match="clipping"):
        agc_(items)


def test_sparse_gradients_are_refused_by_the_groups_name():
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match="'table' has sparse"):
        agc_([dict(params=[embedding.weight], clipping=0.01, name="table")])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_types_are_float32(dtype):
    """Norm 2000 * sqrt(40000) = 4e5, beyond float16."""
    p = nn.Parameter(torch.ones(2, 40000, dtype=dtype))
    p.grad = torch.full_like(p, 2000.0)
    statistics = agc_([p], 0.01)
    assert statistics.total_fraction == 1
    wanted = torch.tensor(0.01).to(dtype)  # the bound 0.01 * sqrt(40000), spread over 40000 elements
    torch.testing.assert_close(p.grad, wanted.expand_as(p), rtol=torch.finfo(dtype).eps, atol=0)
    (_, its), = statistics.by_tensor()  # fmt: skip
    assert its.largest_ratio == pytest.approx(2000, rel=1e-4)  # a sum of 40000 in float32


def test_a_norm_beyond_float32_is_not_finite_and_never_0():
    p = parameter(3, 4, dtype=torch.float32)
    p.grad[1] = 1e30
    with pytest.raises(RunFailed, match="not finite"):
        agc_([p], 0.01, error_if_nonfinite=True)
    assert p.grad[1, 0] == 1e30
    agc_([p], 0.01)
    assert p.grad[1].isnan().all()
    assert p.grad[[0, 2]].isfinite().all()


def test_names_beside_parameters_are_refused():
    with pytest.raises(UsageError, match=r"parameters are needed, not tuple; model.parameters\(\)"):
        agc_(nn.Linear(2, 2).named_parameters(), 0.01)
    with pytest.raises(UsageError, match="not tuple"):
        agc_([dict(params=list(nn.Linear(2, 2).named_parameters()), clipping=0.01)])


@pytest.mark.parametrize("clipping", ["0.1", [0.1], True, 1j, math.nan])
def test_a_threshold_that_is_no_number_is_refused(clipping):
    p = parameter(2, 2)
    for call in (
        lambda: agc_([p], clipping),
        lambda: agc_([dict(params=[p], clipping=clipping)]),
        lambda: param_groups(nn.Linear(2, 2), clipping=clipping),
    ):
        with pytest.raises(UsageError, match=r"clipping \(=.*must be (a number )?above 0, or None for no clipping"):
            call()


def test_groups_may_hold_what_can_be_gone_through_once_or_one_parameter():
    for make in (lambda p: (q for q in [p]), lambda p: p):
        p = parameter(4, 3)
        assert agc_([dict(params=make(p), clipping=0.01)]).units == dict(params=4)
        assert (norms(p.grad) <= bounds(p, 0.01) * (1 + 1e-12)).all()  # rounding
