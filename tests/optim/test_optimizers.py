"""LARS and RMSProp: against optax by numbers, torch where they agree, and hand-computed steps where they differ."""

import copy

import pytest
import torch
from optim_cases import loss_of, network, parameters_equal
from optim_golden import RATES, WEIGHTS, parameters, set_gradients, theirs
from torch import nn

from normfree import UsageError
from normfree.optim import AGC, LARS, FusedStep, Muon, RMSProp, agc_, param_groups
from normfree.optim.optimizers import OPTIMIZERS, Shared, kept_tensors, options_of

MAKERS = {
    "lars": lambda groups: LARS(groups),
    "lars_nesterov": lambda groups: LARS(groups, momentum=0.8, nesterov=True, eps=1e-3),
    "lars_plain": lambda groups: LARS(groups, momentum=0.0, trust_coefficient=0.1, weight_decay=1e-2),
    "rmsprop": lambda groups: RMSProp(groups),
    "rmsprop_plain": lambda groups: RMSProp(groups, momentum=0.0, decay=0.8, eps=0.1),
}
MASKED = {
    "lars_nesterov": (dict(weight_decay=1e-2, trust_coefficient=0.02), dict(weight_decay=0.0, trust_coefficient=None)),
    "rmsprop": (dict(weight_decay=1e-2), dict(weight_decay=0.0)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_six_steps_are_those_of_optax(name):
    """Both in float64, the learning rate changes, one tensor starts at 0 and one has a gradient of 0 at first."""
    params = parameters()
    weights, others = MASKED.get(name, ({}, {}))
    groups = [
        dict(params=[p for key, p in params.items() if (key in WEIGHTS) is inside], **own)
        for inside, own in ((True, weights), (False, others))
    ]
    optimizer = MAKERS[name](groups)
    for step, lr in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = lr
        set_gradients(params, step)
        optimizer.step()
        for key, expected in theirs(name, step).items():
            torch.testing.assert_close(params[key].detach(), expected, rtol=1e-11, atol=1e-13)


def test_rmsprop_where_torchs_differs():
    """Two steps of one number, by hand: decay 0.9, momentum 0.5, eps 0.19, learning rates 1 and 0.1."""
    p = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    ours = RMSProp([p], lr=1.0, momentum=0.5, eps=0.19)
    p.grad = torch.tensor([3.0], dtype=torch.float64)
    ours.step()
    # squares 0.9 * 1 + 0.1 * 9 = 1.8, root of 1.99
    first = 3 / 1.99**0.5
    assert p.item() == pytest.approx(-first, rel=1e-14)
    ours.param_groups[0]["lr"] = 0.1
    p.grad.fill_(2.0)
    ours.step()
    # squares 0.9 * 1.8 + 0.1 * 4 = 2.02; the first step is halved, not made a tenth
    assert p.item() == pytest.approx(-first - (0.5 * first + 0.1 * 2 / 2.21**0.5), rel=1e-14)

    q = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    torchs = torch.optim.RMSprop([q], lr=1.0, momentum=0.5, eps=0.19, alpha=0.9)
    q.grad = torch.tensor([3.0], dtype=torch.float64)
    torchs.step()
    # squares from 0: 0.1 * 9; eps beside the root
    assert q.item() == pytest.approx(-3 / (0.9**0.5 + 0.19), rel=1e-14)
    torchs.param_groups[0]["lr"] = 0.1
    q.grad.fill_(2.0)
    before = q.item()
    torchs.step()
    moving = 0.5 * 3 / (0.9**0.5 + 0.19) + 2 / ((0.9 * 0.9 + 0.1 * 4) ** 0.5 + 0.19)
    assert q.item() - before == pytest.approx(-0.1 * moving, rel=1e-14)


def test_lars_without_scaling_is_sgd():
    """At a constant learning rate, inside or outside of the momentum is the same."""
    model, plain = network().double(), network().double()
    options = dict(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    ours, torchs = (
        LARS(model.parameters(), trust_coefficient=None, **options),
        torch.optim.SGD(plain.parameters(), **options),
    )
    for step in range(5):
        for net, optimizer in ((model, ours), (plain, torchs)):
            optimizer.zero_grad()
            (
                net(torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(step)).double()) ** 2
            ).mean().backward()
            optimizer.step()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)  # float64 rounding


def test_a_step_of_lars_has_its_ratio_whatever_the_gradient():
    for size in (1e-6, 1.0, 1e6):
        p = nn.Parameter(torch.randn(5, 4, dtype=torch.float64))
        before = p.detach().clone()
        p.grad = size * torch.randn_like(p)
        LARS([p], lr=2.0, momentum=0.0, trust_coefficient=0.01).step()
        assert (p - before).norm().item() == pytest.approx(0.02 * before.norm().item(), rel=1e-12)


def test_norms_of_half_types_do_not_overflow():
    p = nn.Parameter(torch.ones(2, 40000, dtype=torch.float16))
    p.grad = torch.full_like(p, 2000.0)  # of norm 5.7e5, beyond float16
    LARS([p], lr=1.0, momentum=0.0, trust_coefficient=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.9), rtol=2e-3, atol=0)  # float16


