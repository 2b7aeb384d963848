"""AGC(optimizer): clips once, before weight decay and momentum, in front of every kind of step."""

import copy

import pytest
import torch
from optim_cases import FUSED, OPTIMIZERS, groups, loss_of, network, parameters_equal
from torch import nn
from torch.amp import GradScaler

import normfree.optim.agc
from normfree import RunFailed, UsageError
from normfree.optim import AGC, FusedStep, agc_, param_groups


@pytest.fixture
def clips(monkeypatch):
    """Counts the calls of agc_ inside of AGC."""
    calls = []

    def counted(*args, **options):
        calls.append(args)
        return agc_(*args, **options)

    monkeypatch.setattr(normfree.optim.agc, "agc_", counted)
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("through", ["agc", "optimizer"])
def test_step_is_clipping_and_then_the_optimizers_step(name, through, clips):
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS[name](groups(model)), OPTIMIZERS[name](groups(plain))
    agc = AGC(optimizer)
    for step in range(3):
        for net in (model, plain):
            net.zero_grad()
            loss_of(net, step).backward()
        expected = agc_(reference.param_groups)
        reference.step()
        result = agc.step() if through == "agc" else optimizer.step()
        assert len(clips) == step + 1  # once
        assert parameters_equal(model, plain)  # bit for bit: weight decay and momentum saw the clipped gradients
        assert agc.statistics.fraction == expected.fraction
        assert result is (agc.statistics if through == "agc" else None)
    assert agc.statistics.total_fraction > 0


def test_it_clips_before_weight_decay():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([dict(params=[model.weight], clipping=0.01, weight_decay=0.5)], lr=1.0)
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros(2, 3)
    AGC(optimizer).step()
    torch.testing.assert_close(model.weight.detach(), before / 2, rtol=1e-6, atol=0)  # decayed unclipped; float32


@pytest.mark.parametrize("name", ["SGD", "Adam-fused"])
@pytest.mark.parametrize("how", ["agc", "positional", "keyword"])
def test_closures_are_followed(name, how, clips):
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS[name](groups(model)), OPTIMIZERS[name](groups(plain))
    agc = AGC(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    loss_of(plain, 0).backward()
    agc_(reference.param_groups)
    reference.step()
    if how == "agc":
        assert agc.step(closure) is agc.statistics
    else:
        loss = optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
        assert loss.item() == loss_of(network(), 0).item()
    assert len(clips) == 1
    assert parameters_equal(model, plain)


def test_each_evaluation_of_a_closure_is_clipped(clips):
    model = network()
    group = dict(params=list(model.parameters()), clipping=0.02)
    optimizer, evaluations = torch.optim.LBFGS([group], lr=0.1, max_iter=4), []
    AGC(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        evaluations.append(loss.item())
        return loss

    optimizer.step(closure)
    assert len(clips) == len(evaluations) > 1


def test_clip_clips_without_a_step():
    model, plain = network(), network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)))
    for net in (model, plain):
        loss_of(net, 0).backward()
    expected = agc_(groups(plain))
    assert agc.clip() is agc.statistics
    assert agc.statistics.fraction == expected.fraction
    assert parameters_equal(model, plain)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_remove():
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS["SGD"](groups(model)), OPTIMIZERS["SGD"](groups(plain))
    AGC(optimizer).remove()
    for net, opt in ((model, optimizer), (plain, reference)):
        loss_of(net, 0).backward()
        opt.step()
    assert parameters_equal(model, plain)


def test_schedulers_and_zero_grad_work():
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)))
    scheduler = torch.optim.lr_scheduler.LambdaLR(agc.optimizer, lambda step: 0.5**step)
    loss_of(model, 0).backward()
    assert agc.step().total_fraction > 0
    scheduler.step()
    agc.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert agc.param_groups is agc.optimizer.param_groups
    assert agc.param_groups[0]["lr"] == pytest.approx(0.05, rel=1e-12)  # float64 rounding


def test_groups_without_clipping_are_refused_and_none_is_allowed():
    with pytest.raises(UsageError, match="clipping"):
        AGC(torch.optim.SGD(network().parameters(), lr=0.1))
    model = network()
    agc = AGC(torch.optim.SGD(param_groups(model, clipping=None), lr=0.1))
    loss_of(model, 0).backward()
    assert agc.step().fraction == {}
    assert agc.statistics.total_fraction == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_error_if_nonfinite_leaves_everything_as_it_was(value):
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)), error_if_nonfinite=True)
    loss_of(model, 0).backward()
    model[0].weight.grad[1, 0, 0, 0] = value
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    with pytest.raises(RunFailed, match="not finite"):
        agc.step()
    for p, (weight, grad) in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, weight)
        assert torch.equal(p.grad.nan_to_num(1.0, 2.0), grad.nan_to_num(1.0, 2.0))
    assert not agc.optimizer.state
    model.zero_grad()
    loss_of(model, 0).backward()
    agc.step()  # and goes on


def test_without_error_if_nonfinite_the_step_is_taken():
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)))
    loss_of(model, 0).backward()
    model[0].weight.grad[1, 0, 0, 0] = float("nan")
    agc.step()
    assert model[0].weight[1].isnan().all()
    assert model[0].weight[0].isfinite().all()


