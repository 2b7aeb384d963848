"""Names and numbers of all variants, and what create_model accepts."""

import json

import golden_data as gd
import pytest
import torch
import torchvision
from small_models import CONTROLS, EFFICIENTNETS, SMALL, small

import normfree
from normfree import UsageError
from normfree.models import NFBlock, count_macs

GOLDEN = json.loads((gd.FOLDER / "complexity.json").read_text())

# docs/facts.md
NFNET_BILLION_MACS = (12.384, 35.539, 62.593, 114.764, 215.241, 289.757, 377.280, 478.782)
NFNET_PARAMS = (71_489_284, 132_634_256, 193_779_228, 254_924_200, 316_069_172, 377_214_144, 438_359_116, 499_504_088)
NF_REGNET = ((8.60, 0.444), (10.02, 0.734), (13.79, 1.099), (18.14, 1.999), (29.32, 4.467), (48.71, 10.561))
SIZES = {  # train and test size
    "nfnet_f": ((192, 256), (224, 320), (256, 352), (320, 416), (384, 512), (416, 544), (448, 576), (480, 608)),
    "nf_regnet_b": (
        *((192, 224), (224, 256), (240, 272), (288, 320), (320, 384)),
        *((384, 456), (448, 528), (512, 600), (600, 672)),
    ),
}
DROPOUT = {
    "nfnet_f": (0.2, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5, 0.5),
    "nf_regnet_b": (0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5),
}


def full(name: str, **options) -> torch.nn.Module:
    with torch.device("meta"):
        return normfree.create_model(name, **options)


def test_list_models():
    assert normfree.list_models() == list(GOLDEN)
    assert normfree.list_models("nfnet_f?") == [f"nfnet_f{k}" for k in range(8)]
    assert len(normfree.list_models("nfnet_f?_plus")) == 8
    assert normfree.list_models("nf_regnet_*") == [f"nf_regnet_b{k}" for k in range(9)]
    assert normfree.list_models("*_efficientnet_*") == [
        *(f"nf_efficientnet_b{k}" for k in range(6)),
        *(f"bn_efficientnet_b{k}" for k in range(8)),
    ]
    for prefix in ("nf_resnet", "nf_seresnet"):
        assert {f"{prefix}{n}" for n in (50, 101, 152, 200, 288, 600)} <= set(normfree.list_models(f"{prefix}*"))
    assert normfree.list_models("resnet*") == []


@pytest.mark.parametrize("name", GOLDEN)
def test_complexity(name):
    # the file was written from the full networks, so this compares the shortcut with them, too
    info = normfree.model_info(name)
    assert dict(params=info.params, macs=info.macs, macs_executed=info.macs_executed) == GOLDEN[name]


@pytest.mark.parametrize(
    "name", ["nfnet_f1", "nf_regnet_b2", "nf_regnet_b5", "nf_seresnet50", "nf_efficientnet_b2", "nf_resnet26_small"]
)
def test_shortcut_equals_a_full_count(name):
    info, model = normfree.model_info(name), full(name)
    assert info.params == sum(p.numel() for p in model.parameters())
    assert info.macs_executed == count_macs(model, (3, info.test_size, info.test_size))
    assert info.macs == info.macs_executed or info.test_size % model.feature_info[-1]["reduction"]


@pytest.mark.parametrize("k", range(8))
def test_nfnet_agrees_with_the_paper_to_the_digit(k):
    info = normfree.model_info(f"nfnet_f{k}")
    assert (round(info.macs / 1e9, 3), info.params) == (NFNET_BILLION_MACS[k], NFNET_PARAMS[k])


@pytest.mark.parametrize("k", range(6))
def test_nf_regnet_agrees_with_the_released_code_to_the_digit(k):
    info = normfree.model_info(f"nf_regnet_b{k}")
    assert (round(info.params / 1e6, 2), round(info.macs / 1e9, 3)) == NF_REGNET[k]


def test_f4_plus():
    info = normfree.model_info("nfnet_f4_plus")
    assert info.widths == (384, 768, 2048, 2048)
    assert (round(info.macs / 1e9, 1), round(info.params / 1e6, 2)) == (333.4, 524.95)


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_nf_resnet_is_torchvisions_and_one_skip_gain_per_block(layers):
    info = normfree.model_info(f"nf_resnet{layers}")
    with torch.device("meta"):
        peer = getattr(torchvision.models, f"resnet{layers}")()
    assert info.params == sum(p.numel() for p in peer.parameters()) + sum(info.depths)
    assert info.macs == count_macs(peer, (3, 224, 224))


