"""EfficientNet with BatchNorm: parameters, multiply-adds and outputs of torchvision's, and what it is made of."""

import pytest
import torch
import torchvision
from golden_data import relative
from small_models import batch_norms, blocks, shake, small
from torch import nn

import normfree
from normfree import UsageError
from normfree.models import count_macs
from normfree.models.efficientnet import skip_flags
from normfree.nn import SameConv2d

# NF-ResNets, table 3 (B6 and B7: Tan & Le 2019, table 2): billions of multiply-adds, millions of parameters
PUBLISHED = ((0.39, 5.3), (0.70, 7.8), (1.0, 9.2), (1.8, 12), (4.2, 19), (9.9, 30), (19, 43), (37, 66))


def peer(level: int, **options) -> nn.Module:
    return getattr(torchvision.models, f"efficientnet_b{level}")(**options)


@pytest.mark.parametrize("level", range(8))
def test_parameters_and_multiply_adds(level):
    info = normfree.model_info(f"bn_efficientnet_b{level}")
    with torch.device("meta"):
        theirs = peer(level)
    assert info.params == sum(p.numel() for p in theirs.parameters())
    assert info.macs_executed == count_macs(theirs, (3, info.test_size, info.test_size))
    macs, params = PUBLISHED[level]
    assert info.params / 1e6 == pytest.approx(params, rel=0.025)  # two digits; 19.3 is 19 there
    assert info.macs_executed / 1e9 == pytest.approx(macs, rel=0.05)  # 4.39 instead of 4.2 for B4, 3.7 % for B5


@pytest.mark.parametrize("level", range(6))
def test_the_network_without_normalization_has_the_same_size(level):
    """A gain and a bias per output channel replace BatchNorm's scale and shift."""
    ours, control = (normfree.model_info(f"{kind}_efficientnet_b{level}") for kind in ("nf", "bn"))
    assert (ours.params, ours.macs, ours.macs_executed) == (control.params, control.macs, control.macs_executed)
    assert (ours.widths, ours.depths, ours.test_size) == (control.widths, control.depths, control.test_size)
    assert (ours.stochdepth_rate, control.stochdepth_rate) == (0.1, 0.2)


def names_in_torchvision(model: nn.Module) -> dict[str, str]:
    """torchvision's name of each of our parameters and buffers."""
    names, layers = {}, [("stem", "features.0")]
    layers += [
        (f"stages.{s}.{b}", f"features.{s + 1}.{b}.block") for s, n in enumerate(model.stages) for b in range(len(n))
    ]
    for ours in model.state_dict():
        module, _, kind = ours.rpartition(".")
        if module == "head.fc":
            names[ours] = f"classifier.1.{kind}"
        elif module in ("stem.conv", "stem.bn"):
            names[ours] = f"features.0.{int(module == 'stem.bn')}.{kind}"
        elif module in ("final_conv", "final_bn"):
            names[ours] = f"features.{len(model.stages) + 1}.{int(module == 'final_bn')}.{kind}"
        else:
            _, stage, block, layer = module.split(".", 3)
            first = int(model.stages[int(stage)][int(block)].conv0 is None)  # a block that does not expand begins later
            places = {
                f"{part}{i}": f"{i + (i == 2) - first}.{j}" for i in range(3) for j, part in enumerate(("conv", "bn"))
            }
            places |= {f"squeeze_excite.fc{i}": f"{2 - first}.fc{i + 1}" for i in range(2)}
            names[ours] = f"features.{int(stage) + 1}.{block}.block.{places[layer]}.{kind}"
    return names


def carry(model: nn.Module, theirs: nn.Module) -> None:
    """Load torchvision's weights, whose Squeeze-Excite layers are 1x1 convolutions."""
    state, names = theirs.state_dict(), names_in_torchvision(model)
    assert sorted(names.values()) == sorted(state)
    model.load_state_dict({ours: state[name].reshape(model.state_dict()[ours].shape) for ours, name in names.items()})


@torch.no_grad()
@pytest.mark.parametrize(("level", "eps"), [(0, 1e-5), (1, 1e-5), (5, 1e-3)])
def test_outputs_are_torchvisions(level, eps):
    theirs = shake(peer(level, num_classes=10).eval()).double()
    ours = normfree.create_model(f"bn_efficientnet_b{level}", padding="symmetric", bn_eps=eps, num_classes=10).eval()
    carry(ours.double(), theirs)
    x = torch.randn(2, 3, 70, 64, dtype=torch.float64)
    # float64 rounding, through the eps-free layers of up to 39 blocks
    assert relative(ours(x), theirs(x)) < 1e-12
    assert relative(ours.forward_intermediates(x, [1])[1][0], theirs.features[:3](x)) < 1e-12


