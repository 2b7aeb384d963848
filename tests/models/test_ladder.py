"""NFNet's ladder: which network each rung is, and what it costs."""

import json
from pathlib import Path

import pytest
import torch
from small_models import blocks

import normfree
from normfree import UsageError
from normfree.models import NFNET_LADDER, nfnet_rung
from normfree.models.config import ModelConfig

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden", "ladder.json").read_text())
DEPTHS = [f"f{k}" for k in range(8)]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("rung", NFNET_LADDER)
def test_complexity(rung, depth, batch_norm):
    # the file was written from the full networks, without the shortcut of model_info
    name, options = nfnet_rung(rung, depth, batch_norm=batch_norm)
    info = normfree.model_info(name, **options)
    counted = dict(params=info.params, macs=info.macs, macs_executed=info.macs_executed)
    assert counted == GOLDEN[f"{name} {rung}"]


def test_the_baseline_by_hand():
    """F0 at 256 px, written out: stem, one, two, six and three blocks of 256 to 2048 channels, the last convolution."""

    def conv(inputs, outputs, kernel, side, groups=1):
        weights = inputs // groups * outputs * kernel**2
        return weights + 2 * outputs, weights * side**2  # parameters with gain and bias; multiply-adds

    def gate(channels):
        hidden = channels // 2
        return 2 * channels * hidden + hidden + channels, 2 * channels * hidden

    def block(inputs, outputs, side, stride):
        inner = outputs // 2
        yield conv(inputs, inner, 1, side * stride)
        yield conv(inner, inner, 3, side, groups=inner // 128)
        yield conv(inner, outputs, 1, side)
        yield gate(outputs)
        yield 1, 0  # the skip gain

    layers = [conv(3, 16, 3, 128), conv(16, 32, 3, 128), conv(32, 64, 3, 128), conv(64, 128, 3, 64)]
    inputs = 128
    for outputs, side, stride, depth in ((256, 64, 1, 1), (512, 32, 2, 2), (1024, 16, 2, 6), (2048, 8, 2, 3)):
        layers += [conv(inputs, outputs, 1, side), *block(inputs, outputs, side, stride)]
        for _ in range(depth - 1):
            layers += block(outputs, outputs, side, 1)
        inputs = outputs
    layers += [conv(2048, 4096, 1, 8), (4096 * 1000 + 1000, 4096 * 1000)]
    params, macs = (sum(numbers) for numbers in zip(*layers, strict=True))
    assert (params, macs) == (60_809_988, 7_681_048_576)
    info = normfree.model_info("nfnet_f0", **NFNET_LADDER["baseline"])
    assert (info.params, info.macs) == (params, macs)


@pytest.mark.parametrize("rung", NFNET_LADDER)
def test_the_numbers_of_the_guide(rung):
    guide = Path(__file__).parents[2].joinpath("docs", "options.md").read_text()
    (row,) = [line for line in guide.splitlines() if line.startswith(f"| `{rung}` |")]
    costs = [GOLDEN[f"nfnet_f{k} {rung}"] for k in range(4)]
    expected = [f"{cost['params'] / 1e6:.1f} M, {cost['macs'] / 1e9:.2f} B" for cost in costs]
    assert [cell.strip() for cell in row.split("|")][3:7] == expected


@pytest.mark.parametrize("batch_norm", [False, True])
def test_what_a_rung_changes(batch_norm):
    """Widths of a ResNet or NFNet's, one 3x3 convolution or two; everything else is NFNet's."""
    default, ours = (256, 512, 1024, 2048), (256, 512, 1536, 1536)
    expected = {"baseline": (default, 1), "width": (ours, 1), "second_conv": (ours, 2), "default_width": (default, 2)}
    assert list(NFNET_LADDER) == list(expected)
    for rung, (widths, convs) in expected.items():
        name, options = nfnet_rung(rung, "f0", batch_norm=batch_norm)
        with torch.device("meta"):
            model = normfree.create_model(name, **options)
        assert tuple(stage[0].conv2.out_channels for stage in model.stages) == widths
        assert [len(stage) for stage in model.stages] == [1, 2, 6, 3]
        for block in blocks(model):
            spatial = [block.conv1] if block.conv1b is None else [block.conv1, block.conv1b]
            assert len(spatial) == convs
            assert {conv.in_channels // conv.groups for conv in spatial} == {128}
            assert block.conv0.out_channels == block.conv2.out_channels // 2
        assert model.num_features == 2 * widths[-1]


@pytest.mark.parametrize("k", range(8))
def test_nfnet_itself_is_a_rung(k):
    assert nfnet_rung("second_conv", f"f{k}") == (f"nfnet_f{k}", {})
    assert nfnet_rung("second_conv", f"f{k}", batch_norm=True) == (f"bn_nfnet_f{k}", {})


def test_rungs_from_a_recipe_and_what_is_refused():
    name, options = nfnet_rung("baseline", "f0")
    with torch.device("meta"):
        model = ModelConfig(name, options=json.loads(json.dumps(options))).build(num_classes=10, in_chans=3)
    assert model.num_features == 4096
    with pytest.raises(UsageError, match=r"rung \(='mixup'\) must be one of baseline, width, second_conv, default_"):
        nfnet_rung("mixup", "f0")
    with pytest.raises(UsageError, match=r"depth \(='f8'\) must be one of f0, f1"):
        nfnet_rung("width", "f8")
    with pytest.raises(TypeError):
        NFNET_LADDER["width"] = {}
    nfnet_rung("width", "f0")[1]["widths"] = (1,)  # a copy
    assert "widths" not in NFNET_LADDER["width"]


def test_numbers_of_a_model_with_options():
    options = dict(widths=[64, 128, 192, 192], depths=[1, 1, 2, 1], group_width=32, spatial_convs=1)
    info = normfree.model_info("nfnet_f0", **options)
    with torch.device("meta"):
        model = normfree.create_model("nfnet_f0", **options)
    assert info.params == sum(p.numel() for p in model.parameters())
    assert (info.widths, info.depths) == ((64, 128, 192, 192), (1, 1, 2, 1))
    with pytest.raises(UsageError, match="option 'spatial_conv' is unknown for nfnet_f0; did you mean spatial_convs"):
        normfree.model_info("nfnet_f0", spatial_conv=1)
    with pytest.raises(UsageError, match=r"spatial_convs \(=3\) must be one of 1, 2"):
        normfree.model_info("nfnet_f0", spatial_convs=3)
