"""What a timm user expects of a model."""

import re

import pytest
import torch
from small_models import CONTROLS, EFFICIENTNETS, SMALL, batch_norms, blocks, grads, shake, small
from timm.data import resolve_data_config
from timm.models import group_parameters

import normfree


@pytest.fixture(params=[*SMALL, *CONTROLS, *EFFICIENTNETS])
def name(request):
    return request.param


def test_forward_is_head_of_features(name):
    model, x = small(name), torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 2)
    assert model.head_hidden_size == model.num_features
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, features.mean((2, 3)))
    seen = model.bias2(pooled) if name.startswith("fixup") else pooled  # a scalar bias of its own in front
    assert torch.equal(model.forward_head(features), model.get_classifier()(seen))
    assert torch.equal(model(x), model.forward_head(features))


@pytest.mark.parametrize("size", [64, 75])
def test_feature_info_tells_strides_and_channels(name, size):
    model, maps = small(name), {}
    for module_name, module in model.named_modules():
        if module_name in {info["module"] for info in model.feature_info}:
            module.register_forward_hook(lambda m, a, out, n=module_name: maps.__setitem__(n, out.shape))
    model(torch.randn(1, 3, size, size))
    side = lambda info: -(-size // info["reduction"])  # noqa: E731
    assert maps == {i["module"]: (1, i["num_chs"], side(i), side(i)) for i in model.feature_info}
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 32]


def test_small_stem_has_stride_one():
    model = normfree.create_model("nf_resnet26_small", num_classes=10)
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4]
    assert model.forward_features(torch.randn(1, 3, 8, 8)).shape == (1, 256, 2, 2)


def test_reset_classifier(name):
    model, x = small(name), torch.randn(2, 3, 32, 32)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(7)
    assert isinstance(model.get_classifier(), torch.nn.Linear)
    assert model.get_classifier() is model.head.fc
    assert (model.num_classes, model(x).shape) == (7, (2, 7))
    model.reset_classifier(0)
    assert torch.equal(model(x), features)
    model.reset_classifier(0, global_pool="")
    assert torch.equal(model(x), model.forward_features(x))


