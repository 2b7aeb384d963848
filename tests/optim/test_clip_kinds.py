"""Clipping per unit, per layer and by the norm of the whole gradient: against independent counts, torch and optax."""

import copy

import pytest
import torch
from optim_cases import OPTIMIZERS, groups, loss_of, network, parameters_equal
from optim_golden import parameters, set_gradients, theirs
from small_models import small
from torch import nn

from normfree import UsageError, kernels
from normfree.errors import NotFinite
from normfree.functional import norm_coefficient
from normfree.optim import AGC, EMA, FusedStep, agc_, param_groups

SHAPES = [(6, 3, 3, 3), (5, 7), (4, 2, 3), (9,), (1,), ()]


def tensors(*scales, dtype=torch.float64):
    """Parameters of all shapes, with gradients of these sizes by turns."""
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
    for number, p in enumerate(params):
        p.grad = scales[number % len(scales)] * torch.randn(p.shape, dtype=dtype)
    return params


@pytest.mark.parametrize("clipping", [0.1, 1.0])
def test_units_are_clipped_as_by_optax(clipping):
    """Both in float64; optax divides by ``max(|G|, 1e-6)``, and no gradient is so short."""
    params = parameters()
    for step in range(2):
        set_gradients(params, step)
        agc_(params.values(), clipping)
        for name, expected in theirs(f"agc{clipping}", step).items():
            torch.testing.assert_close(params[name].grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("clipping", [0.05, 0.2, 0.5])
def test_a_layer_has_one_ratio(clipping):
    params = tensors(0.01, 1.0)
    before = [p.grad.clone() for p in params]
    statistics = agc_(params, clipping, kind="layer")
    flags = []
    for p, old in zip(params, before, strict=True):
        bound = clipping * max(p.detach().square().sum().sqrt().item(), 1e-3)
        flags.append(old.norm().item() > bound)
        if flags[-1]:
            torch.testing.assert_close(p.grad, old * (bound / old.norm()), rtol=1e-12, atol=0)  # float64 rounding
        else:
            assert torch.equal(p.grad, old)
    assert statistics.units == dict(params=len(SHAPES))
    assert statistics.clipped_units["params"] == sum(flags)
    assert 0 < sum(flags) < len(flags)
    for (_, its), p, old in zip(statistics.by_tensor(), params, before, strict=True):
        assert its.largest_ratio == pytest.approx(old.norm().item() / max(p.norm().item(), 1e-3), rel=1e-12)


def test_a_layer_is_clipped_as_its_elements_in_a_vector():
    params = tensors(10.0)
    vectors = [nn.Parameter(p.detach().flatten()) for p in params]
    for vector, p in zip(vectors, params, strict=True):
        vector.grad = p.grad.flatten()
    agc_(params, 0.1, kind="layer")
    agc_(vectors, 0.1)
    for vector, p in zip(vectors, params, strict=True):
        torch.testing.assert_close(p.grad.flatten(), vector.grad, rtol=1e-14, atol=0)  # the order of a sum


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("clipping", [0.1, 10.0, 1e3])
def test_the_norm_of_the_whole_is_clipped_as_by_torch(clipping, dtype):
    params = tensors(0.1, 5.0, dtype=dtype)
    plain = copy.deepcopy(params)
    for p, q in zip(params, plain, strict=True):
        q.grad = p.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(plain, clipping)
    statistics = agc_(params, clipping, kind="norm")
    # torch divides by |G| + 1e-6, and |G| is above 10 here
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6 if dtype is torch.float32 else 1e-7, atol=0)
    assert statistics.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-6)
    assert statistics.units == dict(params=len(SHAPES))
    assert statistics.total_fraction == float(norm > clipping)


def test_a_gradient_within_the_threshold_is_untouched_bit_for_bit():
    params = tensors(1e-3)
    before = [p.grad.clone() for p in params]
    assert agc_(params, 1.0, kind="norm").total_fraction == 0
    assert all(torch.equal(p.grad, old) for p, old in zip(params, before, strict=True))
    for p in params:
        p.grad.zero_()
    agc_(params, 1.0, kind="norm")
    assert not any(p.grad.any() for p in params)


