"""The two ends of a network: stems of NFNet, what widens the features, where the classifier stands."""

import math

import pytest
import torch
from small_models import SMALL, blocks, shake, small

import normfree
from normfree import UsageError
from normfree.models import segmenter
from normfree.models.config import ModelConfig
from normfree.models.head import ClassifierHead, Expansion
from normfree.nn import Activation, Role, parameter_roles

STEMS = {  # convolutions' outputs for a first stage of 256 channels; stride of each of the five maps
    "4x 3x3": ([16, 32, 64, 128], [2, 4, 8, 16, 32]),
    "3x 3x3": ([32, 32, 64], [2, 4, 8, 16, 32]),
    "7x7": ([64], [2, 4, 8, 16, 32]),
    "7x7-nopool": ([64], [2, 2, 4, 8, 16]),
    "3x3": ([128], [1, 1, 2, 4, 8]),
    "3x3-stride2": ([128], [2, 2, 4, 8, 16]),
    "dct": ([128], [8, 8, 8, 16, 32]),
}


@pytest.mark.parametrize("name", ["nfnet_f0", "bn_nfnet_f0"])
@pytest.mark.parametrize("stem", STEMS)
def test_stems(name, stem):
    """NFNet's and those for small images end in half of the first stage's channels, ResNet's in a quarter."""
    with torch.device("meta"):
        model = normfree.create_model(name, stem=stem)
    widths, reductions = STEMS[stem]
    convs = [module for key, module in model.stem.named_children() if key.startswith("conv")]
    assert [conv.out_channels for conv in convs] == widths
    assert [entry["reduction"] for entry in model.feature_info] == reductions
    assert blocks(model)[0].conv0.in_channels == widths[-1]
    assert model.in_chans == 3


@torch.no_grad()
@pytest.mark.parametrize("stem", STEMS)
def test_the_signal_behind_a_stem(stem):
    torch.manual_seed(0)
    model = normfree.create_model("nfnet_f0", widths=(256,) * 4, depths=(1,) * 4, stem=stem).eval()
    variance = model.stem(torch.randn(4, 3, 96, 96)).var((0, 2, 3)).mean().item()
    pooled = stem in ("7x7", "3x 3x3")  # the maximum of nine varies less, as in NF-ResNets
    assert 0.25 < variance < 0.6 if pooled else abs(variance - 1) < 0.15  # padding takes up to a tenth at the edges


@pytest.mark.parametrize("stem", ["3x 3x3", "dct"])
def test_other_image_channels(stem):
    x = torch.randn(1, 5, 64, 64)
    assert small("nfnet_f0", stem=stem, in_chans=5)(x).shape == (1, 10)
    info = normfree.model_info("nfnet_f0", stem=stem, in_chans=5)
    assert info.params > normfree.model_info("nfnet_f0", stem=stem).params


def test_the_dct_stem_makes_the_network_cheaper():
    """Less work at high resolution (appendix E)."""
    usual, dct = normfree.model_info("nfnet_f0"), normfree.model_info("nfnet_f0", stem="dct")
    assert dct.macs < 0.9 * usual.macs


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0"])
def test_what_widens_the_features(name):
    last, wide = SMALL[name]["widths"][-1], 2 * 64 if name == "nfnet_f0" else 1280 * 48 // 440
    sizes = {}
    for final in ("conv", "linear", "none"):
        model, x = small(name, final=final), torch.randn(2, 3, 64, 64)
        features = model.forward_features(x)
        sizes[final] = model.num_features, model.head_hidden_size
        assert features.shape[1] == model.num_features
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (2, model.head_hidden_size)
        assert torch.equal(model.head.fc(hidden), model(x))
        assert model.feature_info[-1]["num_chs"] == model.num_features
    assert sizes == {"conv": (wide, wide), "linear": (last, wide), "none": (last, last)}


def test_a_linear_layer_in_place_of_the_final_convolution():
    """Activation, pooling, linear layer, scaled activation, classifier."""
    torch.manual_seed(0)
    model, x = small("nfnet_f0", final="linear").double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    layer = model.head.expansion.fc
    pooled = (model.act.gamma * model.act(model.stages(model.stem(x)))).mean((2, 3))
    hidden = model.act.gamma * model.act(pooled @ layer.weight.T + layer.bias)
    expected = hidden @ model.head.fc.weight.T + model.head.fc.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)  # float64 rounding
    assert parameter_roles(model)["head.expansion.fc.weight"] is Role.WEIGHT
    assert parameter_roles(model)["head.fc.weight"] is Role.CLASSIFIER


def test_the_linear_layer_keeps_the_variance():
    """LeCun's initialization, cut at two deviations (0.77 of the variance), and the activation's gamma."""
    torch.manual_seed(0)
    layer = Expansion(512, 1024, Activation("identity"))
    assert layer(torch.randn(256, 512)).var().item() == pytest.approx(0.774, rel=0.05)