def scaled(model):
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, 0)).backward()
    return scaler


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaler_step_clips_unscaled_gradients(name, clips):
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS[name](groups(model)), OPTIMIZERS[name](groups(plain))
    scaler = scaled(model)
    agc = AGC(optimizer, scaler=scaler)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    loss_of(plain, 0).backward()
    expected = agc_(reference.param_groups)
    reference.step()
    assert len(clips) == 1
    assert agc.statistics.fraction == expected.fraction
    assert parameters_equal(model, plain)  # a power of two is undone exactly


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(FUSED)))
def test_scaler_step_unscales_by_itself(name):
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS[name](groups(model)), OPTIMIZERS[name](groups(plain))
    scaler = scaled(model)
    AGC(optimizer, scaler=scaler)
    for _ in range(2):
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 1)).backward()
    for step in (0, 1):
        reference.zero_grad()
        loss_of(plain, step).backward()
        agc_(reference.param_groups)
        reference.step()
    assert parameters_equal(model, plain)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("told", [True, False], ids=["scaler", "no-scaler"])
def test_fused_optimizers_that_would_unscale_later_are_refused(name, told):
    model = network()
    optimizer = OPTIMIZERS[name](groups(model))
    scaler = scaled(model)
    AGC(optimizer, scaler=scaler if told else None)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="unscale_"):
        scaler.step(optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("through", ["agc", "optimizer", "clip"])
def test_a_direct_step_on_scaled_gradients_is_refused(through):
    model = network()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    scaler = scaled(model)
    agc = AGC(optimizer, scaler=scaler)
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(UsageError, match="unscale_"):
        dict(agc=agc.step, optimizer=optimizer.step, clip=agc.clip)[through]()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), before, strict=True))
    scaler.unscale_(optimizer)
    agc.step()  # unscaled: accepted
    assert agc.statistics.total_fraction > 0


def test_a_disabled_scaler_scales_nothing():
    model = network()
    agc = AGC(OPTIMIZERS["SGD"](groups(model)), scaler=GradScaler("cpu", enabled=False))
    loss_of(model, 0).backward()
    assert agc.step().total_fraction > 0


def test_a_step_that_the_scaler_skips_changes_nothing():
    model = network()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    scaler = scaled(model)
    AGC(optimizer, scaler=scaler, error_if_nonfinite=True)
    model[0].weight.grad[0, 0, 0, 0] = float("inf")
    before = copy.deepcopy(model.state_dict())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1024
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_group_added_without_clipping_is_refused():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(param_groups(model, clipping=0.01), lr=0.1)
    agc, late = AGC(optimizer), nn.Parameter(torch.ones(2))
    optimizer.add_param_group(dict(params=[late]))
    late.grad = torch.full((2,), 100.0)
    with pytest.raises(UsageError, match="has no 'clipping'"):
        agc.step()
    assert torch.equal(late, torch.ones(2))


def foreign_states(model):
    """States of the same parameters from runs that clipped otherwise."""
    none, other = ([group | dict(clipping=value) for group in groups(model)] for value in (None, 7.0))
    plain = [dict(params=group["params"]) for group in groups(model)]
    kinds = {"clipping None": none, "no clipping named": plain, "another": other}
    return {kind: torch.optim.SGD(its, lr=0.1, momentum=0.9) for kind, its in kinds.items()}


@pytest.mark.parametrize("kind", ["clipping None", "no clipping named", "another"])
@pytest.mark.parametrize("fused", [False, True])
def test_loading_a_state_of_a_run_that_clipped_otherwise_changes_no_threshold(kind, fused):
    model = network()
    state = foreign_states(model)[kind].state_dict()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    step = FusedStep(optimizer) if fused else AGC(optimizer)
    before = [(group["name"], group["clipping"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    assert [(group["name"], group["clipping"]) for group in optimizer.param_groups] == before
    assert optimizer.param_groups[0]["nesterov"] is False  # all else is the loaded state's, as torch does
    loss_of(model, 0).backward()
    assert step.step().total_fraction > 0


def test_a_deliberate_change_of_a_threshold_counts_and_stays():
    model = network()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    agc, state = AGC(optimizer), optimizer.state_dict()
    for group in optimizer.param_groups:
        group["clipping"] = 1e6
    optimizer.load_state_dict(state)
    loss_of(model, 0).backward()
    assert agc.step().total_fraction == 0.0
    optimizer.param_groups[0]["clipping"] = 1e-6
    loss_of(model, 1).backward()
    assert agc.step().fraction[optimizer.param_groups[0]["name"]] > 0.5


def test_a_threshold_that_is_not_above_zero_is_refused_at_the_step():
    model = network()
    optimizer = OPTIMIZERS["SGD"](groups(model))
    agc = AGC(optimizer)
    optimizer.param_groups[0]["clipping"] = -0.1
    loss_of(model, 0).backward()
    with pytest.raises(UsageError, match=r"clipping \(=-0.1\) of group weight must be above 0"):
        agc.step()