OPTIONS = {
    "lars": dict(lr=0.5, trust_coefficient=0.02, weight_decay=0.01),
    "muon": dict(lr=0.05, weight_decay=0.01),
    "rmsprop": dict(lr=0.01, weight_decay=0.01),
}
CLASSES = {"lars": LARS, "muon": Muon, "rmsprop": RMSProp}


def made(name, params):
    return CLASSES[name](params, **OPTIONS[name])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["unit", "layer", "norm"])
def test_gradients_are_clipped_before(name, kind):
    model, plain = network(), network()
    given = [
        param_groups(net, weight_decay=0.01, clipping=0.02, clipping_kind=kind, roles={"3.weight": "classifier"})
        for net in (model, plain)
    ]
    optimizer, reference = (made(name, groups) for groups in given)
    agc = AGC(optimizer)
    for step in range(3):
        for net in (model, plain):
            net.zero_grad()
            loss_of(net, step).backward()
        agc_(given[1])
        reference.step()
        assert agc.step().total_fraction > 0
        assert parameters_equal(model, plain)


@pytest.mark.parametrize("name", CLASSES)
def test_state_dict_copies_and_a_closure(name):
    model = network()
    optimizer = made(name, model.parameters())

    def step(net, its, number):
        def closure():
            its.zero_grad()
            loss = loss_of(net, number)
            loss.backward()
            return loss

        return its.step(closure)

    assert step(model, optimizer, 0).item() == loss_of(network(), 0).item()
    twin, copied = copy.deepcopy((model, optimizer))
    other = copy.deepcopy(model)
    loaded = CLASSES[name](other.parameters(), lr=1.0)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares what it loads
    for number in (1, 2):
        for net, its in ((model, optimizer), (twin, copied), (other, loaded)):
            step(net, its, number)
    assert parameters_equal(model, twin)
    assert parameters_equal(model, other)


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_without_gradients_stay(name):
    free, moved = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = made(name, [free, moved])
    moved.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(free, torch.ones(3))
    assert not torch.equal(moved, torch.ones(3))
    assert list(optimizer.state) == [moved]


@pytest.mark.parametrize("name", CLASSES)
def test_there_is_no_fused_step(name):
    model = network()
    groups = param_groups(model, clipping=0.1, roles={"3.weight": "classifier"})
    loss_of(model, 0).backward()
    assert not FusedStep(made(name, groups)).possible()


@pytest.mark.parametrize("name", CLASSES)
def test_sparse_gradients_are_refused(name):
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match=r"group 'params' has sparse gradients; (LARS|Muon|RMSProp) needs dense ones"):
        made(name, embedding.parameters()).step()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("wrong", [dict(momentum=1.0), dict(momentum=-0.1), dict(lr=-1.0), dict(weight_decay=-1)])