def test_groups_of_kind_norm_are_clipped_together_and_others_apart():
    params = tensors(3.0)
    before = [p.grad.clone() for p in params]
    given = [
        dict(params=params[:2], clipping=0.5, clipping_kind="norm", name="a"),
        dict(params=params[2:3], clipping=None, clipping_kind="norm", name="free"),
        dict(params=params[3:4], clipping=0.5, clipping_kind="norm", name="b"),
        dict(params=params[4:], clipping=0.1, clipping_kind="layer", name="c"),
    ]
    statistics = agc_(given)
    factor = 0.5 / torch.cat([before[i].flatten() for i in (0, 1, 3)]).norm()
    for i in (0, 1, 3):
        torch.testing.assert_close(params[i].grad, before[i] * factor, rtol=1e-12, atol=0)  # float64 rounding
    assert torch.equal(params[2].grad, before[2])
    for i in (4, 5):
        bound = 0.1 * max(params[i].norm().item(), 1e-3)
        assert params[i].grad.norm().item() == pytest.approx(min(bound, before[i].norm().item()), rel=1e-12)
    assert statistics.units == dict(a=2, b=1, c=2)


def test_norms_that_are_not_finite():
    params = tensors(1.0, dtype=torch.float32)
    params[0].grad.view(-1)[0] = float("inf")
    before = [p.grad.clone() for p in params]
    with pytest.raises(NotFinite, match="a gradient is not finite"):
        agc_(params, 1.0, kind="norm", error_if_nonfinite=True)
    assert all(torch.equal(p.grad, old) for p, old in zip(params, before, strict=True))
    agc_(params, 1.0, kind="norm")
    assert not any(p.grad.isfinite().any() for p in params)  # never 0 where the sum is not known
    assert norm_coefficient(torch.tensor(torch.nan), 1.0).isnan()


def test_squares_beyond_float32_do_not_matter():
    params = tensors(1.0, dtype=torch.float32)
    for p in params:
        p.grad.fill_(1e18 / p.numel() ** 0.5)  # the norm of each is 1e18, its square 1e36
    many = [nn.Parameter(p.detach()) for p in params for _ in range(100)]
    for p in many:
        p.grad = torch.full_like(p, 1e18 / p.numel() ** 0.5)
    agc_(many, 1.0, kind="norm")
    norm = torch.stack([p.grad.double().norm() for p in many]).norm()
    assert norm.item() == pytest.approx(1.0, rel=1e-5)  # factors of 1e-19 in float32


@pytest.mark.parametrize("kind", ["layer", "norm"])
@pytest.mark.parametrize("name", ["SGD-foreach", "Adam", "AdamW-fused"])
def test_the_front_of_every_optimizer_clips(kind, name):
    model, plain = network(), network()
    optimizer = OPTIMIZERS[name](param_groups(model, clipping=0.02, clipping_kind=kind, roles={"3.weight": "weight"}))
    reference = OPTIMIZERS[name](param_groups(plain, clipping=None, roles={"3.weight": "weight"}))
    agc = AGC(optimizer)
    for step in range(3):
        for net in (model, plain):
            net.zero_grad()
            loss_of(net, step).backward()
        statistics = agc_(plain.parameters(), 0.02, kind=kind)
        reference.step()
        assert agc.step().fraction.keys() == {"weight", "bias"}
        assert agc.statistics.total_fraction == statistics.total_fraction > 0
        assert parameters_equal(model, plain)


def test_the_kind_of_groups_that_name_none():
    one, other = tensors(5.0), tensors(5.0)
    for p, q in zip(one, other, strict=True):
        p.data, p.grad = q.data.clone(), q.grad.clone()
    sgd = torch.optim.SGD(one, lr=1.0)
    AGC(sgd, 0.1, kind="layer").clip()
    agc_([dict(params=other, clipping=0.1, clipping_kind="layer")])
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(one, other, strict=True))


def test_the_kind_is_kept_where_a_state_is_loaded():
    model = network()
    old = torch.optim.SGD(groups(model), lr=0.1, momentum=0.9)
    optimizer = torch.optim.SGD([group | dict(clipping_kind="layer") for group in groups(model)], lr=0.1, momentum=0.9)
    agc = AGC(optimizer)
    optimizer.load_state_dict(old.state_dict())
    assert {group["clipping_kind"] for group in optimizer.param_groups} == {"layer"}
    loss_of(model, 0).backward()
    assert agc.step().units["weight"] == 1
    twin = copy.deepcopy(agc)
    assert {group["clipping_kind"] for group in twin.param_groups} == {"layer"}


