"""The maps inside a network: their levels, pruning, and dilation in the place of strides."""

import copy

import pytest
import torch
from precision import distance
from small_models import CONTROLS, EFFICIENTNETS, SMALL, WITHOUT_NORM, small

import normfree
from normfree import UsageError
from normfree.functional import avg_pool_atrous, avg_pool_same
from normfree.nn import SameConv2d


@pytest.fixture(params=[*SMALL, *CONTROLS, *EFFICIENTNETS])
def model(request):
    torch.manual_seed(0)
    return small(request.param)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (75, 66)])
def test_maps_are_what_feature_info_says(model, size):
    x, seen = torch.randn(2, 3, *size), {}
    for info in model.feature_info:
        hook = lambda module, args, output, name=info["module"]: seen.__setitem__(name, output)  # noqa: E731
        model.get_submodule(info["module"]).register_forward_hook(hook)
    last, maps = model.forward_intermediates(x)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 32]
    for info, level in zip(model.feature_info, maps, strict=True):
        assert torch.equal(level, seen[info["module"]])
        sides = [-(-side // info["reduction"]) for side in size]
        assert level.shape == (2, info["num_chs"], *sides)
    assert torch.equal(last, model.forward_features(x))


@torch.no_grad()
@pytest.mark.parametrize("indices", [2, (0, 1, 2, 3, 4), (1, 3), (-1,), (-2, 0)])
def test_chosen_maps(model, indices):
    x = torch.randn(1, 3, 64, 64)
    every = model.forward_intermediates(x, intermediates_only=True)
    chosen = range(3, 5) if indices == 2 else sorted(i % 5 for i in indices)
    for early in (False, True):
        maps = model.forward_intermediates(x, indices, stop_early=early, intermediates_only=True)
        assert len(maps) == len(chosen)
        assert all(torch.equal(level, every[i]) for level, i in zip(maps, chosen, strict=True))


@pytest.mark.parametrize("index", range(5))
def test_pruned_networks_give_the_same_map_and_nothing_else(model, index):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, [index], intermediates_only=True)[0]
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([index - 5]) == [index]
    level = pruned.forward_intermediates(x, [index], intermediates_only=True)[0]
    assert torch.equal(level, expected)
    features = pruned.forward_features(x)
    if index < 4:
        assert torch.equal(features, expected)
        assert pruned(x).shape == expected.shape
        assert pruned.num_features == expected.shape[1]
    features.sum().backward()
    unused = [name for name, p in pruned.named_parameters() if p.grad is None]
    assert unused == []
    pruned.reset_classifier(7, "avg")
    assert pruned(x).shape == (2, 7)


@torch.no_grad()
def test_pruning_without_the_classifier(model):
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    model.prune_intermediate_layers([4], prune_head=False)
    assert torch.equal(model(x), expected)


def test_refusals(model):
    x = torch.randn(1, 3, 32, 32)
    for indices in ([5], [-6], 6, 0, []):
        with pytest.raises(UsageError, match="indices"):
            model.forward_intermediates(x, indices)
    with pytest.raises(UsageError, match="NHWC"):
        model.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(UsageError, match=r"output_stride \(=12\) must be 8, 16 or 32"):
        small("nf_resnet50", output_stride=12)


@pytest.mark.sample(0.34, by=("name",))
@torch.no_grad()
@pytest.mark.parametrize("name", ["nf_resnet50", *WITHOUT_NORM, "bn_resnet50_v1"])
@pytest.mark.parametrize("size", [(64, 64), (96, 75), (75, 66)])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_what_strides_compute(name, size, output_stride):
    """Without Squeeze-Excite (whose mean is over more places), the strided map is every so many-th place of it."""
    torch.manual_seed(0)
    dilated = small(name, output_stride=output_stride, **dict(squeeze_excite=False) if name.startswith("bn") else {})
    strided = small(name, **dict(squeeze_excite=False) if name.startswith("bn") else {})
    strided.load_state_dict(dilated.state_dict())
    dilated, strided, x = dilated.double(), strided.double(), torch.randn(1, 3, *size, dtype=torch.float64)
    assert [info["reduction"] for info in dilated.feature_info] == [min(r, output_stride) for r in (2, 4, 8, 16, 32)]
    for wide, narrow, info in zip(
        dilated.forward_intermediates(x)[1], strided.forward_intermediates(x)[1], strided.feature_info, strict=True
    ):
        step = max(1, info["reduction"] // output_stride)
        assert wide.shape[-1] == -(-size[1] // min(info["reduction"], output_stride))
        assert distance(wide[..., ::step, ::step], narrow) < 1e-13  # sums in another order, in float64


@torch.no_grad()
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0"])
def test_dilation_with_average_pooled_shortcuts(name):
    torch.manual_seed(0)
    dilated, strided = small(name, output_stride=8), small(name)
    strided.load_state_dict(dilated.state_dict())
    for network in (dilated, strided):
        for module in network.modules():
            if hasattr(module, "squeeze_excite") and module.squeeze_excite is not None:
                module.squeeze_excite.gate_of = lambda mean, dims: mean.new_ones(1, 1, 1, 1)
                module.squeeze_excite.forward = lambda x: x
    x = torch.randn(1, 3, 75, 96, dtype=torch.float64)
    wide, narrow = (
        network.double().forward_intermediates(x, [4], intermediates_only=True)[0] for network in (dilated, strided)
    )
    assert distance(wide[..., ::4, ::4], narrow) < 1e-13


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_one_layer(size, dilation):
    x = torch.randn(1, 2, size * dilation, size * dilation - dilation + 1)
    conv = SameConv2d(2, 3, 3, 2)
    atrous = SameConv2d(2, 3, 3, dilation=dilation, atrous=2)
    atrous.load_state_dict(conv.state_dict())
    grid = x[..., ::dilation, ::dilation]
    assert torch.allclose(atrous(x)[..., :: 2 * dilation, :: 2 * dilation], conv(grid), atol=1e-6)
    assert torch.allclose(normfree.fold(atrous.eval())(x), atrous(x), atol=1e-6)
    pooled = avg_pool_atrous(x, dilation)
    assert pooled.shape == x.shape
    assert torch.allclose(pooled[..., :: 2 * dilation, :: 2 * dilation], avg_pool_same(grid), atol=1e-6)
