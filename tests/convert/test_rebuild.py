"""Networks to be trained from scratch: each kind of block, with the constants that theory gives."""

import copy
import math

import pytest
import torch
from foreign_blocks import WIDTH, Dense, Inverted, LayerScale, Net, PostActivation, PreActivation, Split, conv
from torch import nn

import normfree
from normfree.convert import Rescale, convert
from normfree.nn import SkipInit, WSConv, WSConv2d, WSLinear

SHAPE = (8, 3, 24, 24)
RELU = normfree.activation_gain("relu")


def with_skip_gains(model, value=1.0):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SkipInit):
                module.skip_gain.fill_(value)
    return model


def constants(conversion):
    """Constant and source by module."""
    return {change.module: (change.factor, change.source) for change in conversion.changes if change.factor is not None}


def branch_variances(model):
    """At the ends of the branches, for inputs that the conversion has not seen."""
    model, found = with_skip_gains(copy.deepcopy(model)), []
    for module in model.modules():
        if isinstance(module, SkipInit):
            module.register_forward_pre_hook(lambda m, args: found.append(args[0].var((0, 2, 3)).mean().item()))
    model.eval()(torch.randn(SHAPE))
    return found


def test_pre_activation_has_beta_where_its_normalization_stood():
    conversion = convert(Net(*[PreActivation() for _ in range(3)]), SHAPE)
    betas = [constants(conversion)[f"blocks.{i}.bn1"] for i in range(3)]
    assert [source for _, source in betas] == ["theory"] * 3
    expected = [math.sqrt(variance) for variance in (1.0, 1.04, 1.08)]
    assert [1 / factor for factor, _ in betas] == pytest.approx(expected, rel=1e-6)
    assert constants(conversion)["blocks.1.conv1"] == (pytest.approx(RELU, rel=1e-3), "theory")
    assert constants(conversion)["blocks.1.conv2"][0] == pytest.approx(RELU, rel=0.1)


def test_a_transition_resets_the_variance():
    blocks = [PreActivation(), PreActivation(), PreActivation(WIDTH, 64, stride=2), PreActivation(64, 64)]
    found = constants(convert(Net(*blocks, width=64), SHAPE))
    assert 1 / found["blocks.2.bn1"][0] == pytest.approx(math.sqrt(1.08), rel=1e-6)
    assert 1 / found["blocks.3.bn1"][0] == pytest.approx(math.sqrt(1.04), rel=1e-6)  # 1 + alpha^2 behind it


def test_alpha_is_an_argument():
    found = constants(convert(Net(*[PreActivation() for _ in range(2)]), SHAPE, alpha=0.5))
    assert 1 / found["blocks.1.bn1"][0] == pytest.approx(math.sqrt(1.25), rel=1e-6)


def test_post_activation_keeps_its_activation_behind_the_merge():
    net = Net(nn.ReLU(), PostActivation(), PostActivation(WIDTH, 64, stride=2), PostActivation(64, 64), width=64)
    conversion = convert(net, SHAPE)
    found = constants(conversion)
    assert found["blocks.2.act_scale"][0] == pytest.approx(RELU, rel=0.1)  # a new signal behind the transition
    assert "blocks.3.act_scale" not in found  # ReLU leaves what it has made
    assert all(0.8 < variance < 1.2 for variance in branch_variances(conversion.model))


@pytest.mark.parametrize(
    "block", [PreActivation, PostActivation, Inverted, Split, lambda: Inverted(gate=nn.Hardsigmoid)], ids=range(5)
)
def test_branches_have_variance_1(block):
    net = Net(*[block() for _ in range(3)])
    variances = branch_variances(convert(net, SHAPE).model)
    assert len(variances) == 3
    assert all(0.8 < variance < 1.2 for variance in variances)


def test_the_signal_is_recorded_with_the_names_of_the_blocks():
    spp = normfree.spp.record(with_skip_gains(convert(Net(PreActivation(), PreActivation()), SHAPE).model), SHAPE)
    assert spp.blocks == ["blocks.0.conv2", "blocks.1.conv2"]
    assert spp.diagnose() == []


def test_a_gate_gets_its_factor_and_keeps_its_layers():
    net = Net(Inverted())
    new = convert(net, SHAPE).model
    assert new.get_submodule("blocks.0.se.gate_scale").factor == 2.0
    assert type(new.get_submodule("blocks.0.se.fc1")) is nn.Conv2d
    assert torch.equal(new.get_submodule("blocks.0.se.fc1").weight, net.blocks[0].se.fc1.weight)