def test_what_cannot_be_is_refused():
    params = tensors(1.0)
    wanted = r"clipping_kind \(='rows'\)( of group \w+)? must be one of unit, layer, norm"
    for call in (
        lambda: agc_(params, 0.1, kind="rows"),
        lambda: agc_([dict(params=params, clipping=0.1, clipping_kind="rows")]),
        lambda: AGC(torch.optim.SGD(params, lr=0.1), 0.1, kind="rows"),
        lambda: param_groups(nn.Linear(2, 2), clipping=0.1, clipping_kind="rows"),
    ):
        with pytest.raises(UsageError, match=wanted):
            call()
    two = [dict(params=params[i : i + 1], clipping=float(i + 1), clipping_kind="norm") for i in range(2)]
    with pytest.raises(UsageError, match=r"clipping \(=1.0, 2.0\) of groups with clipping_kind norm must be one"):
        agc_(two)


@pytest.fixture
def compiled():
    if not kernels.available():
        pytest.skip(kernels.why_off())


def backward(model, step):
    torch.manual_seed(step)
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)) * 20, torch.arange(4)).backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_fused_step_clips_layers(layout, compiled):
    model = small("nfnet_f0").to(memory_format=layout)
    plain = copy.deepcopy(model)
    made = [
        torch.optim.SGD(param_groups(net, weight_decay=1e-2, clipping=3.0, clipping_kind="layer"), lr=0.1, momentum=0.9)
        for net in (model, plain)
    ]
    averages = EMA(model, 0.9), EMA(plain, 0.9)
    fused, agc = FusedStep(made[0], averages[0]), AGC(made[1])
    passed = [p.detach().norm().item() for p in plain.parameters()]  # the largest size that each has had
    for step in range(4):
        backward(model, step)
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            p.grad = q.grad.clone()
        assert fused.possible()
        got, expected = fused.step(), agc.step()
        averages[1].update()
        assert got.units == expected.units
        assert got.fraction == expected.fraction
        for (p, a), (q, b) in zip(got.by_tensor(), expected.by_tensor(), strict=True):
            assert p.shape == q.shape
            assert a.largest_ratio == pytest.approx(b.largest_ratio, rel=1e-5)
        # float32 updates in another order of operations: a skip gain that comes near 0 again keeps the rounding errors
        # of the sizes that it has had
        passed = [max(size, q.detach().norm().item()) for size, q in zip(passed, plain.parameters(), strict=True)]
        for p, q, size in zip(model.parameters(), plain.parameters(), passed, strict=True):
            assert (p - q).norm() <= 1e-6 * max(size, 1e-3)
        for a, b in zip(averages[0].average.values(), averages[1].average.values(), strict=True):
            assert (a - b).norm() <= 1e-6 * max(b.norm().item(), 1e-3)
    assert 0 < expected.total_fraction < 1


def test_the_fused_step_clips_gains_of_several_rows_as_one(compiled):
    params = [nn.Parameter(torch.randn(6, 1, 1)), nn.Parameter(torch.randn(3, 4))]
    plain = copy.deepcopy(params)
    made = [
        torch.optim.SGD([dict(params=own, clipping=0.1, one_unit=True)], lr=0.1, momentum=0.9)
        for own in (params, plain)
    ]
    for p, q in zip(params, plain, strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    fused = FusedStep(made[0])
    assert fused.possible()
    assert fused.step().units == AGC(made[1]).step().units == dict(params=2)
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)  # float32


def test_there_is_no_fused_step_by_the_norm_of_the_whole(compiled):
    model = small("nfnet_f0")
    backward(model, 0)
    for clipping, possible in ((0.1, False), (None, True)):
        given = param_groups(model, clipping=clipping, clipping_kind="norm")
        fused = FusedStep(torch.optim.SGD(given, lr=0.1, momentum=0.9))
        assert fused.possible() is possible
        if not possible:
            with pytest.raises(UsageError, match=r"clipping_kind \(='norm'\) has no fused step"):
                fused.step()


def test_a_layer_that_is_not_dense_has_no_fused_step(compiled):
    p = nn.Parameter(torch.randn(4, 6)[:, ::2])
    p.grad = torch.randn(4, 3)
    fused = FusedStep(torch.optim.SGD([dict(params=[p], clipping=0.1, clipping_kind="layer")], lr=0.1, momentum=0.9))
    assert not fused.possible()
    with pytest.raises(UsageError, match=r"shape \(4, 3\) is not dense"):
        fused.step()