@pytest.mark.parametrize("path", [(5,), (0, 5)])
def test_reset_classifier_keeps_the_dtype(path):
    model = small("nf_resnet50").double()
    for num_classes in path:
        model.reset_classifier(num_classes)
    assert model(torch.randn(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 5)


@pytest.mark.parametrize("path", [(5,), (0, 5)])
def test_reset_classifier_keeps_the_device(path):
    with torch.device("meta"):
        model = normfree.create_model("nf_resnet26_small")
    for num_classes in path:
        model.reset_classifier(num_classes)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_gradient_checkpointing_changes_nothing(name):
    model = small(name, stochdepth_rate=0.5, drop_rate=0.5).train()
    x = torch.randn(2, 3, 32, 32)

    def run():
        torch.manual_seed(1)  # the same examples dropped
        model.zero_grad()
        out = model(x)
        out.square().sum().backward()
        return out, grads(model)

    expected = run()
    model.set_grad_checkpointing()
    recomputed = []
    for block in blocks(model):
        block.register_forward_pre_hook(lambda m, args: recomputed.append(m))
    got = run()
    assert len(recomputed) == 2 * len(set(recomputed))  # each block runs once more
    torch.testing.assert_close(got, expected, rtol=0, atol=0)  # the same operations in the same order
    recomputed.clear()
    model.set_grad_checkpointing(False)
    run()
    assert len(recomputed) == len(set(recomputed))


def test_gradient_checkpointing_of_single_stages(name):
    model, recomputed = small(name).train(), []
    model.set_grad_checkpointing(True, [1])
    for block in blocks(model):
        block.register_forward_pre_hook(lambda m, args: recomputed.append(m))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    twice = {m for m in recomputed if recomputed.count(m) == 2}
    assert twice == set(model.stages[1])
    with pytest.raises(normfree.UsageError, match="stage 9 is not there"):
        model.set_grad_checkpointing(True, [9])


def test_no_weight_decay_names_the_vectors(name):
    model = small(name)
    vectors = {n for n, p in model.named_parameters() if p.ndim == 1}
    assert model.no_weight_decay() == vectors
    if name.startswith("nf"):
        assert {n.rsplit(".", 1)[1] for n in vectors} | {"skip_gain"} == {"gain", "bias", "skip_gain"}
    assert {n.rsplit(".", 1)[1] for n, _ in model.named_parameters() if n not in vectors} == {"weight"}


@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_covers_every_parameter(name, coarse):
    model = small(name)
    groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert groups.keys() == dict(model.named_parameters()).keys()
    stages = len(model.stages)
    blocks = sum(len(stage) for stage in model.stages)
    assert sorted(set(groups.values())) == list(range(2 + (stages if coarse else blocks)))  # stem, blocks, head
    order = [groups[n] for n, _ in model.named_parameters()]
    assert order == sorted(order)  # named_parameters goes from the stem to the head
    assert {groups[n] for n in groups if n.startswith("stem")} == {0}
    heads = {groups[n] for n in groups if n.startswith("head")}
    assert heads == {max(groups.values())}


def test_group_matcher_matches_each_parameter_but_the_heads_once(name):
    model = small(name)
    spec = model.group_matcher()
    patterns = [spec["stem"]] + [pattern for pattern, _ in spec["blocks"]]
    for parameter, _ in model.named_parameters():
        matches = sum(bool(re.match(pattern, parameter)) for pattern in patterns)
        last = parameter.startswith(("head.fc", "bias2"))  # unmatched: timm's last group
        assert matches == (0 if last else 1), parameter


def test_default_cfg(name):
    model, info = small(name, num_classes=7), normfree.model_info(name)
    cfg = model.default_cfg
    assert cfg is model.pretrained_cfg
    assert cfg["architecture"] == name
    assert cfg["num_classes"] == 7
    kind = normfree.nn.WSConv2d if name.startswith("nf") else normfree.nn.SameConv2d
    assert type(model.get_submodule(cfg["first_conv"])) is kind
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    with torch.no_grad():
        maps = model.forward_features(torch.randn(1, *cfg["input_size"]))
    assert maps.shape[2:] == cfg["pool_size"]
    config = resolve_data_config(pretrained_cfg=cfg, use_test_size=True)
    assert config["input_size"] == (3, info.test_size, info.test_size)
    assert (config["mean"], config["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    # the authors resize NFNets' images to size + 32 and crop the centre; of all others they crop the middle square
    assert (config["interpolation"], config["crop_mode"]) == (
        "bicubic",
        "squash" if name.startswith("nfnet") else "center",
    )
    assert int(info.test_size / config["crop_pct"]) == info.test_size + 32


def test_dropout_and_stochastic_depth_act_in_training_only(name):
    x = torch.randn(4, 3, 32, 32)
    model = small(name)
    expected = model(x)
    for rates in (dict(drop_rate=0.5), dict(stochdepth_rate=0.9)):
        noisy = small(name, **rates)
        noisy.load_state_dict(model.state_dict())
        assert torch.equal(noisy(x), expected)
        assert not torch.allclose(noisy.train()(x), noisy(x))
    if not batch_norms(model):
        assert torch.equal(model.train()(x), expected)


def test_stochastic_depth_drops_the_branch_and_keeps_the_shortcut(name):
    model = small(name, stochdepth_rate=0.5)
    block = next(b for b in blocks(model) if (b.has_skip if name in EFFICIENTNETS else b.conv_shortcut is None))
    assert 0 < block.stochdepth.rate < 0.5
    x = torch.randn(64, block.conv0.in_channels, 4, 4)
    kept, shortcut = block(x), x
    if name.startswith("fixup"):
        shortcut = block.act(block.bias1a(x))
    elif name.endswith("v1"):
        shortcut = block.act(x)
    block.stochdepth.train()
    block.stochdepth.rate = 0.5
    out = block(x)
    dropped = (out == shortcut).flatten(1).all(1)
    assert 10 < dropped.sum() < 54  # 32 expected, five standard deviations of 4
    if block.stochdepth.scaling == "branch":
        kept = shortcut + 2 * (kept - shortcut)
    torch.testing.assert_close(out[~dropped], kept[~dropped], rtol=1e-5, atol=1e-5)  # float32 merge order


def test_state_dict_round_trip(name):
    model, x = small(name), torch.randn(1, 3, 32, 32)
    torch.manual_seed(1)
    other = shake(small(name))
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
