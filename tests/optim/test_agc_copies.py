"""AGC and optimizers that are copied, pickled, wrapped or replaced go on clipping."""

import copy
import pickle
import re

import pytest
import torch
from optim_cases import OPTIMIZERS, clipped_like, groups, loss_of, network, parameters_equal
from torch import nn

from normfree import UsageError
from normfree.optim import AGC, FusedStep, agc_, param_groups


def by_optimizer(model, agc):
    model, optimizer = copy.deepcopy((model, agc.optimizer))
    return model, optimizer


def by_agc(model, agc):
    model, agc = copy.deepcopy((model, agc))
    return model, agc.optimizer


def by_agc_first(model, agc):
    agc, model = copy.deepcopy((agc, model))
    return model, agc.optimizer


def by_pickle(model, agc):
    model, agc = pickle.loads(pickle.dumps((model, agc)))
    return model, agc.optimizer


COPIES = [by_optimizer, by_agc, by_agc_first, by_pickle]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_copy_clips_as_the_original(how, name):
    model, plain = network(), network()
    agc, reference = AGC(OPTIMIZERS[name](groups(model))), OPTIMIZERS[name](groups(plain))
    assert clipped_like(agc.optimizer, model, reference, plain)
    twin, optimizer = how(model, agc)
    twin_plain, twin_reference = copy.deepcopy((plain, reference))
    assert clipped_like(optimizer, twin, twin_reference, twin_plain)
    assert not parameters_equal(model, twin)  # the original stays, and goes on
    assert clipped_like(agc.optimizer, model, reference, plain)
    again, optimizer = copy.deepcopy((twin, optimizer))
    assert clipped_like(optimizer, again, *copy.deepcopy((twin_reference, twin_plain)))  # a copy of the copy


def test_copies_of_both_belong_together():
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)), eps=0.5, error_if_nonfinite=True)
    for first, second in ((agc, agc.optimizer), (agc.optimizer, agc)):
        one, other = copy.deepcopy((first, second))
        twin, optimizer = (one, other) if first is agc else (other, one)
        assert twin.optimizer is optimizer is not agc.optimizer
        assert (twin.eps, twin.error_if_nonfinite) == (0.5, True)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
        loss = optimizer.param_groups[0]["params"][0].square().sum()
        loss.backward()
        assert twin.step().units == {"weight": 4}


def test_a_copy_whose_hooks_were_taken_off_stays_unclipped():
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)))
    agc.remove()
    for twin in (copy.deepcopy(agc), pickle.loads(pickle.dumps(agc))):
        assert not twin.optimizer._optimizer_step_pre_hooks
    assert not copy.deepcopy(agc.optimizer)._optimizer_step_pre_hooks


def test_groups_may_be_added_later():
    model, late = network(), nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS["SGD"](groups(model))
    agc = AGC(optimizer)
    optimizer.add_param_group(dict(params=[late], clipping=1e-6, name="late"))
    late.grad = torch.full((2,), 100.0)
    assert agc.step().fraction["late"] == 1.0
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[-1]["clipping"] == 1e-6


def test_clipping_of_groups_that_do_not_name_one():
    model, plain = network(), network()
    optimizer, reference = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, plain))
    agc = AGC(optimizer, clipping=0.02)
    for net in (model, plain):
        loss_of(net, 0).backward()
    agc_(plain.parameters(), 0.02)
    reference.step()
    assert agc.step().total_fraction > 0
    assert parameters_equal(model, plain)
    fused = FusedStep(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), clipping=0.02)
    loss_of(model, 1).backward()
    assert fused.step().total_fraction > 0


