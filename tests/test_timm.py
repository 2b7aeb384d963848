"""Our models through timm's front door: registry, features, hub files, data configuration."""

import subprocess
import sys

import pytest
import timm
import torch
from precision import assert_no_farther, in_float64
from small_models import shake
from timm.data import resolve_data_config
from timm.models import save_for_hf

import normfree
import normfree.timm
from normfree.models.published import PUBLISHED
from normfree.models.registry import default_cfg
from normfree.weights import to_timm

SMALL = "normfree_timm_test_nfnet"


def test_every_model_is_registered_and_hides_none_of_timms():
    ours = {name.partition(".")[0] for name in timm.list_models(module="timm")}
    assert ours == {f"normfree_{name}" for name in normfree.list_models()}
    assert type(timm.create_model("test_nfnet")).__module__ == "timm.models.nfnet"
    assert isinstance(timm.create_model(SMALL), normfree.models.ResidualNet)


@pytest.mark.parametrize(
    "name", [name for part in ("*f0", "*50*", "*_efficientnet_b0") for name in normfree.list_models(part)] + [SMALL[9:]]
)
def test_configurations(name):
    cfg = timm.get_pretrained_cfg(f"normfree_{name}")
    with torch.device("meta"):
        model = timm.create_model(f"normfree_{name}")
        maps = model.forward_features(torch.randn(1, *cfg.input_size))
    assert maps.shape[2:] == cfg.pool_size
    assert model.get_submodule(cfg.first_conv).in_channels == model.in_chans == 3
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    assert cfg.license == "apache-2.0"
    assert cfg.origin_url.startswith("https://github.com/")
    info = normfree.model_info(name)
    assert (cfg.input_size[1], cfg.test_input_size[1]) == (info.train_size, info.test_size)


@pytest.mark.parametrize("name", normfree.list_models())
def test_timm_resizes_to_32_pixels_more(name):
    cfg = default_cfg(name)
    if name in PUBLISHED and not PUBLISHED[name].squash:
        assert cfg["crop_mode"] == "center"
    else:
        for test, key in ((False, "input_size"), (True, "test_input_size")):
            config = resolve_data_config(pretrained_cfg=cfg, use_test_size=test)
            assert int(cfg[key][1] / config["crop_pct"]) == cfg[key][1] + 32  # timm rounds down
    if name.startswith("timm_"):
        theirs = timm.get_pretrained_cfg(name.removeprefix("timm_"))
        assert (cfg.get("hf_hub_id") is None) == (not theirs.has_weights)
        assert cfg.get("hf_hub_id") == theirs.hf_hub_id
        if theirs.has_weights:
            assert cfg["crop_mode"] == theirs.crop_mode
            assert cfg["mean"] == theirs.mean


@torch.no_grad()
def test_options():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 64, 64)
    model = timm.create_model(SMALL, in_chans=1, num_classes=7, drop_rate=0.1, drop_path_rate=0.2).eval()
    assert model(x).shape == (2, 7)
    assert model.head.dropout.p == 0.1
    assert 0 < model.stages[-1][-1].stochdepth.rate < 0.2
    assert timm.create_model(SMALL, in_chans=1, num_classes=0)(x).shape == (2, 192)
    assert timm.create_model(SMALL, in_chans=1, num_classes=0, global_pool="")(x).shape == (2, 192, 2, 2)
    assert timm.create_model(SMALL, dtype=torch.bfloat16, device="meta").head.fc.weight.dtype == torch.bfloat16
    with pytest.raises(TypeError, match="depthz"):
        timm.create_model(SMALL, depthz=(1, 1, 1, 1))


@torch.no_grad()
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax"])
def test_pooling(pool):
    torch.manual_seed(0)
    model, x = timm.create_model(SMALL, global_pool=pool).eval(), torch.randn(2, 3, 64, 64)
    maps = model.forward_features(x)
    expected = {"avg": maps.mean((2, 3)), "max": maps.amax((2, 3))}
    expected["avgmax"] = (expected["avg"] + expected["max"]) / 2
    assert torch.equal(model.forward_head(maps, pre_logits=True), expected[pool])
    model.reset_classifier(5)
    assert torch.equal(model.forward_head(maps, pre_logits=True), expected[pool])
    model.reset_classifier(0, "")
    model.reset_classifier(3)  # a classifier needs pooling
    assert torch.equal(model.forward_head(maps, pre_logits=True), expected["avg"])


