"""The ``optim`` section of a recipe: who gets which learning rate, and who is not clipped."""

import pytest
import torch
from torch import nn

import normfree
from normfree.data import Batch
from normfree.errors import UsageError
from normfree.optim import LARS, OptimConfig, RMSProp
from normfree.training.step import TrainStep


def network():
    torch.manual_seed(0)
    return normfree.create_model("nf_cifarnet", num_classes=4, widths=(8, 8, 8))


def step(optim):
    """Change of each parameter by the first step at learning rate 1, over its gradient's."""

    class Task:
        def loss(self, output, batch):
            return nn.functional.cross_entropy(output, batch.labels)

        def correct(self, output, batch):
            return torch.zeros(())

    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    batch = Batch(torch.randn(8, 3, 32, 32), torch.arange(8) % 4, torch.arange(8))
    plain = network()
    nn.functional.cross_entropy(plain(batch.images), batch.labels).backward()
    TrainStep(model, Task(), optim.build(model))(batch, 1.0)
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    return {
        name: (p.detach() - before[name], gradients[name])
        for name, p in model.named_parameters()
        if gradients[name] is not None
    }


def test_each_role_has_its_factor_of_the_learning_rate():
    factors = dict(gain=0.25, bias=2.0, classifier=0.5, skip_gain=0.0)
    changes = step(OptimConfig(momentum=0.0, nesterov=False, weight_decay=0.0, clipping=None, lr_factors=factors))
    by_name = {"conv.weight": 1.0, "gain": 0.25, "bias": 2.0, "fc.weight": 0.5, "skip_gain": 0.0}
    seen = set()
    for name, (change, gradient) in changes.items():
        suffix = next(s for s in ("skip_gain", "fc.weight", "conv.weight", "gain", "bias") if name.endswith(s))
        seen.add(suffix)
        # one float32 update of values of order 1
        torch.testing.assert_close(change, -by_name[suffix] * gradient, rtol=1e-4, atol=1e-6)
    assert seen == set(by_name)


def test_without_factors_all_have_one_learning_rate():
    groups = OptimConfig().build(network()).param_groups
    assert {group["lr_factor"] for group in groups} == {1.0}


def test_unclipped_parameters_are_in_groups_without_a_threshold():
    groups = OptimConfig(clipping=0.05, unclipped=("*.gain", "*.bias", "*skip_gain")).build(network()).param_groups
    clipping = {group["name"]: group["clipping"] for group in groups}
    assert clipping == dict(weight=0.05, classifier=None, gain=None, bias=None, skip_gain=None)


def test_parts_and_kinds_of_clipping_are_in_the_groups():
    optim = OptimConfig(clipping=0.05, clipping_kind="layer", clipping_parts={"stages.0": 0.1, "classifier": True})
    groups = optim.build(network()).param_groups
    assert {group["clipping_kind"] for group in groups} == {"layer"}
    assert {group["clipping"] for group in groups if group["name"] == "weight"} == {0.05, 0.1}
    assert {group["clipping"] for group in groups if group["name"] == "classifier"} == {0.05}


def test_the_optimizer_is_that_of_the_name():
    made = OptimConfig().build(network())
    assert type(made) is torch.optim.SGD
    assert (made.defaults["momentum"], made.defaults["nesterov"]) == (0.9, True)
    assert OptimConfig(momentum=0.0).build(network()).defaults["nesterov"] is False
    options = dict(trust_coefficient=0.02, eps=1e-6, scaled=["weight", "classifier"])
    lars = OptimConfig(name="lars", options=options).build(network())
    assert type(lars) is LARS
    assert lars.defaults["nesterov"] is True
    ratios = {group["name"]: (group["trust_coefficient"], group["eps"]) for group in lars.param_groups}
    assert ratios == {
        "weight": (0.02, 1e-6),
        "classifier": (0.02, 1e-6),
        **dict.fromkeys(("gain", "bias", "skip_gain"), (None, 1e-6)),
    }
    rmsprop = OptimConfig(name="rmsprop", momentum=0.5, options=dict(decay=0.95)).build(network())
    assert type(rmsprop) is RMSProp
    assert [rmsprop.defaults[key] for key in ("decay", "momentum", "eps")] == [0.95, 0.5, 0.001]


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match=r"optim\.name \(='adamm'\) is no optimizer; did you mean adam or adamw\?"):
        OptimConfig(name="adamm")
    with pytest.raises(UsageError, match=r"optim\.options names 'momentum', which rmsprop does not have; it has decay"):
        OptimConfig(name="rmsprop", options=dict(momentum=0.9))
    with pytest.raises(UsageError, match=r"optim\.nesterov \(=true\) must be false or null: rmsprop has no such form"):
        OptimConfig(name="rmsprop", nesterov=True)
    with pytest.raises(UsageError, match=r"optim\.nesterov \(=true\) needs optim.momentum above 0"):
        OptimConfig(nesterov=True, momentum=0.0)
    with pytest.raises(UsageError, match=r"optim\.clipping_kind \(='rows'\) must be one of unit, layer, norm"):
        OptimConfig(clipping_kind="rows")
    with pytest.raises(UsageError, match=r"optim\.clipping_parts\.stem \(=-1\) must be true \(clipped\), false"):
        OptimConfig(clipping_parts=dict(stem=-1))
    with pytest.raises(UsageError, match=r"optim\.clipping_parts names 'stm', which the network does not have"):
        OptimConfig(clipping_parts=dict(stm=True)).build(network())
    with pytest.raises(UsageError, match=r"optim\.lr_factors names 'gains', which is not a role; roles are weight, "):
        OptimConfig(lr_factors=dict(gains=1.0))
    with pytest.raises(UsageError, match=r"optim.lr_factors.gain \(=-1\) must be at least 0"):
        OptimConfig(lr_factors=dict(gain=-1))
    with pytest.raises(UsageError, match=r"optim\.unclipped names stages.7, which the model does not have"):
        OptimConfig(unclipped=("stages.7",)).build(network())
