"""Signal and initialization of the controls: what the papers say of them."""

import math

import pytest
import torch
from small_models import CONTROLS, blocks, shake, small

import normfree
from normfree.gain import he_gain
from normfree.models import BNResNet, Branch, PreactBlock, Preactivation
from normfree.nn import SameConv2d

DOUBLE = torch.float64
SQRT2 = math.sqrt(2)


def channel_statistics(x):
    """Average squared mean and average variance over channels."""
    x = x.detach().double().transpose(0, 1).flatten(1)
    return x.mean(1).square().mean().item(), x.var(1, correction=0).mean().item()


def second_moment(x):
    return x.detach().square().mean().item()


@torch.no_grad()
def branch_statistics(**options):
    """Squared mean and variance at each branch's end, at initialization, in training mode."""
    model, found = BNResNet(widths=(256, 512), depths=(4, 4), stem="3x3", num_classes=0, **options), []
    for block in blocks(model):
        block.conv2.register_forward_hook(lambda m, a, out: found.append(channel_statistics(out)))
    model(torch.randn(8, 3, 32, 32))
    return torch.tensor(found).T


def test_branches_of_bn_relu_conv_lose_the_mean():
    """He initialization keeps the second moment, of which ReLU's mean takes 1 / pi (NF-ResNets, section 3)."""
    sq_mean, var = branch_statistics()
    # averages over eight blocks; over eight seeds, 1.1 % was the most for the first and 5 % for the second
    assert var.mean().item() == pytest.approx(1 - 1 / math.pi, rel=0.03)
    assert sq_mean.mean().item() == pytest.approx(1 / math.pi, rel=0.12)


def test_branches_of_relu_bn_conv_have_variance_one():
    sq_mean, var = branch_statistics(order="relu-bn-conv")
    assert var.mean().item() == pytest.approx(1, rel=0.02)  # 0.4 % was the most over eight seeds
    assert sq_mean.mean().item() < 1e-3  # what the last convolution sees has mean 0


def test_branches_of_a_linear_network_have_variance_one():
    sq_mean, var = branch_statistics(activation="identity")
    assert var.mean().item() == pytest.approx(1, rel=0.02)  # 0.7 % was the most over eight seeds
    assert sq_mean.mean().item() < 1e-3


def block_with(conv_gain=None, **pre):
    branch = Branch(ratio=0.5, conv=SameConv2d)
    torch.manual_seed(1)
    return PreactBlock(16, 16, branch=branch, pre=Preactivation(init_gain=conv_gain, **pre)).double()


def test_he_initialization_doubles_a_branch_that_ends_in_relu_bn_conv():
    x = torch.randn(8, 16, 8, 8, dtype=DOUBLE)
    ours, he = block_with(order="relu-bn-conv"), block_with(SQRT2, order="relu-bn-conv")
    for conv in ("conv0", "conv1", "conv2"):
        weights = [block.get_submodule(conv).weight for block in (ours, he)]
        torch.testing.assert_close(weights[1], weights[0] * SQRT2, rtol=1e-6, atol=0)  # drawn in float32
    ratio = ((he(x) - x) / (ours(x) - x)).square()
    # BatchNorm takes the scale of all but the last convolution away, up to its epsilon over a variance of about 1
    assert ratio.median().item() == pytest.approx(2, rel=1e-4)


def test_gains_of_the_convolutions():
    for activation in ("relu", "silu"):
        assert Preactivation(activation=activation).gain == he_gain(activation)
        assert Preactivation(activation=activation, norm=False, order="relu-bn-conv").gain == he_gain(activation)
        assert Preactivation(activation=activation, order="relu-bn-conv").gain == 1.0
        assert Preactivation(activation=activation, init_gain=0.5).gain == 0.5


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bn_resnet50", {}, SQRT2),
        ("bn_resnet50", dict(order="relu-bn-conv"), 1.0),
        ("bn_resnet50", dict(activation="identity"), 1.0),
        ("bn_resnet50_v1", {}, SQRT2),
        ("plain_resnet50", {}, SQRT2),
        ("skipinit_resnet50", {}, SQRT2),
        ("bn_nfnet_f0", dict(activation="gelu"), he_gain("gelu")),
    ],
)
def test_every_convolution_that_sees_activations_has_hes_gain(name, options, expected):
    model = normfree.create_model(name, **CONTROLS[name] | options)
    for path, conv in model.named_modules():
        if isinstance(conv, SameConv2d):
            sees_images = path in ("stem.conv", "stem.conv0")
            bare = sees_images or path == "final_conv"
            gain = 1.0 if bare else expected
            assert conv.init_gain == pytest.approx(gain, rel=1e-12), path
            n = conv.weight.numel()
            if n > 4000:
                std = gain * conv.weight[0].numel() ** -0.5
                assert conv.weight.std().item() == pytest.approx(std, rel=5 * (2 * n) ** -0.5), path  # standard errors


