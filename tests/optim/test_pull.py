"""What follows an optimizer's step in decoupled and soft weight schemes: the same weights, standardized after it."""

import copy
import math

import pytest
import torch
from optim_cases import OPTIMIZERS
from small_models import small
from torch import nn

from normfree import UsageError
from normfree.nn import DecoupledWSConv2d, SoftWSConv2d, WSConv2d
from normfree.optim import AGC, EMA, FusedStep, OptimConfig, WeightPull, param_groups

STRENGTH = 0.3


def standardized(weight):
    """In float64, by the definition."""
    rows = weight.detach().double().flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    return (centred / centred.norm(dim=1, keepdim=True)).view_as(weight)


def expected_after(weight, strength):
    return weight.double() - strength * (weight.double() - standardized(weight))


def network(kind=DecoupledWSConv2d, **options):
    torch.manual_seed(0)
    model = nn.Sequential(kind(2, 4, 3, **options), nn.ReLU(), WSConv2d(4, 4, 3, **options), nn.Flatten())
    return model.append(nn.Linear(100, 5, **options))


def backward(model, step=0):
    model.zero_grad()
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(step))
    (10 * model(x.to(model[0].weight.dtype)).square().mean()).backward()


def groups_of(model):
    return param_groups(model, weight_decay=0.01, clipping=0.02, roles={"4.weight": "classifier"})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("soft", [False, True])
def test_every_optimizers_step_ends_with_it(name, soft):
    model = network(SoftWSConv2d if soft else DecoupledWSConv2d)
    plain = copy.deepcopy(model)
    one, other = (OPTIMIZERS[name](groups_of(net)) for net in (model, plain))
    WeightPull(one, model, STRENGTH if soft else None)
    agcs = AGC(one), AGC(other)
    for step in range(4):
        for net, agc in zip((model, plain), agcs, strict=True):
            backward(net, step)
            agc.step()
        with torch.no_grad():
            expected = expected_after(plain[0].weight, STRENGTH if soft else 1.0)
            torch.testing.assert_close(model[0].weight.double(), expected, rtol=0, atol=1e-6)
            plain[0].weight.copy_(model[0].weight)  # the reference goes on from the pulled weight
        for key in ("0.gain", "0.bias", "2.weight", "2.gain", "4.weight"):
            torch.testing.assert_close(model.get_parameter(key), plain.get_parameter(key), rtol=0, atol=1e-6)
    if not soft:
        assert model[0].weight.mean((1, 2, 3)).abs().max() < 1e-6


def test_half_and_double_weights():
    for dtype, limit in ((torch.float64, 1e-12), (torch.bfloat16, 0.01)):
        model = network(dtype=dtype)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        WeightPull(sgd, model)
        backward(model)
        sgd.step()
        assert model[0].weight.dtype is dtype
        torch.testing.assert_close(model[0].weight.double(), standardized(model[0].weight), rtol=0, atol=limit)


def test_frozen_weights_and_those_without_a_gradient_stay():
    model = network()
    with torch.no_grad():
        model[0].weight.normal_()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    WeightPull(sgd, model)
    before = model[0].weight.clone()
    sgd.step()  # no gradients at all
    assert torch.equal(model[0].weight, before)
    model[0].weight.requires_grad_(False)
    backward(model)
    sgd.step()
    assert torch.equal(model[0].weight, before)
    model[0].weight.requires_grad_(True)
    backward(model)
    sgd.step()
    assert not torch.equal(model[0].weight, before)


def test_only_the_weights_of_its_optimizer_are_pulled():
    model = nn.Sequential(network()[0], nn.ReLU(), DecoupledWSConv2d(4, 4, 3), nn.Flatten(), nn.Linear(100, 5))
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    WeightPull(first, model)
    WeightPull(second, model)
    backward(model)
    before = model[2].weight.clone()
    first.step()
    assert torch.equal(model[2].weight, before)
    assert model[0].weight.mean((1, 2, 3)).abs().max() < 1e-6
    second.step()
    assert not torch.equal(model[2].weight, before)


def test_one_optimizer_has_one_and_may_lose_it():
    model = network(SoftWSConv2d)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        model[0].weight.mul_(3)
    before = model[0].weight.clone()
    first = WeightPull(sgd, model, 1.0)
    second = WeightPull(sgd, model, STRENGTH)  # replaces it
    backward(model)
    sgd.step()
    torch.testing.assert_close(model[0].weight.double(), expected_after(before, STRENGTH), rtol=0, atol=1e-6)
    first.remove()  # has been, already
    after = model[0].weight.clone()
    second.remove()
    sgd.step()
    assert torch.equal(model[0].weight, after)


