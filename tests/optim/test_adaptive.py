"""LAMB and LaProp: against timm's, and by hand where it differs."""

import copy

import pytest
import timm.optim
import torch
from optim_cases import loss_of, network, parameters_equal
from torch import nn

from normfree import UsageError
from normfree.optim import AGC, LAMB, LaProp, agc_, param_groups
from normfree.optim.optimizers import options_of

FLOAT64 = dict(rtol=1e-10, atol=1e-12)  # sums in another order
KINDS = {"lamb": LAMB, "laprop": LaProp}


def parameters():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((4, 3, 2, 2), (5, 4), (6,), (1,))]


def theirs_of(name, params, decay):
    common = dict(lr=0.1, betas=(0.8, 0.95), eps=1e-3, weight_decay=decay)
    if name == "laprop":
        return LaProp(params, **common), lambda groups: timm.optim.LaProp(groups, **common)
    return LAMB(params, **common), lambda groups: timm.optim.Lamb(
        groups, **common, max_grad_norm=None, always_adapt=True
    )


@pytest.mark.parametrize(("name", "decay"), [("lamb", 0.0), ("lamb", 0.2), ("laprop", 0.0)])
def test_steps_are_those_of_timm(name, decay):
    """At one learning rate; one parameter has no gradient at first: its corrections are those of fewer steps."""
    params = parameters()
    others = copy.deepcopy(params)
    ours, make = theirs_of(name, params, decay)
    # timm's Lamb counts the steps of a group, not of a parameter
    theirs = [make([dict(params=[other])]) for other in others]
    for step in range(5):
        for number, (p, q) in enumerate(zip(params, others, strict=True)):
            if number or step:
                p.grad = torch.randn_like(p) * 10.0 ** (number - 1)
                q.grad = p.grad.clone()
        ours.step()
        for optimizer, q in zip(theirs, others, strict=True):
            if q.grad is not None:
                optimizer.step()
        for p, q in zip(params, others, strict=True):
            # timm keeps the corrections of LaProp in float32
            torch.testing.assert_close(p, q, **(FLOAT64 if name == "lamb" else dict(rtol=1e-5, atol=1e-7)))


def test_lamb_without_scaling_is_adamw():
    params = parameters()
    others = copy.deepcopy(params)
    ours = LAMB(params, lr=0.1, eps=1e-3, weight_decay=0.2, scaled=False)
    adamw = torch.optim.AdamW(others, lr=0.1, eps=1e-3, weight_decay=0.2)
    for _ in range(3):
        for p, q in zip(params, others, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in (ours, adamw):
            optimizer.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, **FLOAT64)


def test_lamb_moves_what_is_zero_and_stays_without_a_gradient():
    zero, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
    zero.grad, still.grad = torch.ones(3), torch.zeros(3)
    LAMB([zero, still], lr=0.1, eps=1e-12).step()
    torch.testing.assert_close(zero.detach(), torch.full((3,), -0.1))
    assert torch.equal(still, torch.ones(3))


def test_laprops_learning_rate_is_inside_of_the_momentum():
    """Two steps by hand: betas 0.5 and 0, so that each gradient is normalized to its sign; rates 1 and 0."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = LaProp([p], lr=1.0, betas=(0.5, 0.0), eps=0.0)
    p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    assert p.item() == pytest.approx(-1.0, rel=1e-14)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert p.item() == pytest.approx(-1.0 - 0.25 / 0.75, rel=1e-14)  # half of 0.5 is left, corrected by 1 - 0.5^2


def test_laprops_decay_is_that_of_adamw():
    p = nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64))
    p.grad = torch.tensor([0.0, 5.0], dtype=torch.float64)
    LaProp([p], lr=0.1, weight_decay=0.5, eps=1e-12).step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.95 * 3, 0.95 * 3 - 0.1], dtype=torch.float64))


@pytest.mark.parametrize("name", KINDS)
def test_clipping_comes_before_and_state_goes_on(name):
    model, plain = network(), network()
    given = [param_groups(net, clipping=0.02, roles={"3.weight": "classifier"}) for net in (model, plain)]
    ours, reference = (KINDS[name](groups, lr=0.05) for groups in given)
    agc = AGC(ours)
    for step in range(4):
        if step == 2:
            loaded = KINDS[name](given[1], lr=1.0)
            loaded.load_state_dict(copy.deepcopy(reference.state_dict()))
            reference = loaded
        for net in (model, plain):
            net.zero_grad()
            loss_of(net, step).backward()
        agc_(given[1])
        reference.step()
        assert agc.step().total_fraction > 0
        assert parameters_equal(model, plain)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_refused(name):
    p = [nn.Parameter(torch.ones(2))]
    for wrong in (dict(betas=(0.9, 1.0)), dict(lr=-1), dict(eps=-1), dict(weight_decay=-1)):
        (key,) = wrong
        with pytest.raises(UsageError, match=rf"{key} \(=.*\) must be at least 0"):
            KINDS[name](p, **wrong)
    with pytest.raises(UsageError, match=r"options.betas \(=1.5\) must be a number at least 0 and below 1"):
        options_of(name, dict(betas=[0.9, 1.5]))
    with pytest.raises(UsageError, match=r"options.scaled \(=\('wight',\)\) must be a list of roles"):
        options_of("lamb", dict(scaled=["wight"]))
