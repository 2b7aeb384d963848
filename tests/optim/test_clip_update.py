"""Clipping of updates: for SGD that of gradients, for Adam a bound on the relative length of its steps."""

import copy

import pytest
import torch
from optim_cases import groups, loss_of, network
from tiny_runs import network as with_roles
from torch import nn

from normfree.errors import NotFinite, UsageError
from normfree.functional import unitwise_norm
from normfree.optim import AGC, OptimConfig, param_groups


def moved(on, kind="unit", make=torch.optim.SGD, steps=3, **options):
    model = network().double()
    given = param_groups(model, clipping=0.02, clipping_kind=kind, roles={"3.weight": "classifier"})
    agc = AGC(make(given, lr=0.1, **options), on=on)
    for step in range(steps):
        agc.zero_grad()
        model(torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(step)).double()).mean().backward()
        statistics = agc.step()
    return model, statistics


@pytest.mark.parametrize("kind", ["unit", "layer", "norm"])
def test_updates_of_plain_sgd_are_clipped_as_its_gradients(kind):
    (ours, counted), (theirs, expected) = moved("update", kind), moved("gradient", kind)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)  # float64 differences
    assert counted.fraction == expected.fraction
    assert counted.total_fraction > 0
    torch.testing.assert_close(counted.gradient_norm, expected.gradient_norm)
    assert {p for p, _ in counted.by_tensor()} <= set(ours.parameters())


def test_no_step_of_adam_is_longer_than_the_threshold_and_short_ones_are_adams():
    model, plain = network(), network()
    for net in (model, plain):
        with torch.no_grad():
            net[0].weight[0].mul_(1000)  # a unit so long that Adam's step is short
    before = copy.deepcopy(model)
    agc = AGC(torch.optim.Adam(groups(model), lr=0.05), on="update")
    adam = torch.optim.Adam(groups(plain), lr=0.05)
    for net in (model, plain):
        loss_of(net, 0).backward()
    adam.step()
    statistics = agc.step()
    assert 0 < statistics.fraction["weight"] < 1
    change = unitwise_norm(model[0].weight - before[0].weight).flatten()
    bound = 0.05 * 0.02 * unitwise_norm(before[0].weight).flatten()
    assert torch.all(change <= bound * (1 + 1e-4))  # float32 differences
    torch.testing.assert_close(change[1:], bound[1:], rtol=1e-4, atol=0)
    assert torch.equal(model[0].weight[0], plain[0].weight[0])
    assert torch.equal(model[3].weight, plain[3].weight)  # the classifier is not clipped


def test_the_optimizers_own_state_is_not_changed():
    states = []
    for on in ("gradient", "update"):
        model = network()
        given = groups(model)
        for group in given:
            group["clipping"] = 1e9 if on == "gradient" else 1e-3
        agc = AGC(torch.optim.Adam(given, lr=0.05), on=on)
        loss_of(model, 0).backward()
        agc.step()
        states.append([agc.optimizer.state[p]["exp_avg"] for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_closure_a_copy_and_a_learning_rate_of_zero():
    model = network()
    agc = AGC(torch.optim.Adam(groups(model), lr=0.05), on="update")

    def step(net, its, seed):
        def closure():
            its.zero_grad()
            loss = loss_of(net, seed)
            loss.backward()
            return loss

        return its.step(closure)

    assert step(model, agc, 0).total_fraction > 0
    twin, copied = copy.deepcopy((model, agc))
    for net, its in ((model, agc), (twin, copied)):
        assert step(net, its, 1).total_fraction > 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    for group in agc.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(model)
    assert step(model, agc, 2).total_fraction == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = network()
    agc = AGC(torch.optim.Adam(groups(model), lr=0.05), on="update", error_if_nonfinite=True)
    loss_of(model, 0).backward()
    model[3].weight.grad[0, 0] = float("nan")
    before = copy.deepcopy(model)
    with pytest.raises(NotFinite):
        agc.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert not agc.optimizer.state


def test_what_is_refused():
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(UsageError, match=r"on \(='step'\) must be one of gradient, update"):
        AGC(sgd, 0.1, on="step")
    with pytest.raises(UsageError, match=r"clip\(\) is for on='gradient'"):
        AGC(sgd, 0.1, on="update").clip()
    with pytest.raises(UsageError, match=r"optim.clip_on \(='grad'\) must be one of gradient, update"):
        OptimConfig(clip_on="grad")
    with pytest.raises(UsageError, match=r"optim.clip_on \(=update\) must be \"gradient\" with optim.name"):
        OptimConfig(name="schedulefree_sgd", clip_on="update", ema_decay=None)
    with pytest.raises(UsageError, match=r"optim.clip_on \(=update\) must be gradient: the weights of this network"):
        OptimConfig(clip_on="update").check_pull(with_roles(weight_scheme="decoupled"))
