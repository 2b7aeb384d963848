"""The choice of weight scheme in every family: layers, gamma, folding, other programs' weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import EFFICIENTNETS, SMALL, blocks, shake, small

import normfree
from normfree import UsageError
from normfree.export import prepack
from normfree.gain import RELEASED_GAINS, he_gain
from normfree.models.config import ModelConfig
from normfree.models.weight_schemes import CONVOLUTIONS
from normfree.nn import DecoupledWSConv2d, SameConv2d, WNConv2d, WSConv2d, parameter_roles
from normfree.nn.roles import Role
from normfree.weights import haiku_names, timm_names
from normfree.weights.carry import adapt_channels

DOUBLE = torch.float64
FAMILIES = [*SMALL, "nf_efficientnet_b0", "nf_cifarnet"]
OTHERS = ["decoupled", "soft", "normalized", "raw"]
CIFAR = dict(widths=(16, 24, 24), depths=(2, 2, 1))


def network(name, scheme, **options):
    if name == "nf_cifarnet":
        options = CIFAR | options
        return shake(normfree.create_model(name, num_classes=10, weight_scheme=scheme, **options).eval())
    return small(name, weight_scheme=scheme, **options)


def convolutions(model):
    return [m for name, m in model.named_modules() if isinstance(m, SameConv2d) and name != "stem.conv"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_is_the_standardized_network(name):
    options = (SMALL | EFFICIENTNETS).get(name, CIFAR)
    torch.manual_seed(0)
    default = normfree.create_model(name, **options)
    torch.manual_seed(0)
    chosen = normfree.create_model(name, weight_scheme="standardized", **options)
    assert {type(conv) for conv in convolutions(default)} == {WSConv2d}
    assert repr(default) == repr(chosen)
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), chosen.parameters(), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scheme", OTHERS)
def test_every_convolution_has_the_scheme_and_its_gamma(name, scheme):
    model = network(name, scheme)
    kind = CONVOLUTIONS[scheme]
    assert {type(conv) for conv in convolutions(model)} == {kind}
    assert name == "nf_cifarnet" or type(next(iter(model.stem.children()))) is kind
    activation = model.act.activation
    expected = he_gain(activation) if scheme in ("normalized", "raw") else RELEASED_GAINS[activation]
    assert model.act.gamma == expected
    assert network(name, scheme, gamma=1.23).act.gamma == 1.23
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("scheme", OTHERS)
def test_names_of_parameters_are_the_same_but_for_raw_ones(scheme):
    names = [name for name, _ in network("nfnet_f0", "standardized").named_parameters()]
    if scheme == "raw":
        names = [name for name in names if not name.endswith(".gain")]
    assert [name for name, _ in network("nfnet_f0", scheme).named_parameters()] == names


@pytest.mark.parametrize("scheme", OTHERS)
def test_roles_for_weight_decay_and_clipping(scheme):
    expected = parameter_roles(network("nf_regnet_b0", "standardized"))
    roles = parameter_roles(network("nf_regnet_b0", scheme))
    assert roles == {name: role for name, role in expected.items() if name in roles}
    assert set(roles.values()) == set(Role) - ({Role.GAIN} if scheme == "raw" else set())


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scheme", OTHERS)
def test_folded_and_prepacked_networks_are_the_same_function(name, scheme):
    model, x = network(name, scheme), torch.randn(2, 3, 32, 32)
    folded = normfree.fold(model)
    assert not any(isinstance(module, SameConv2d) for module in folded.modules())
    exact = model.double()(x.double())
    torch.testing.assert_close(folded(x).double(), exact, rtol=1e-4, atol=1e-5)
    if name == "nf_resnet50":
        torch.testing.assert_close(prepack(folded, x.shape)(x).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["decoupled", "normalized"])
def test_a_block_is_its_equation(scheme):
    model = network("nf_resnet50", scheme).double()
    gamma, block, x = model.act.gamma, blocks(model)[1], torch.randn(2, 32, 6, 6, dtype=DOUBLE)

    def conv(layer, h):
        weight = layer.weight * layer.gain.view(-1, 1, 1, 1)
        if scheme == "normalized":
            weight = weight / layer.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return F.conv2d(gamma * h.relu(), weight, layer.bias, padding=layer.kernel_size // 2)

    branch = conv(block.conv2, conv(block.conv1, conv(block.conv0, x / block.beta)))
    # float64 rounding
    torch.testing.assert_close(block(x), x + 0.2 * block.skip_init.skip_gain * branch, rtol=1e-11, atol=1e-12)


def test_identity_init_of_the_small_network_is_standardized():
    conv = normfree.create_model("nf_cifarnet", weight_scheme="decoupled", **CIFAR).stages[0][1].conv
    assert conv.weight.mean((1, 2, 3)).abs().max() < 1e-6
    torch.testing.assert_close(conv.weight.square().sum((1, 2, 3)), torch.ones(16))
    assert conv.weight[3, 3, 1, 1] > 0.99  # passes on its input


def test_raw_is_what_standardize_false_is():
    torch.manual_seed(0)
    old = normfree.create_model("nf_resnet50", standardize=False, **SMALL["nf_resnet50"])
    torch.manual_seed(0)
    new = normfree.create_model("nf_resnet50", weight_scheme="raw", **SMALL["nf_resnet50"])
    assert repr(old) == repr(new)
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))
    both = normfree.create_model("nf_resnet50", weight_scheme="raw", standardize=False, **SMALL["nf_resnet50"])
    assert both.act.gamma == new.act.gamma == pytest.approx(math.sqrt(2), rel=1e-12)
    with pytest.raises(UsageError, match=r"weight_scheme \(='soft'\) contradicts standardize \(=False\)"):
        normfree.create_model("nf_resnet50", weight_scheme="soft", standardize=False, **SMALL["nf_resnet50"])


@pytest.mark.parametrize("name", FAMILIES)
def test_recipes_choose_it(name):
    config = ModelConfig(name, options=dict(SMALL.get(name, CIFAR), weight_scheme="normalized"))
    assert type(convolutions(config.build(num_classes=10, in_chans=3))[-1]) is WNConv2d
    with pytest.raises(
        UsageError, match=r"model\.options\.weight_scheme .* must be one of standardized, decoupled, so"
    ):
        ModelConfig(name, options=dict(weight_scheme="spectral")).build(num_classes=10, in_chans=3)
    if name == "nfnet_f0":
        with pytest.raises(UsageError, match=r"weight_scheme \(='spectral'\) must be one of standardized"):
            normfree.models.NFNet(widths=(32,) * 4, depths=(1,) * 4, weight_scheme="spectral")


@pytest.mark.parametrize("scheme", ["decoupled", "soft", "normalized"])
def test_other_programs_do_not_know_the_scheme(scheme):
    model = network("nfnet_f0", scheme)
    for names, whose in ((haiku_names, "the authors' networks"), (timm_names, "timm's networks")):
        with pytest.raises(UsageError, match=f"{whose} standardize weights in the forward pass, stem.conv0"):
            names(model)


@torch.no_grad()
@pytest.mark.parametrize("kind", [WNConv2d, DecoupledWSConv2d])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 6), (1, 3)])
def test_a_first_convolution_for_other_channels(kind, before, after):
    old, new = kind(before, 8, 3, dtype=DOUBLE), kind(after, 8, 3, dtype=DOUBLE)
    old.gain.normal_()
    new.load_state_dict(adapt_channels(new, old.weight, old.gain), strict=False)
    new.bias.copy_(old.bias)
    gray = torch.randn(2, 1, 9, 9, dtype=DOUBLE)
    expected = old(gray.expand(2, before, 9, 9))
    # gray images give the same output; the parameters are adapted in float32
    torch.testing.assert_close(new(gray.expand(2, after, 9, 9)), expected, rtol=1e-4, atol=1e-5)
    if kind is DecoupledWSConv2d:
        torch.testing.assert_close(new.weight.square().sum((1, 2, 3)), torch.ones(8, dtype=DOUBLE))
