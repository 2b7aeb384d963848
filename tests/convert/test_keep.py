"""Trained networks: the same outputs without BatchNorm, and what may be trained then."""

import copy

import pytest
import torch
import torchvision
from foreign_blocks import WIDTH, Dense, Inverted, Net, PostActivation, PreActivation, Split, collect
from torch import nn

import normfree
from normfree.convert import convert
from normfree.nn import BATCH_NORM, ChannelAffine, GainConv, GainConv2d

SHAPE = (4, 3, 16, 16)
BLOCKS = dict(
    post=PostActivation, pre=PreActivation, inverted=Inverted, split=Split, strided=lambda: PostActivation(stride=2)
)


@pytest.mark.parametrize("kind", BLOCKS)
def test_outputs_in_evaluation_stay(kind):
    net = collect(Net(*[BLOCKS[kind]() for _ in range(2)])).eval()
    conversion = convert(net, SHAPE, mode="keep")
    x = torch.randn(SHAPE)
    y, new = net(x), conversion.model(x)
    assert (new - y).norm() <= 1e-5 * y.norm()
    assert conversion.difference <= 1e-5
    assert not [m for m in conversion.model.modules() if isinstance(m, BATCH_NORM)]
    assert y.norm() > 0.1


def test_concatenations_get_gain_and_bias_in_place():
    net = collect(Net(Dense(), width=WIDTH + 16)).eval()
    new = convert(net, SHAPE, mode="keep").model
    assert isinstance(new.blocks[0].bn1, ChannelAffine)
    x = torch.randn(SHAPE)
    assert torch.allclose(new(x), net(x), rtol=1e-4, atol=1e-5)


def test_the_class_and_the_names_stay():
    net = collect(Net(PostActivation()))
    before = copy.deepcopy(net.state_dict())
    new = convert(net, SHAPE, mode="keep").model
    assert type(new) is Net
    assert torch.equal(new.blocks[0].conv1.weight, net.blocks[0].conv1.weight)
    assert isinstance(new.blocks[0].conv1, GainConv2d)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in [*net.modules(), *new.modules()])


def test_it_trains_at_batch_size_1_with_clipping():
    new = convert(collect(Net(PostActivation(), PreActivation())), SHAPE, mode="keep").model.train()
    groups = normfree.optim.param_groups(new, weight_decay=1e-5, clipping=0.01, roles={"fc.weight": "classifier"})
    optimizer = normfree.optim.AGC(torch.optim.SGD(groups, lr=0.1))
    before = new.blocks[0].conv1.gain.detach().clone()
    new(torch.randn(1, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(new.blocks[0].conv1.gain, before)


def test_stages_are_frozen():
    new = convert(collect(Net(PostActivation(), PostActivation())), SHAPE, mode="keep", freeze=["stem*", "blocks.0"])
    frozen = {name for name, p in new.model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in new.model.named_parameters() if name.startswith(("stem", "blocks.0"))}
    with pytest.raises(normfree.UsageError, match=r"freeze \(='layer9'\) names no parameter"):
        convert(collect(Net(PostActivation())), SHAPE, mode="keep", freeze=["layer9"])


def test_what_does_not_depend_on_the_batch_is_left():
    net = collect(Net(PostActivation(norm=lambda c: nn.GroupNorm(4, c))))
    conversion = convert(net, SHAPE, mode="keep")
    left = {change.module for change in conversion.changes if change.now == "left"}
    assert left == {"blocks.0.bn1", "blocks.0.bn2"}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_layers_of_every_dimension(dims):
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    size = tuple(range(2, 2 + dims))
    layers = [plain(4, 6, size), norm(6), nn.ReLU(), transposed(6, 8, size, groups=2), norm(8)]
    net = collect(nn.Sequential(*layers)).double().eval()
    x = torch.randn(2, 4, *[8] * dims, dtype=torch.float64)
    new = convert(net, x, mode="keep").model
    assert torch.allclose(new(x), net(x), atol=1e-12)
    assert not [m for m in new.modules() if isinstance(m, BATCH_NORM)]
    assert isinstance(new[0], GainConv)
    assert type(new[3]) is transposed  # there is no gain for it: the factor is in its weight


def test_linear_layers_too():
    net = collect(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))).eval()
    x = torch.randn(4, 6)
    new = convert(net, x, mode="keep").model
    assert torch.allclose(new(x), net(x), atol=1e-5)
    assert isinstance(new[1], nn.Identity)


def test_frozen_gains_and_biases_are_frozen_batch_norm():
    """Layers have the gradients of a network whose BatchNorm stays in evaluation mode and is not trained."""
    torch.manual_seed(0)
    net = collect(torchvision.models.resnet18(num_classes=3)).eval()
    kept = convert(net, (2, 3, 32, 32), mode="keep").model.eval()
    normfree.optim.freeze(kept, ["*.gain", "layer*.bias", "conv1.bias"])
    x, classes = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    for model in (net, kept):
        nn.functional.cross_entropy(model(x), classes).backward()
    expected = {name: p.grad for name, p in net.named_parameters() if p.ndim > 1 or name == "fc.bias"}
    found = {name: p.grad for name, p in kept.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert all((found[name] - grad).norm() <= 1e-4 * grad.norm() for name, grad in expected.items())