class Wrapped(torch.optim.Optimizer):
    """What Accelerate makes of an optimizer: it is one by its class, and has none of its hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure=None):
        self.optimizer.step(closure)


class Outside:
    """What Lightning makes of one: not an optimizer by its class."""

    def __init__(self, optimizer):
        self.optimizer, self.step = optimizer, optimizer.step

    @property
    def param_groups(self):
        return self.optimizer.param_groups


@pytest.mark.parametrize("through", ["agc", "optimizer"])
@pytest.mark.parametrize("wrap", [Wrapped, Outside, lambda optimizer: Wrapped(Wrapped(optimizer))])
def test_wrapped_optimizers_clip(wrap, through):
    model, plain = network(), network()
    optimizer, reference = wrap(OPTIMIZERS["SGD"](groups(model))), OPTIMIZERS["SGD"](groups(plain))
    agc = AGC(optimizer)
    assert clipped_like(agc if through == "agc" else optimizer, model, reference, plain)
    assert agc.optimizer is optimizer
    assert agc.statistics.total_fraction > 0


@pytest.mark.parametrize("what", ["network", "parameters", "groups", "nothing"])
@pytest.mark.parametrize("wanted", [AGC, FusedStep])
def test_what_is_no_optimizer_is_refused(wanted, what):
    model = network()
    given = dict(network=model, parameters=model.parameters(), groups=groups(model), nothing=None)[what]
    with pytest.raises(UsageError, match=r"an optimizer is needed, not \w+; for example torch\.optim\.SGD\("):
        wanted(given)


@pytest.mark.parametrize("what", [network(), OPTIMIZERS["SGD"](groups(network()))], ids=["network", "optimizer"])
def test_agc_of_a_network_or_an_optimizer_is_refused(what):
    with pytest.raises(UsageError, match=r"parameters or groups are needed, not (Sequential|SGD)"):
        agc_(what, 0.01)


def test_statistics_print_in_a_line():
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)))
    assert repr(agc.statistics) == "ClipStatistics()"
    loss_of(model, 0).backward()
    statistics = agc.step()
    weight, bias = statistics.clipped_units["weight"], statistics.clipped_units["bias"]
    assert re.fullmatch(
        rf"ClipStatistics\(weight: {weight} of 4 units clipped, bias: {bias} of 2 units clipped, "
        r"gradient norm [0-9.e+-]+\)",
        str(statistics),
    )
    assert repr(statistics.groups) == (
        f"[ClippedGroup('weight', {weight} of 4 units clipped), ClippedGroup('bias', {bias} of 2 units clipped)]"
    )


def test_a_second_agc_replaces_the_first():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = AGC(optimizer, 1e-3)
    with pytest.warns(UserWarning, match="the optimizer had an AGC already; the new one replaces it") as said:
        second = AGC(optimizer, 0.1)
    assert said[0].filename == __file__  # the caller's line
    bound = 0.1 * model.weight.detach().norm(dim=1)
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    assert second.step().fraction == dict(params=1.0)
    torch.testing.assert_close(model.weight.grad.norm(dim=1), bound, rtol=1e-5, atol=0)  # float32
    assert not first.statistics.units
    first.remove()  # has nothing left to take off
    model.weight.grad = torch.full_like(model.weight, 100.0)
    copy.deepcopy(optimizer).step()
    assert second.step().clipped_units["params"] > 0
    second.remove()
    model.weight.grad = torch.full_like(model.weight, 100.0)
    for stepped in (copy.deepcopy(optimizer), optimizer):
        stepped.step()
    assert (model.weight.grad == 100).all()  # both unclipped


def test_copies_of_a_replaced_agc_belong_together():
    model = network()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    first = AGC(optimizer, eps=1e-3)
    with pytest.warns(UserWarning, match="replaces"):
        second = AGC(optimizer, eps=0.5)
    again, one, two = copy.deepcopy((optimizer, first, second))
    assert one.optimizer is two.optimizer is again
    loss_of(model, 0).backward()
    for p, q in zip(optimizer.param_groups[0]["params"], again.param_groups[0]["params"], strict=True):
        q.grad = p.grad.clone()
    again.step()
    assert two.statistics.units
    assert not one.statistics.units


@pytest.mark.parametrize("first", ["load", "wrap"])
def test_thresholds_are_kept_where_the_state_is_loaded_after_wrapping(first):
    """As docs/building.md and AGC say: before, it is torch that loads."""
    old, new = (torch.optim.SGD(param_groups(nn.Linear(4, 4), clipping=c), lr=0.1) for c in (0.01, None))
    if first == "wrap":
        AGC(new)
    new.load_state_dict(old.state_dict())
    if first == "load":
        AGC(new)
    assert {g["clipping"] for g in new.param_groups} == {None if first == "wrap" else 0.01}