def test_depthwise_convolutions_are_measured_where_theory_misses_them():
    new = convert(Net(Inverted(), Inverted()), SHAPE).model
    depthwise = new.get_submodule("blocks.1.depthwise")
    seen = []
    depthwise.register_forward_hook(lambda m, args, out: seen.append(out.var((0, 2, 3)).mean().item()))
    with_skip_gains(new).eval()(torch.randn(SHAPE))
    assert seen[0] == pytest.approx(1, abs=0.2)


def test_concatenations_are_weighted_by_their_channels():
    conversion = convert(Net(Dense(), Dense(WIDTH + 16), width=WIDTH + 32), SHAPE)
    factor, _ = constants(conversion)["blocks.1.bn1"]
    assert factor == pytest.approx(1, abs=0.06)  # all parts have variance 1
    assert not [change for change in conversion.changes if change.now == "SkipInit"]


def test_parts_of_one_output_are_added_plainly():
    conversion = convert(Net(Split()), SHAPE)
    assert sum(change.now == "SkipInit" for change in conversion.changes) == 1  # not between the parts
    factor, _ = constants(conversion)["blocks.0.convs.1"]
    assert factor == pytest.approx(RELU / math.sqrt(2), rel=0.15)  # the sum of two activations


def test_a_branch_with_a_scale_of_its_own_keeps_it():
    net = Net(LayerScale(), LayerScale())
    conversion = convert(net, SHAPE)
    assert not [change for change in conversion.changes if change.now == "SkipInit"]
    assert torch.equal(conversion.model.get_parameter("blocks.0.scale"), net.blocks[0].scale)


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d,
        nn.SyncBatchNorm,
        lambda c: nn.GroupNorm(4, c),
        nn.InstanceNorm2d,
        lambda c: nn.BatchNorm2d(c, affine=False),
    ],
    ids=["batch", "sync", "group", "instance", "no affine"],
)
def test_every_normalization_is_taken_out(norm):
    new = convert(Net(PostActivation(norm=norm), norm=norm), SHAPE).model
    assert not [m for m in new.modules() if "Norm" in type(m).__name__]
    assert sum(isinstance(m, WSConv2d) for m in new.modules()) == 3


def test_the_skip_gain_is_0_at_first_and_the_network_trains_at_batch_size_1():
    new = convert(Net(PostActivation(), PreActivation(), Inverted()), SHAPE).model.train()
    y = new(torch.randn(1, 3, 24, 24))
    y.square().mean().backward()
    skips = [p for name, p in new.named_parameters() if name.endswith("skip_gain")]
    assert len(skips) == 3
    assert all(p.item() == 0 and p.grad.item() != 0 for p in skips)
    assert all(p.grad is None or p.grad.isfinite().all() for p in new.parameters())


def test_names_stay_and_the_original_too():
    net = Net(PostActivation(), PreActivation())
    before = copy.deepcopy(net.state_dict())
    training = [module.training for module in net.modules()]
    new = convert(net, SHAPE).model
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [module.training for module in net.modules()] == training
    kept = {name for name in before if "bn" not in name}
    assert kept <= new.state_dict().keys()
    added = new.state_dict().keys() - before.keys()
    assert all(name.endswith(("gain", "bias")) for name in added)
    assert not any(a.data_ptr() == b.data_ptr() for a in new.parameters() for b in net.parameters())


def test_weights_are_drawn_anew_or_kept():
    net = Net(PostActivation())
    assert not torch.equal(convert(net, SHAPE).model.get_parameter("stem.weight"), net.stem.weight)
    assert torch.equal(convert(net, SHAPE, init=False).model.get_parameter("stem.weight"), net.stem.weight)


def test_a_change_in_place_does_not_reach_the_shortcut():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.act, self.conv = nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True), conv(WIDTH, WIDTH)

        def forward(self, x):
            return x + self.conv(self.act(self.bn(x)))

    new = convert(Net(Reads()), SHAPE).model.eval()
    seen = {}
    new.get_submodule("stem").register_forward_hook(lambda m, args, out: seen.setdefault("stem", out))
    new.get_submodule("fc").register_forward_hook(lambda m, args, out: seen.setdefault("pooled", args[0]))
    new(torch.randn(SHAPE))  # with a skip gain of 0 the block is its shortcut
    assert torch.allclose(seen["stem"].mean((2, 3)), seen["pooled"], atol=1e-6)
    assert seen["stem"].min() < 0


