"""The stems of every family: strides of the maps, the signal behind them, weights of networks with another stem."""

import pytest
import torch
from small_models import CONTROLS, EFFICIENTNETS, GROUP_NORM, SMALL, shake, small

import normfree
from normfree.errors import UsageError
from normfree.models.body import NormFreeNet
from normfree.nn import MaxPoolSame
from normfree.optim import param_groups
from normfree.weights import load_haiku, to_haiku

TIMM = {
    "timm_dm_nfnet_f0": dict(widths=(32, 48, 64, 64), stem_channels=16, depths=(1, 2, 1, 1), group_width=8),
    "timm_nf_regnet_b0": dict(widths=(16, 24, 32, 48), stem_channels=16, depths=(1, 2, 2, 1)),
    "timm_nf_resnet50": dict(widths=(32, 48, 64, 96), stem_channels=16, depths=(2, 1, 2, 1)),
}
FAMILIES = [*SMALL, *CONTROLS, *EFFICIENTNETS, *GROUP_NORM, *TIMM]
STRIDES = {"3x3": 1, "3x3-stride2": 2}


def network(name: str, **options) -> torch.nn.Module:
    if name not in TIMM:
        return small(name, **options)
    return shake(normfree.create_model(name, num_classes=10, **TIMM[name], **options).eval())


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("stem", "side"), [("3x3", 32), ("3x3-stride2", 64)])
def test_stems_for_small_images(name, stem, side):
    """One 3x3 convolution. Behind it, a ResNet or NFNet has its resolution, a RegNet or EfficientNet half of it."""
    model, first = network(name, stem=stem), STRIDES[stem]
    assert [key for key, _ in model.stem.named_parameters() if key.endswith("weight") and "bn" not in key] == [
        "conv.weight"
    ]
    assert (model.stem.conv.kernel_size, model.stem.conv.stride) == (3, first)
    of_stage = first * (2 if "regnet" in name or "efficientnet" in name else 1)
    reductions = [first, of_stage, 2 * of_stage, 4 * of_stage, 8 * of_stage]
    assert [entry["reduction"] for entry in model.feature_info] == reductions
    _, maps = model.forward_intermediates(images(side))
    assert [map.shape[1:] for map in maps] == [
        (entry["num_chs"], *(side // entry["reduction"],) * 2) for entry in model.feature_info
    ]
    assert model(images(side)).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_usual_stem_is_one_of_the_stems(name):
    """The first stage has stride 4 for all of them."""
    usual = {"nfnet": "4x 3x3", "regnet": "3x3-stride2", "resnet": "7x7", "efficientnet": "3x3-stride2"}
    stem = next(stem for part, stem in usual.items() if part in name)
    model, same = network(name), network(name, stem=stem)
    assert [entry["reduction"] for entry in model.feature_info] == [2, 4, 8, 16, 32]
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in same.state_dict().items()
    }
    assert str(model.stem) == str(same.stem)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "resnet" in name])
