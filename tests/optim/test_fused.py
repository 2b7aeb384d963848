"""The fused step: the numbers of AGC, SGD and EMA one after the other, and only where the kernels can take it."""

import copy

import pytest
import torch
from small_models import small

from normfree import UsageError, kernels
from normfree.errors import NotFinite
from normfree.kernels import library
from normfree.optim import AGC, EMA, FusedStep, param_groups


@pytest.fixture
def compiled():
    if not kernels.available():
        pytest.skip(kernels.why_off())


def optimizer(model, lr=0.1, **options):
    options = dict(momentum=0.9, nesterov=True) | options
    return torch.optim.SGD(param_groups(model, weight_decay=1e-2, clipping=0.05), lr=lr, **options)


def backward(model, step):
    torch.manual_seed(step)
    model.zero_grad()
    logits = model(torch.randn(4, 3, 32, 32))
    torch.nn.functional.cross_entropy(logits * 20, torch.arange(4)).backward()


def same(a, b, limit=1e-6):
    for x, y in zip(a, b, strict=True):
        assert (x - y).norm() <= limit * max(y.norm().item(), 1e-3)


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50"])
def test_six_steps_are_those_of_the_three(name, averaged, compiled):
    model = small(name)
    plain = copy.deepcopy(model)
    ema, reference = (EMA(net, 0.9) if averaged else None for net in (model, plain))
    one, other = optimizer(model), optimizer(plain)
    fused, agc = FusedStep(one, ema), AGC(other)
    for step in range(6):
        backward(model, step)
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            p.grad = q.grad.clone()  # the same gradients: what is compared is the step
        assert fused.possible()
        grads = [p.grad.clone() for p in model.parameters()]
        got, expected = fused.step(), agc.step()
        if averaged:
            reference.update()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))  # as they were
        same(model.parameters(), plain.parameters())
        assert got.units == expected.units
        assert got.fraction == expected.fraction
        for (p, a), (q, b) in zip(got.by_tensor(), expected.by_tensor(), strict=True):
            assert p.shape == q.shape
            assert (a.units, a.clipped) == (b.units, b.clipped)
            assert a.largest_ratio == pytest.approx(b.largest_ratio, rel=1e-5)
        buffers = ([s["momentum_buffer"] for s in o.state.values()] for o in (one, other))
        same(*buffers)
        if averaged:
            same(ema.average.values(), reference.average.values())
            assert ema.steps == reference.steps == step + 1
    assert 0 < expected.total_fraction < 1


def test_both_ways_of_stepping_may_alternate(compiled):
    model = small("nfnet_f0")
    plain = copy.deepcopy(model)
    one, other = optimizer(model), optimizer(plain)
    fused, agc, reference = FusedStep(one), AGC(one), AGC(other)
    for step in range(4):
        backward(model, step)
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            p.grad = q.grad.clone()
        fused.step() if step % 2 else agc.step()
        reference.step()
    same(model.parameters(), plain.parameters())


def test_what_is_not_stepped_is_averaged(compiled):
    """A parameter of no group, and a buffer: the average follows whatever changes them."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
    groups = [dict(params=list(model[0].parameters()), clipping=0.1)]
    ema = EMA(model, 0.9, warmup=False)
    fused = FusedStep(torch.optim.SGD(groups, lr=0.1, momentum=0.9), ema)
    before = {name: average.clone() for name, average in ema.average.items()}
    model(torch.randn(4, 3)).sum().backward()
    with torch.no_grad():
        model[1].weight += 1
    assert fused.possible()
    fused.step()
    for name, live in model.state_dict().items():
        expected = before[name].lerp(live, 0.1) if live.is_floating_point() else live
        torch.testing.assert_close(ema.average[name], expected)


def test_where_it_cannot_be_taken(compiled, monkeypatch):
    model = small("nfnet_f0")
    backward(model, 0)
    assert FusedStep(optimizer(model)).possible()
    assert not FusedStep(optimizer(model, momentum=0.0, nesterov=False)).possible()
    assert not FusedStep(optimizer(model, nesterov=False, maximize=True)).possible()
    assert not FusedStep(optimizer(model, torch.tensor(0.1))).possible()
    assert not FusedStep(torch.optim.AdamW(param_groups(model, clipping=0.1))).possible()
    double = small("nfnet_f0").double()
    assert not FusedStep(optimizer(double)).possible()
    monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))
    assert not FusedStep(optimizer(model)).possible()


def test_a_gradient_that_is_not_finite_changes_nothing(compiled):
    model = small("nfnet_f0")
    ema, sgd = EMA(model, 0.9), optimizer(model)
    fused = FusedStep(sgd, ema)
    backward(model, 0)
    fused.step()
    backward(model, 1)
    next(model.parameters()).grad.view(-1)[0] = float("nan")
    before = [p.clone() for p in model.parameters()], [s["momentum_buffer"].clone() for s in sgd.state.values()]
    averages = [a.clone() for a in ema.average.values()]
    with pytest.raises(NotFinite, match="a gradient is not finite; parameters are as before the step"):
        fused.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before[0], strict=True))
    held = [s["momentum_buffer"] for s in sgd.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(held, before[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.average.values(), averages, strict=True))
    assert ema.steps == 1


def test_groups_without_clipping_are_refused(compiled):
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="no 'clipping'"):
        FusedStep(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9))