def test_left_modules_stay():
    conversion = convert(Net(PostActivation(), PreActivation()), SHAPE, leave=["blocks.1", "stem_*"])
    new = conversion.model
    assert isinstance(new.get_submodule("stem_bn"), nn.BatchNorm2d)
    assert isinstance(new.get_submodule("blocks.1"), PreActivation)
    assert isinstance(new.get_submodule("blocks.0.conv1"), WSConv2d)
    assert {change.module for change in conversion.changes if change.now == "left"} == {
        *("stem_bn", "blocks.1.bn1", "blocks.1.bn2"),
    }


def test_dropout_as_a_function_follows_the_mode():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH)

        def forward(self, x):
            return nn.functional.dropout(self.bn(self.conv(x)), 0.5, self.training)

    new = convert(Net(Drops()), SHAPE).model
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(new.train()(x), new(x))
    assert torch.equal(new.eval()(x), new(x))


def test_the_result_saves_loads_exports_compiles_and_folds(tmp_path):
    new = with_skip_gains(convert(Net(PostActivation(), Inverted()), SHAPE).model).eval()
    x = torch.randn(2, 3, 24, 24)
    y = new(x)
    torch.save(new, tmp_path / "new.pt")
    assert torch.equal(torch.load(tmp_path / "new.pt", weights_only=False)(x), y)
    again = convert(Net(PostActivation(), Inverted()), SHAPE).model.eval()
    again.load_state_dict(new.state_dict())
    assert torch.allclose(again(x), y, rtol=0.1, atol=0.1)  # measured constants differ a little
    exported = torch.export.export(new, (x,)).module()
    assert torch.allclose(exported(x), y, atol=1e-5)
    folded = normfree.fold(new)
    assert torch.allclose(folded(x), y, atol=1e-4)
    assert not [m for m in folded.modules() if isinstance(m, WSConv2d)]
    compiled = torch.compile(new, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x), y, atol=1e-5)


def test_every_parameter_has_a_role():
    new = convert(Net(PostActivation(), Inverted()), SHAPE).model
    roles = normfree.nn.parameter_roles(new)
    assert roles["fc.weight"] is normfree.nn.Role.CLASSIFIER
    assert roles["blocks.0.skip.skip_gain"] is normfree.nn.Role.SKIP_GAIN
    assert roles["blocks.0.conv1.gain"] is normfree.nn.Role.GAIN


def test_rescale_is_a_factor():
    assert torch.equal(Rescale(0.5)(torch.ones(3)), torch.full((3,), 0.5))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_dimension(dims):
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    sizes = (3, 5, 1)[:dims]
    layers = [plain(4, 32, sizes, padding=tuple(k // 2 for k in sizes)), norm(32), nn.ReLU()]
    net = nn.Sequential(*layers, transposed(32, 24, 2, stride=2), norm(24), nn.ReLU(), plain(24, 16, 3), norm(16))
    shape = (8, 4, *[12] * dims)
    new = convert(net, shape).model.eval()
    assert not [m for m in new.modules() if "Norm" in type(m).__name__]
    assert sum(isinstance(m, WSConv) for m in new.modules()) == 3
    y = new(torch.randn(shape))
    assert y.shape == net.eval()(torch.randn(shape)).shape
    assert y.var().item() == pytest.approx(1, abs=0.25)


def test_the_last_layer_is_left():
    layers = [conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 16), nn.ReLU(), nn.Conv2d(16, 5, 1)]
    new = convert(nn.Sequential(*layers), SHAPE).model
    assert isinstance(new.get_submodule("3"), WSConv2d)
    assert type(new.get_submodule("5")) is nn.Conv2d


def test_linear_layers_between_normalizations():
    class Perceptron(nn.Module):
        """As ConvNeXt's block, on tokens."""

        def __init__(self):
            super().__init__()
            self.norm, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 96), nn.Linear(96, WIDTH)

        def forward(self, x):
            h = self.norm(x.permute(0, 2, 3, 1))
            return x + self.fc2(nn.functional.gelu(self.fc1(h))).permute(0, 3, 1, 2)

    new = convert(Net(Perceptron(), Perceptron()), SHAPE).model
    assert isinstance(new.get_submodule("blocks.0.fc1"), WSLinear)
    assert isinstance(new.get_submodule("fc"), nn.Linear)
    assert all(0.8 < variance < 1.2 for variance in branch_variances(new))