@torch.no_grad()
def test_same_padding_is_torchvisions_on_odd_maps_alone():
    """With odd sides, "SAME" pads both sides alike; with even ones it pads behind, and the map moves by a pixel."""
    theirs = shake(peer(0, num_classes=10).eval()).double()
    ours = normfree.create_model("bn_efficientnet_b0", bn_eps=1e-5, num_classes=10).eval()
    carry(ours.double(), theirs)
    for side, equal in ((65, True), (64, False)):  # 65, 33, 17, 9, 5, 3
        x = torch.randn(1, 3, side, side, dtype=torch.float64)
        assert (relative(ours(x), theirs(x)) < 1e-12) == equal


def test_batch_norm_is_that_of_the_release():
    model = small("bn_efficientnet_b0")
    assert {(norm.eps, norm.momentum) for norm in batch_norms(model)} == {(1e-3, 0.01)}
    convolutions = [module for module in model.modules() if isinstance(module, SameConv2d)]
    assert len(batch_norms(model)) == len(convolutions)
    assert all(conv.bias is None and conv.padding == "same" for conv in convolutions)
    with pytest.raises(UsageError, match=r"bn_eps \(=0\) must be above 0"):
        small("bn_efficientnet_b0", bn_eps=0)


def test_initial_weights_have_the_variance_of_their_outputs():
    model = normfree.create_model("bn_efficientnet_b0", num_classes=10)
    for name, conv in model.named_modules():
        if isinstance(conv, SameConv2d) and (n := conv.weight.numel()) > 4000:
            depthwise = conv.groups > 1
            std = (2 / (conv.kernel_size**2 * (1 if depthwise else conv.out_channels))) ** 0.5
            assert conv.weight.std().item() == pytest.approx(std, rel=5 * (2 * n) ** -0.5), name  # standard errors


def test_stochastic_depth_is_that_of_the_release():
    """Which divides by the survival rate; the rates grow as i / n."""
    depths = [block.stochdepth for block in blocks(normfree.create_model("bn_efficientnet_b0"))]
    assert {depth.scaling for depth in depths} == {"branch"}
    assert [depth.rate for depth in depths] == pytest.approx([0.2 * i / 16 for i in range(16)])


@pytest.mark.parametrize("name", ["nf_efficientnet_b0", "bn_efficientnet_b0"])
def test_blocks_have_a_skip_where_the_shape_stays(name):
    model = small(name, widths=(16, 16, 24, 24, 24), depths=(2, 1, 2, 1, 2), stem_width=16)
    assert [block.has_skip for block in blocks(model)] == [True, True, False, False, True, False, True, True]
    assert [block.has_skip for block in blocks(model)] == skip_flags(16, (16, 16, 24, 24, 24), (2, 1, 2, 1, 2))
    assert [block.conv0 is None for block in blocks(model)] == [True, True, *[False] * 6]
    assert [block.conv1.kernel_size for block in blocks(model)] == [3, 3, 3, 5, 5, 3, 5, 5]
    assert all(block.squeeze_excite.fc0.out_features == block.in_channels // 4 for block in blocks(model))
    for block in blocks(model):
        assert block.conv1.groups == block.conv1.in_channels == block.conv2.in_channels
    assert all(block.has_skip for block in blocks(small(name, output_stride=8))) is False


@torch.no_grad()
@pytest.mark.parametrize("name", ["nf_efficientnet_b0", "bn_efficientnet_b0"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_network_holds_the_strided_one(name, output_stride):
    """With kernels of 3 and 5, without Squeeze-Excite, whose mean is over more places."""
    dilated, strided = small(name, output_stride=output_stride).double(), small(name).double()
    strided.load_state_dict(dilated.state_dict())
    for block in (*blocks(dilated), *blocks(strided)):
        block.squeeze_excite.gate_of = lambda mean, dims: mean.new_ones(1, 1, 1, 1)
    step = 32 // output_stride
    x = torch.randn(1, 3, 75, 96, dtype=torch.float64)
    wide, narrow = (network.forward_features(x) for network in (dilated, strided))
    assert wide.shape[-1] == 96 // output_stride
    assert relative(wide[..., ::step, ::step], narrow) < 1e-12  # sums in another order, in float64


@pytest.mark.parametrize("name", ["nf_efficientnet_b0", "bn_efficientnet_b0"])
def test_too_many_stages(name):
    with pytest.raises(UsageError, match=r"widths .* strides \(1, 2, 2, 2, 1, 2, 1\) must have one length"):
        small(name, widths=(8,) * 8, depths=(1,) * 8)
