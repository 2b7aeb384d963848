"""Schedule-free optimizers: their average against the package's own switching and the paper's recursion."""

import sys

import pytest
import torch
from optim_cases import loss_of, network
from tiny_runs import network as with_roles
from torch import nn

from normfree import UsageError
from normfree.optim import OptimConfig
from normfree.optim.schedule_free import ScheduleFreeAverage, build_schedule_free

KINDS = {"SGDScheduleFree": dict(momentum=0.7), "AdamWScheduleFree": dict(betas=(0.7, 0.9), eps=1e-3)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_what_the_package_switches_to(kind):
    """And the network's weights are untouched, to the bit."""
    model = network().double()
    optimizer = build_schedule_free(kind, [dict(params=list(model.parameters()), weight_decay=0.1)], **KINDS[kind])
    average = ScheduleFreeAverage(model, optimizer)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
        optimizer.zero_grad()
        images = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(images).square().mean().backward()
        optimizer.step()
        average.update()
    before = [p.detach().clone() for p in model.parameters()]
    with average.applied():
        applied = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.eval()
    for p, q in zip(model.parameters(), applied, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-14)  # float64


def test_sgd_is_the_recursion_of_the_paper():
    """Eq. 3 to 5 of arXiv:2405.15682 at a constant rate: z by SGD, x the mean of all z, gradients in between."""
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = build_schedule_free("SGDScheduleFree", [dict(params=[model.weight])], momentum=0.9)
    optimizer.param_groups[0]["lr"] = 0.3
    average = ScheduleFreeAverage(model, optimizer)
    z = x = model.weight.item()
    for step in range(1, 6):
        y = 0.1 * z + 0.9 * x
        optimizer.zero_grad()
        (model.weight - 2).square().sum().backward()
        assert model.weight.grad.item() == pytest.approx(2 * (y - 2), rel=1e-12)
        optimizer.step()
        average.update()
        z = z - 0.3 * 2 * (y - 2)
        x = x + (z - x) / step
        assert average.average["weight"].item() == pytest.approx(x, rel=1e-12)


def test_parameters_without_a_gradient_are_their_own_average():
    model = network()
    optimizer = build_schedule_free("SGDScheduleFree", [dict(params=list(model.parameters()))], momentum=0.9)
    average = ScheduleFreeAverage(model, optimizer)
    model[0].requires_grad_(False)
    loss_of(model, 0).backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update()
    assert torch.equal(average.average["0.weight"], model[0].weight)


def test_the_learning_rate_is_constant_after_the_warm_up():
    optim = OptimConfig(name="schedulefree_sgd", lr=0.5, warmup_steps=10, ema_decay=None)
    rates = [optim.lr_at(s, batch_size=1, total_steps=100, steps_per_epoch=10) for s in (0, 5, 10, 50, 99)]
    assert rates == [0.0, 0.25, 0.5, 0.5, 0.5]
    model = with_roles()
    assert isinstance(optim.build_average(model, optim.build(model)), ScheduleFreeAverage)


def test_what_does_not_go_together_is_refused():
    for given, message in (
        (dict(ema_decay=0.9), r"optim.ema_decay \(=0.9\) must be null with optim.name schedulefree_sgd, which has a "),
        (dict(ema_decay=None, lr_end=0.1), r"optim.lr_end \(=0.1\) must be 0 with"),
        (dict(ema_decay=None, restarts=(5,)), r"optim.restarts \(=\(5,\)\) must be \[\] with"),
        (dict(ema_decay=None, momentum=0.0), r"optim.momentum \(=0\) must be above 0 with optim.name schedulefree_sgd"),
        (dict(ema_decay=None, nesterov=True), r"optim.nesterov \(=true\) must be false or null"),
        (dict(ema_decay=None, options=dict(r=-1)), r"optim.options.r \(=-1\) must be a number at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            OptimConfig(name="schedulefree_sgd", **given)
    with pytest.raises(UsageError, match=r"options.betas \(=0.0\) must be a number above 0"):
        OptimConfig(name="schedulefree_adamw", ema_decay=None, options=dict(betas=[0.0, 0.9]))
    model, optim = with_roles(weight_scheme="decoupled"), OptimConfig(name="schedulefree_sgd", ema_decay=None)
    with pytest.raises(UsageError, match=r"optim.name \(=schedulefree_sgd\) keeps weights that nothing would pull"):
        optim.build_pull(model, optim.build(model))


def test_without_the_package_the_command_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UsageError, match=r"pip install 'normfree\[schedulefree\]'"):
        OptimConfig(name="schedulefree_sgd", ema_decay=None).build(with_roles())