@pytest.mark.parametrize("prefix", SIZES)
def test_sizes_and_dropout(prefix):
    infos = [normfree.model_info(f"{prefix}{k}") for k in range(len(SIZES[prefix]))]
    assert tuple((info.train_size, info.test_size) for info in infos) == SIZES[prefix]
    assert tuple(info.drop_rate for info in infos) == DROPOUT[prefix]
    assert {info.stochdepth_rate for info in infos} == {0.25 if prefix == "nfnet_f" else 0.1}


def test_count_macs_by_hand():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 5),
    )
    assert count_macs(model.train(), (3, 8, 8)) == 4 * 4 * 8 * 27 + 128 * 5
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", [*SMALL, *CONTROLS, *EFFICIENTNETS])
def test_no_classes_give_pooled_features(name):
    model = small(name, num_classes=0)
    x = torch.randn(2, 3, 64, 64)
    out = model(x)
    assert out.shape == (2, model.num_features)
    assert torch.equal(out, model.forward_features(x).mean((2, 3)))
    assert not any(name.startswith("head") for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", [*SMALL, *CONTROLS, *EFFICIENTNETS])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels(name, in_chans):
    model = small(name, in_chans=in_chans)
    assert model(torch.randn(2, in_chans, 64, 64)).shape == (2, 10)
    assert (
        model.default_cfg["input_size"][0]
        == len(model.default_cfg["mean"])
        == len(model.default_cfg["std"])
        == in_chans
    )


@pytest.mark.parametrize("name", SMALL)
def test_activation_by_name_and_by_callable(name):
    x = torch.randn(1, 3, 32, 32)
    by_name, by_callable = small(name, activation="tanh"), small(name, activation=torch.tanh)
    by_callable.load_state_dict(by_name.state_dict())
    assert by_name.act.gamma == normfree.gain.RELEASED_GAINS["tanh"]
    assert by_callable.act.gamma == normfree.activation_gain("tanh")
    exact = small(name, activation="tanh", gamma=by_callable.act.gamma)
    exact.load_state_dict(by_name.state_dict())
    assert torch.equal(by_callable(x), exact(x))
    assert not torch.equal(by_callable(x), by_name(x))  # gamma differs by 0.1 %


def test_overrides_reach_the_network():
    model = full("nf_resnet50", depths=(1, 1, 1), widths=(64, 128, 256), alpha=0.3, squeeze_excite=True, stem="3x3")
    blocks = [module for module in model.modules() if isinstance(module, NFBlock)]
    assert [block.out_channels for block in blocks] == [64, 128, 256]
    assert {block.skip_init.alpha for block in blocks} == {0.3}
    assert blocks[1].beta == pytest.approx((1 + 0.3**2) ** 0.5, rel=1e-12)  # float64 rounding
    assert all(block.squeeze_excite is not None for block in blocks)


def test_variants_defaults_hold_unless_overridden():
    assert full("nfnet_f0").head.dropout.p == 0.2
    assert full("nfnet_f0", drop_rate=0.0).head.dropout.p == 0.0
    rates = [m.stochdepth.rate for m in full("nfnet_f0", stochdepth_rate=0.6).modules() if isinstance(m, NFBlock)]
    assert rates == pytest.approx([0.6 * i / 12 for i in range(12)], rel=1e-12)  # rate * i / n, as released


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (dict(name="nfnet_g0"), r"'nfnet_g0' is unknown; did you mean .*nfnet_f0"),
        (dict(name="nf_resnet5"), r"nf_resnet50"),
        (dict(name="zzz"), r"'zzz' is unknown"),
        (dict(droprate=0.1), r"'droprate' is unknown for nfnet_f0; did you mean drop_rate"),
        (dict(activaton="relu"), r"did you mean activation"),
        (dict(train_size=64), r"'train_size' is unknown"),
        (dict(self=1), r"'self' is unknown"),
        (dict(activation="rellu"), r"'rellu'.*relu"),
        (dict(num_classes=-1), r"num_classes \(=-1\)"),
        (dict(in_chans=0), r"in_channels \(=0\)"),
        (dict(drop_rate=1.0), r"drop_rate \(=1.0\)"),
        (dict(stochdepth_rate=-0.1), r"stochastic depth rate \(="),
        (dict(depths=(1, 1)), r"depths \(1, 1\)"),
        (dict(group_width=4096), r"group_width \(=4096\)"),
        (dict(global_pool="median"), r"global_pool \(='median'\)"),
        (dict(global_pool=""), r"num_classes \(=1000\)"),
        (dict(name="nf_resnet50", stem="5x5"), r"stem \(='5x5'\)"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_options_are_quoted(options, quoted):
    with pytest.raises(UsageError, match=quoted):
        full(**dict(name="nfnet_f0") | options)


def test_unknown_name_in_model_info():
    with pytest.raises(UsageError, match="nf_regnet_b0"):
        normfree.model_info("nfregnet_b0")