def test_the_average_is_that_of_the_pulled_weights():
    """Of decoupled weights the average is one of standardized weights; of others it is standardized afterwards."""
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    WeightPull(sgd, model)
    ema = EMA(model, 0.5, warmup=False)
    decoupled, raw = standardized(model[0].weight), model[2].weight.detach().double().clone()
    forward_mode = standardized(raw)
    for step in range(5):
        backward(model, step)
        sgd.step()
        ema.update()
        decoupled = 0.5 * decoupled + 0.5 * standardized(model[0].weight)
        raw = 0.5 * raw + 0.5 * model[2].weight.detach().double()
        forward_mode = 0.5 * forward_mode + 0.5 * standardized(model[2].weight)
    torch.testing.assert_close(ema.average["0.weight"].double(), decoupled, rtol=0, atol=1e-6)
    with ema.applied():
        weight = model[2].standardized_weight().detach().double() / model[2].gain.detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(weight, standardized(raw), rtol=0, atol=1e-6)
    # the average of standardized weights is shorter than any of them, so that the two differ
    assert (forward_mode.flatten(1).norm(dim=1) < 0.999).all()
    assert (weight - forward_mode).abs().max() > 1e-3


def test_the_fused_step_leaves_such_optimizers_alone():
    model = small("nf_resnet50", weight_scheme="decoupled").train()
    sgd = torch.optim.SGD(param_groups(model, clipping=0.01), lr=0.1, momentum=0.9, nesterov=True)
    fused = FusedStep(sgd, EMA(model))
    pull = WeightPull(sgd, model)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert not fused.possible()
    pull.remove()
    plain = FusedStep(torch.optim.SGD(param_groups(model, clipping=0.01), lr=0.1, momentum=0.9, nesterov=True))
    assert fused.possible() == plain.possible()


class Wrapper:
    """As Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_wrapped_optimizer():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    WeightPull(Wrapper(sgd), model)
    backward(model)
    sgd.step()
    assert model[0].weight.mean((1, 2, 3)).abs().max() < 1e-6


def test_a_closure_is_called_before_it():
    model = network(dtype=torch.float64)
    lbfgs = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)
    WeightPull(lbfgs, model)

    def closure():
        backward(model)
        return torch.zeros(())

    lbfgs.step(closure)
    torch.testing.assert_close(model[0].weight, standardized(model[0].weight), rtol=0, atol=1e-12)


def test_misuse_is_refused():
    model, soft = network(), network(SoftWSConv2d)
    sgd, other = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, soft))
    for refused, words in [
        (lambda: WeightPull(model, model), "an optimizer is needed, not Sequential"),
        (lambda: WeightPull(sgd, list(model.parameters())), "WeightPull takes a network .* not list"),
        (lambda: WeightPull(sgd, nn.Linear(2, 2)), "Linear has no weights to pull; those of weight_scheme decoupled"),
        (lambda: WeightPull(other, soft), "strength is not given; the network's soft weights need it"),
        (lambda: WeightPull(sgd, model, 0.5), r"strength \(=0.5\) is for soft weights .* the network has none"),
        (lambda: WeightPull(other, soft, 0.0), r"strength \(=0.0\) must be above 0 and at most 1"),
        (lambda: WeightPull(other, soft, 1.1), r"strength \(=1.1\) must be above 0 and at most 1"),
        (lambda: WeightPull(other, soft, math.nan), r"strength \(=nan\) must be above 0"),
        (lambda: WeightPull(sgd, network()), "the optimizer has none of the weights that Sequential wants pulled"),
    ]:
        with pytest.raises(UsageError, match=words):
            refused()


def test_recipes_choose_it():
    decoupled, soft = (small("nf_resnet50", weight_scheme=scheme) for scheme in ("decoupled", "soft"))
    config = OptimConfig()
    assert config.build_pull(decoupled, config.build(decoupled)) is not None
    assert config.build_pull(small("nf_resnet50"), config.build(small("nf_resnet50"))) is None
    config = OptimConfig(weight_pull=STRENGTH)
    assert config.build_pull(soft, config.build(soft)).strength == STRENGTH
    with pytest.raises(UsageError, match=r"optim\.weight_pull \(=0.3\) is for soft weights \(weight_scheme soft\)"):
        config.check_pull(decoupled)
    with pytest.raises(UsageError, match=r"optim\.weight_pull is not given; the network's soft weights need it"):
        OptimConfig().check_pull(soft)
    for wrong in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(UsageError, match=r"optim\.weight_pull .* must be above 0 and at most 1"):
            OptimConfig(weight_pull=wrong)