def test_stems_of_resnets(name):
    for stem, reduction in (("7x7", 4), ("7x7-nopool", 2)):
        model = network(name, stem=stem)
        pools = [m for m in model.modules() if isinstance(m, MaxPoolSame | torch.nn.MaxPool2d)]
        assert bool(pools) == (stem == "7x7")
        reductions = [2, *(reduction * factor for factor in (1, 2, 4, 8))]
        assert [entry["reduction"] for entry in model.feature_info] == reductions
        assert model.stem.conv.kernel_size == 7
        assert model.stem.conv.stride == 2
        _, maps = model.forward_intermediates(images(64))
        assert [map.shape[2:] for map in maps] == [(64 // reduction,) * 2 for reduction in reductions]


@torch.no_grad()
@pytest.mark.parametrize("name", [*SMALL, *TIMM])
@pytest.mark.parametrize("stem", STRIDES)
def test_the_signal_behind_a_small_stem_has_variance_1(name, stem):
    """As behind the papers' stems; only timm's first convolution has gamma in its weight."""
    wide = {"timm_nf_regnet_b0": dict(widths=(64, 24, 32, 48), stem_channels=64)}.get(name)
    wide = wide or dict(widths=(256 if "regnet" not in name else 64, 48, 64, 96))
    if name in TIMM and "regnet" not in name:
        wide["stem_channels"] = 128
    options = (SMALL | TIMM)[name] | wide
    model = normfree.create_model(name, stem=stem, **options).eval()
    assert isinstance(model, NormFreeNet)
    x = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    out = model.stem(x)
    gamma = model.stem.conv.input_scale
    assert gamma == (1 if name in (*SMALL, "timm_dm_nfnet_f0") else pytest.approx(model.act.gamma, rel=1e-12))
    assert out.var().item() / gamma**2 == pytest.approx(1, rel=0.03)  # the padding takes up to 2 %


@pytest.mark.parametrize("stem", STRIDES)
def test_the_signal_through_an_nfnet_with_a_small_stem_grows_as_predicted(stem):
    """In the first stage; in front of the others the shortcut is average-pooled, which the diagnosis knows."""
    torch.manual_seed(0)
    options = dict(widths=(256, 256, 512, 512), depths=(2, 2, 2, 2), group_width=64, skip_gain=1.0)
    model = normfree.create_model("nfnet_f0", stem=stem, **options).eval()
    signal = normfree.spp.record(model, (8, 3, 64, 64))
    assert signal.diagnose() == []
    assert [row.avg_var for row in signal.rows[:2]] == pytest.approx([1.04, 1.08], rel=0.05)  # 3 % over four seeds


@torch.no_grad()
@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0", *TIMM])
@pytest.mark.parametrize("stem", STRIDES)
def test_folding_leaves_the_function(name, stem):
    model = network(name, stem=stem)
    expected = model(images(32))
    # float32 rounding through a few layers
    torch.testing.assert_close(normfree.fold(model)(images(32)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_are_dilated_behind_a_small_stem(name):
    model = network(name, stem="3x3-stride2", output_stride=8)
    assert max(entry["reduction"] for entry in model.feature_info) == 8
    assert model.forward_features(images(64)).shape[-2:] == (8, 8)


@pytest.mark.parametrize("name", ["nf_resnet50", "plain_resnet50", "fixup_resnet50", "skipinit_resnet50"])
def test_a_dilated_network_holds_the_strided_one(name):
    """Without averages over the map, which Squeeze-Excite takes."""
    model = network(name, stem="3x3-stride2", output_stride=8)
    strided = network(name, stem="3x3-stride2")
    strided.load_state_dict(model.state_dict())
    factor = strided.feature_info[-1]["reduction"] // 8
    with torch.no_grad():
        dense, sparse = (net.forward_features(images(64)) for net in (model, strided))
    torch.testing.assert_close(dense[..., ::factor, ::factor], sparse, rtol=1e-4, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stem", STRIDES)
def test_the_description_is_of_the_stem(name, stem):
    model = network(name, stem=stem)
    cfg = model.default_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert cfg["pool_size"] == (-(-cfg["input_size"][-1] // model.feature_info[-1]["reduction"]),) * 2
    groups = param_groups(model, weight_decay=1e-4, clipping=0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["nfnet_f0", "bn_nfnet_f0", "nf_regnet_b0", "timm_dm_nfnet_f0"])
def test_an_unknown_stem_is_refused(name):
    known = "3x3, 3x3-stride2" if "regnet" in name else "4x 3x3, .*3x3, 3x3-stride2"
    with pytest.raises(UsageError, match=rf"stem \(='5x5'\) must be one of {known}"):
        network(name, stem="5x5")


def test_the_authors_weights_need_the_authors_stem():
    weights = to_haiku(network("nfnet_f0"))
    wrong = r"do not fit nfnet_f0: 3 missing \(NFNet/~/stem_conv/w.* extra \(.*stem_conv0"
    with pytest.raises(UsageError, match=wrong):
        load_haiku(network("nfnet_f0", stem="3x3"), weights)
    own = network("nfnet_f0", stem="3x3")
    again = load_haiku(network("nfnet_f0", stem="3x3"), to_haiku(own))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in own.state_dict().items())