@torch.no_grad()
@pytest.mark.parametrize(("output_stride", "reductions"), [(8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16])])
def test_features_only(output_stride, reductions):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 96)
    net = timm.create_model(SMALL, features_only=True, output_stride=output_stride).eval()
    assert net.feature_info.reduction() == reductions
    expected = [(1, c, 64 // r, 96 // r) for c, r in zip(net.feature_info.channels(), reductions, strict=True)]
    assert [tuple(level.shape) for level in net(x)] == expected
    some = timm.create_model(SMALL, features_only=True, out_indices=(1, 3)).eval()
    assert some.feature_info.reduction() == [4, 16]
    assert len(some.model.stages) == 3  # what lies behind is gone
    folded, exact = normfree.fold(some), in_float64(some)
    for levels in zip(folded(x), some(x), exact(x.double()), strict=True):
        assert_no_farther(*levels)


@torch.no_grad()
@pytest.mark.parametrize("way", ["hook", "list", "getter"])
def test_every_way_of_timm_to_take_features_takes_the_same(way):
    options = dict(depths=(1, 1, 1, 1), widths=(32, 48, 64, 64), group_width=8, skip_gain=0.5)
    torch.manual_seed(0)
    model = timm.create_model("normfree_nfnet_f0", **options).eval()
    torch.manual_seed(0)
    net = timm.create_model("normfree_nfnet_f0", features_only=True, feature_cls=way, **options).eval()
    x = torch.randn(1, 3, 64, 64)
    for level, other in zip(net(x), model.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(level, other)


def test_a_saved_model_comes_back(tmp_path):
    torch.manual_seed(0)
    model = shake(timm.create_model(SMALL, num_classes=5))
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.warns(UserWarning, match="adapted to 1 channel instead of 3, with a new classifier .3 classes"):
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1)
    assert other.head.fc.weight.shape == (3, 192)


def written(folder, form: str, **options):
    """A file of timm's smallest network, and the network."""
    torch.manual_seed(0)
    model = shake(normfree.create_model(SMALL[9:], **options))
    state = dict(model.state_dict()) if form == "ours" else to_timm(model)
    path = folder / f"{form}.pth.tar"
    torch.save(dict(state_dict={f"module.{name}": value for name, value in state.items()}, epoch=1), path)
    return path, model


def by_overlay(path, **options):
    return timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **options)


def by_checkpoint(path, **options):
    return timm.create_model(SMALL, checkpoint_path=str(path), **options)


@pytest.mark.parametrize("form", ["ours", "timms"])
@pytest.mark.parametrize("load", [by_overlay, by_checkpoint])
def test_a_file_says_how_many_classes(load, form, tmp_path):
    path, model = written(tmp_path, form, num_classes=10)
    again = load(path)
    assert (again.num_classes, again.pretrained_cfg["num_classes"]) == (10, 10)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.warns(UserWarning, match="with a new classifier .5 classes instead of 10.$"):
        other = load(path, num_classes=5)
    assert other.num_classes == 5
    assert torch.equal(other.stem.conv0.weight, model.stem.conv0.weight)
    assert load(path, num_classes=0).num_classes == 0  # nothing is new, nothing is said
    assert again.pretrained_cfg["first_conv"] == "stem.conv0"
    assert "state_dict" not in again.pretrained_cfg  # tensors that nobody needs any more


@torch.no_grad()
@pytest.mark.parametrize("load", [by_overlay, by_checkpoint])
def test_a_file_of_other_channels(load, tmp_path):
    path, model = written(tmp_path, "ours")
    with pytest.warns(UserWarning, match="first convolution adapted to 1 channel instead of 3$"):
        grey = load(path, in_chans=1).eval()
    x = torch.randn(1, 1, 64, 64)
    expected = model.eval()(x.expand(-1, 3, -1, -1))
    assert ((grey(x) - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_a_file_of_one_channel_and_features(tmp_path):
    path, model = written(tmp_path, "ours", in_chans=1, num_classes=7)
    grey = by_overlay(path)
    assert (grey.in_chans, grey.num_classes, grey.pretrained_cfg["mean"]) == (1, 7, (0.5,))
    features = by_overlay(path, features_only=True)
    assert torch.equal(features.state_dict()["model.stem.conv0.weight"], model.stem.conv0.weight)


def test_timms_own_models_load_as_before(tmp_path):
    plain = timm.create_model("test_nfnet", num_classes=3)
    torch.save(plain.state_dict(), tmp_path / "a.pth")
    again = timm.create_model("test_nfnet", num_classes=3, checkpoint_path=str(tmp_path / "a.pth"))
    assert torch.equal(again.head.fc.weight, plain.head.fc.weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        timm.create_model("test_nfnet", checkpoint_path=str(tmp_path / "a.pth"))


def test_weights_with_timms_names_are_converted(tmp_path):
    torch.manual_seed(0)
    model = shake(timm.create_model(SMALL))
    again = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=dict(state_dict=to_timm(model)))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_timm_whose_private_loader_is_gone_is_imported():
    code = (
        "import timm.models._factory as factory; del factory.load_checkpoint; import normfree.timm, timm; "
        f"print(type(timm.create_model('{SMALL}')).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout.split(), run.stderr) == (["TimmNFNet"], "")