def test_a_new_classifier_behind_the_linear_layer():
    model = small("nfnet_f0", final="linear")
    model.reset_classifier(7)
    assert model.head.fc.in_features == model.head_hidden_size == 128
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)
    model.reset_classifier(0)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 128)
    model.reset_classifier(0, "")  # unpooled features: nothing is left that would not be trained
    assert model.head.expansion is None
    assert not list(model.head.parameters())
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 64, 2, 2)
    assert model.head_hidden_size == model.num_features == 64


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_mean_of_logits_is_the_logits_of_the_mean(name):
    """Without dropout a linear classifier may stand on either side of average pooling."""
    torch.manual_seed(0)
    model, x = small(name, global_pool="logits").double(), torch.randn(2, 3, 96, 96, dtype=torch.float64)
    usual = small(name).double()
    usual.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), usual(x), rtol=1e-11, atol=1e-13)  # float64 rounding
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features, pre_logits=True), usual.forward_head(features, pre_logits=True))


def test_dropout_of_every_place():
    """In front of the classifier at every place: each has its own, and their mean varies less."""
    torch.manual_seed(0)
    x, spread = torch.ones(400, 8, 4, 4), {}
    for pool in ("avg", "logits"):
        head = ClassifierHead(8, 1, 0.5, global_pool=pool).train()
        torch.nn.init.ones_(head.fc.weight)
        spread[pool] = head(x).std().item()
    assert spread["avg"] == pytest.approx(math.sqrt(8), rel=0.2)  # five standard errors of 400 numbers
    assert spread["logits"] == pytest.approx(math.sqrt(8) / 4, rel=0.2)


def test_multiply_adds_of_a_classifier_at_every_place():
    """Of a map of 2 x 2 places of 128 features."""
    usual, places = (normfree.model_info("nfnet_f0", global_pool=pool) for pool in ("avg", "logits"))
    assert places.macs - usual.macs == (8 * 8 - 1) * 3072 * 1000
    assert places.macs == places.macs_executed


def test_what_is_refused():
    for create in (
        normfree.create_model,
        lambda name, **o: ModelConfig(name, options=o).build(num_classes=2, in_chans=3),
    ):
        with pytest.raises(UsageError, match=r"global_pool \(='logits'\) pools behind the classifier; final='linear'"):
            create("nfnet_f0", final="linear", global_pool="logits", **SMALL["nfnet_f0"])
        with pytest.raises(UsageError, match=r"final \(='fc'\) must be one of conv, linear, none"):
            create("nf_regnet_b0", final="fc")
        with pytest.raises(UsageError, match=r"stem \(='dct4'\) must be one of 4x 3x3, 3x 3x3, 7x7, .*, dct"):
            create("nfnet_f0", stem="dct4")


def test_appendix_e_heterogeneous_stages():
    """Group widths 8 8 16 16; a quarter of the input in stages 1 and 2, half of the output in 3 and 4."""
    options = dict(
        group_width=[8, 8, 16, 16], ratio=[0.25, 0.25, 0.5, 0.5], ratio_of=["input", "input", "output", "output"]
    )
    with torch.device("meta"):
        model = normfree.create_model("nfnet_f0", **options)
    inner = [[(block.conv1.in_channels, block.conv1.groups) for block in stage] for stage in model.stages]
    assert inner[0] == [(32, 4)]  # a quarter of the stem's 128
    assert inner[1] == [(64, 8), (128, 16)]  # of 256, then of 512
    assert set(inner[2]) == set(inner[3]) == {(768, 48)}
    info = normfree.model_info("nfnet_f0", **options)
    assert info.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(group_width=[8, 8]), r"group_width \(=\[8, 8\]\) must be one value, or one for each of 4 stages"),
        (dict(ratio=[0.5] * 5), r"ratio \(=.*\) must be one value, or one for each of 4 stages"),
        (dict(ratio=[0.5, 0.5, 0.5, -1]), r"ratio \(=.*\) must be above 0"),
        (dict(ratio=[]), r"ratio \(=\[\]\) must be a number .*, or a list of them"),
        (dict(group_width=[8, 8, 8, "8"]), r"group_width \(=.*\) must be an integer of 1 to 65,536, or a list of them"),
        (dict(ratio_of="stage"), r"ratio_of \(='stage'\) must be one of output, input, or a list of them"),
        (dict(group_width=512), r"inner width \(=128\) must be at least group_width \(=512\)"),
    ],
)
def test_choices_by_stage_that_are_refused(options, said):
    with pytest.raises(UsageError, match=said), torch.device("meta"):
        normfree.create_model("nfnet_f0", **options)


def test_shaken_networks_differ():
    """The helper changes every layer that options add, so that no test above passes with a layer left out."""
    torch.manual_seed(0)
    plain = normfree.create_model("nfnet_f0", **SMALL["nfnet_f0"], affine="activation", final="linear")
    before = {key: value.clone() for key, value in plain.named_parameters()}
    shake(plain)
    same = [key for key, value in plain.named_parameters() if torch.equal(value, before[key])]
    assert all(".weight" in key for key in same), same


@pytest.mark.parametrize("options", [dict(), dict(final="linear"), dict(final="none", affine="activation")], ids=str)
def test_heads_of_dense_prediction_leave_no_parameter_without_a_gradient(options):
    backbone = small("nfnet_f0", **options)
    model = segmenter(backbone, 3, width=16).train()
    model(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