def test_numbers_out_of_range_are_refused(name, wrong):
    (key,) = wrong
    with pytest.raises(UsageError, match=rf"{key} \(=.*\) must be at least 0"):
        CLASSES[name]([nn.Parameter(torch.ones(2))], **wrong)


def test_what_else_is_refused():
    p = [nn.Parameter(torch.ones(2))]
    for kind in (LARS, RMSProp):
        with pytest.raises(UsageError, match=r"eps \(=-1\) must be at least 0"):
            kind(p, eps=-1)
    with pytest.raises(UsageError, match=r"nesterov \(=True\) needs momentum above 0"):
        LARS(p, momentum=0.0, nesterov=True)
    with pytest.raises(UsageError, match=r"trust_coefficient \(=0\) must be above 0, or None"):
        LARS(p, trust_coefficient=0)
    with pytest.raises(UsageError, match=r"decay \(=1\) must be at least 0 and below 1"):
        RMSProp(p, decay=1)


def test_options_by_name():
    assert options_of("lars", {}).scaled == ("weight", "classifier", "gain", "bias", "skip_gain")
    assert options_of("lars", dict(scaled=["gain"])).scaled == ("gain",)
    for name, given, message in (
        ("sgdd", {}, r"name \(='sgdd'\) is no optimizer; did you mean sgd\?"),
        (
            "zzz",
            {},
            "there are sgd, lars, muon, rmsprop, adam, adamw, lamb, laprop, schedulefree_sgd",
        ),
        ("rmsprop", dict(dekay=0.9), r"options names 'dekay', which rmsprop does not have; did you mean decay\?"),
        ("sgd", dict(decay=0.9), "options names 'decay', which sgd does not have; it has none"),
        ("rmsprop", dict(decay=1.0), r"options.decay \(=1.0\) must be a number at least 0 and below 1"),
        ("rmsprop", dict(eps=True), r"options.eps \(=True\) must be a number at least 0"),
        ("lars", dict(eps=float("inf")), r"options.eps \(=inf\) must be a number at least 0"),
        ("lars", dict(trust_coefficient=0.0), r"options.trust_coefficient \(=0.0\) must be a number above 0"),
        ("adam", dict(betas=[0.9, 1.0]), r"options.betas \(=1.0\) must be a number at least 0 and below 1"),
        ("adamw", dict(betas=0.9), r"options.betas \(=0.9\) must be two numbers"),
        ("lars", dict(scaled=["gains"]), r"options.scaled \(=\('gains',\)\) must be a list of roles: weight, "),
    ):
        with pytest.raises(UsageError, match=message):
            options_of(name, given)


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.1)])
def test_the_first_step_of_adam_by_hand(name, decay):
    """Without a decay of weights it is the learning rate, whatever the gradient; adamw's decay stands beside it."""
    p = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    groups: list[dict] = [dict(params=[p], name="weight", weight_decay=decay)]
    optimizer = OPTIMIZERS[name].build(groups, Shared(0.9, False), options_of(name, dict(eps=0.0)))
    optimizer.param_groups[0]["lr"] = 0.25
    p.grad = torch.tensor([1e3, -1e-3], dtype=torch.float64)
    optimizer.step()
    keeps = 1 - 0.25 * decay
    torch.testing.assert_close(p.detach(), torch.tensor([2 * keeps - 0.25, 0.25 - keeps], dtype=torch.float64))


def test_what_optimizers_keep():
    """The estimate of memory counts on it."""
    for name, entry in OPTIMIZERS.items():
        p = nn.Parameter(torch.randn(3, 2))
        groups: list[dict] = [dict(params=[p], name="weight")]
        optimizer = entry.build(groups, Shared(momentum=0.9, nesterov=entry.nesterov), options_of(name, {}))
        p.grad = torch.ones_like(p)
        optimizer.step()
        kept = [value for value in optimizer.state[p].values() if value.shape == p.shape]  # not the number of steps
        assert len(kept) == entry.kept == kept_tensors(optimizer)
    assert kept_tensors(torch.optim.Adagrad([p])) == 1