@pytest.mark.parametrize("name", ["bn_resnet50", "bn_nfnet_f0"])
def test_shortcuts_of_v2_see_the_normalized_activated_input(name):
    model = small(name).double()
    for block in (b for b in blocks(model) if b.conv_shortcut is not None):
        x = torch.randn(2, block.conv0.in_channels, 8, 8, dtype=DOUBLE)
        branch_end = block.squeeze_excite if block.squeeze_excite is not None else block.conv2
        seen = []
        branch_end.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        h = block.act(block.bn0(x))
        if block.pool is not None:
            h = torch.nn.functional.avg_pool2d(h, 2)
        expected = block.conv_shortcut(h)
        torch.testing.assert_close(block(x) - seen[0], expected, rtol=1e-10, atol=1e-11)  # float64 rounding


def test_orders_differ_and_do_what_they_say():
    options = dict(widths=(32, 48), depths=(2, 1), num_classes=10)
    first, second = (shake(BNResNet(**options, order=order)).eval() for order in ("bn-relu-conv", "relu-bn-conv"))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(first(x), second(x), rtol=1e-2)
    for model, order in ((first, "bn-relu-conv"), (second, "relu-bn-conv")):
        block, x = blocks(model)[1], torch.randn(2, 32, 6, 6)

        def front(h, norm, block=block, order=order):
            return norm(h).relu() if order == "bn-relu-conv" else norm(h.relu())

        h = block.conv1(front(block.conv0(front(x, block.bn0)), block.bn1))
        torch.testing.assert_close(block(x), x + block.conv2(front(h, block.bn2)), rtol=0, atol=0)
        # the end is the same in both: what the classifier pools is activated
        features = model.stages(model.stem(x := torch.randn(1, 3, 32, 32)))
        assert torch.equal(model.forward_features(x), model.final_bn(features).relu())


@torch.no_grad()
def growth(**options):
    """Second moment of each block's output over that of the block's input; identity shortcuts only."""
    model, found = BNResNet(widths=(256,), depths=(9,), stem="3x3", num_classes=0, **options), []
    for block in blocks(model)[1:]:
        block.register_forward_hook(lambda m, a, out: found.append(second_moment(out) / second_moment(a[0])))
    model(torch.randn(4, 3, 16, 16))
    return found


def test_without_normalization_every_block_doubles_the_signal():
    # He keeps the second moment in a branch, but for 4 % per map border and convolution, and adds it to the shortcut's;
    # geometric means of 1.71 to 2.12 over eight seeds
    assert math.prod(growth(norm=False)) ** (1 / 8) == pytest.approx(1.92, rel=0.2)
    # with BatchNorm each branch adds 1, beginning with 2 behind the first block: 3/2 * 4/3 * ... * 10/9 = 5; 5 % seen
    assert math.prod(growth()) == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("name", ["fixup_resnet50", "skipinit_resnet50"])
def test_branches_are_exactly_off_at_initialization(name):
    model = normfree.create_model(name, num_classes=10, **CONTROLS[name])
    for block in blocks(model):
        x = torch.randn(2, block.conv0.in_channels, 6, 6)
        fixup = name.startswith("fixup")
        seen = x if fixup else x.relu()
        shortcut = x if block.conv_shortcut is None else block.conv_shortcut(seen)
        assert torch.equal(block(x), shortcut.relu() if fixup else shortcut)
    x = torch.randn(2, 3, 32, 32)
    assert not model(x).any()  # the classifier starts at 0
    assert model.forward_features(x).any()


@pytest.mark.parametrize("name", ["fixup_resnet50", "skipinit_resnet50"])
def test_branches_open_with_the_first_steps(name):
    """The scalar (SkipInit) or the last convolution (FixUp) has a gradient although the branch is 0."""
    model = normfree.create_model(name, num_classes=10, **CONTROLS[name])
    torch.nn.init.normal_(model.head.fc.weight)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for block in blocks(model):
        switch = block.conv2.weight if name.startswith("fixup") else block.skip_init.skip_gain
        assert not switch.any()
        assert switch.grad.any()
        assert not block.conv0.weight.grad.any()


def test_skipinit_is_its_equation():
    block = blocks(small("skipinit_resnet50").double())[1]
    x = torch.randn(2, 32, 6, 6, dtype=DOUBLE)
    branch = block.conv2(block.conv1(block.conv0(x.relu()).relu()).relu())
    torch.testing.assert_close(block(x), x + block.skip_init.skip_gain * branch, rtol=1e-11, atol=1e-12)  # float64


def test_fixups_initial_weights():
    model = normfree.create_model("fixup_resnet50", depths=(2, 1, 1, 1))
    scale = 5**-0.25  # m - 1 over 2 m - 2 for m = 3 convolutions and 5 blocks (Zhang et al. 2019)
    for block in blocks(model):
        width, out = block.conv0.weight.shape[0], block.conv2.weight.shape[0]
        expected = {"conv0": SQRT2 * width**-0.5 * scale, "conv1": SQRT2 * (9 * width) ** -0.5 * scale}
        if block.conv_shortcut is not None:
            expected["conv_shortcut"] = (2 / out) ** 0.5  # by its outputs, as the authors' code has it
        for name, std in expected.items():
            weight = block.get_submodule(name).weight
            error = 5 * (2 * weight.numel()) ** -0.5  # standard errors
            assert weight.std().item() == pytest.approx(std, rel=error), name
        assert not block.conv2.weight.any()
        assert block.scale.item() == 1
        assert not any(getattr(block, f"bias{k}{side}").bias.any() for k in (1, 2, 3) for side in "ab")
