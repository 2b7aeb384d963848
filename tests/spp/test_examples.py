"""Mean, pixel norm and cosine of activations: against numpy's formulas, in any layout and size; what they diagnose."""

import json
import math

import numpy as np
import pytest
import timm
import torch
from spp.hand_made import LAYOUTS, Net
from torch import nn

import normfree
from normfree.spp import SPP, Row, record
from normfree.spp.examples import likeness

FLOAT32 = 1e-5  # of sums of a thousand float32 values


def cosine(x: torch.Tensor) -> float:
    """Mean over all pairs of different examples, pair by pair, in float64."""
    rows = x.double().flatten(1).numpy()
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    count = len(units)
    return float(np.mean([units[i] @ units[j] for i in range(count) for j in range(count) if i != j]))


def pixel_norm(x: torch.Tensor, dim: int = 1) -> float:
    """As NF-ResNets, appendix G.2, write it of NHWC activations."""
    return float(np.mean(np.linalg.norm(x.double().numpy(), axis=dim)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_are_numpys(layout, dtype):
    how = LAYOUTS[layout]
    torch.manual_seed(0)
    x = (how.input() + 0.3).to(dtype)
    alike = likeness(x, how.dim)
    assert alike.pixel_norm == pytest.approx(pixel_norm(x, how.dim), rel=FLOAT32)
    if len(x) == 1:
        assert alike.cosine is None
    else:
        assert alike.cosine == pytest.approx(cosine(x), abs=FLOAT32)


@pytest.mark.parametrize("shape", [(2, 5, 300, 301), (7, 3, 4, 4), (16, 700, 12, 12), (5, 9)])
def test_large_and_odd_sizes(shape):
    x = torch.randn(shape, generator=generator()) + 0.1
    assert likeness(x, 1).pixel_norm == pytest.approx(pixel_norm(x), rel=FLOAT32)
    assert likeness(x, 1).cosine == pytest.approx(cosine(x), abs=FLOAT32)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_the_size_of_a_signal_does_not_matter(size):
    x = torch.randn(4, 6, 5, 5, generator=generator()) + 1
    alike = likeness(x * size, 1)
    assert alike.pixel_norm == pytest.approx(size * likeness(x, 1).pixel_norm, rel=FLOAT32)
    assert alike.cosine == pytest.approx(likeness(x, 1).cosine, abs=FLOAT32)


def test_zeros_and_what_is_not_finite():
    x = torch.randn(4, 6, 5, 5, generator=generator())
    assert likeness(0 * x, 1) == likeness(torch.zeros(4, 6, 5, 5), 1)
    assert (likeness(0 * x, 1).pixel_norm, likeness(0 * x, 1).cosine) == (0.0, None)
    x[1] = 0
    assert likeness(x, 1).cosine == pytest.approx(cosine(x[[0, 2, 3]]), abs=FLOAT32)  # of the others
    x[2, 0, 0, 0] = math.inf
    assert math.isinf(likeness(x, 1).pixel_norm)
    assert math.isnan(likeness(x, 1).cosine)


def test_identical_opposite_and_orthogonal_examples():
    one = torch.randn(1, 6, 5, 5, generator=generator())
    assert likeness(one.repeat(5, 1, 1, 1), 1).cosine == pytest.approx(1, abs=FLOAT32)
    assert likeness(torch.cat([one, -3 * one]), 1).cosine == pytest.approx(-1, abs=FLOAT32)
    assert likeness(torch.eye(4), 1).cosine == pytest.approx(0, abs=FLOAT32)


def test_theory_of_noise_with_means():
    """Channels of mean m and variance v, independent over examples: m^2 / (m^2 + v); the norm is near its root."""
    mean = torch.linspace(-1, 1, 64).view(1, -1, 1, 1)
    x = torch.randn(8, 64, 32, 32, generator=generator()) + mean
    square = mean.square().mean().item()
    alike = likeness(x, 1)
    assert alike.cosine == pytest.approx(square / (square + 1), rel=0.02)  # one percent of noise
    assert alike.pixel_norm == pytest.approx((64 * (square + 1)) ** 0.5, rel=0.02)  # below it by 1/4 of 1/64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_has_them(layout):
    how = LAYOUTS[layout]
    torch.manual_seed(0)
    net = Net(how, lambda b, x, f: x + f)
    x = how.input()
    spp = record(net, x)
    for row, block in zip(spp.rows, net.blocks, strict=True):
        output = block.kept[2]
        assert row.avg_mean == pytest.approx(output.double().mean().item(), abs=FLOAT32)
        assert row.pixel_norm == pytest.approx(pixel_norm(output, how.dim), rel=FLOAT32)
        assert row.cosine == (None if len(x) == 1 else pytest.approx(cosine(output), abs=FLOAT32))
    assert spp.stem.pixel_norm == pytest.approx(pixel_norm(net.blocks[0].kept[0], how.dim), rel=FLOAT32)
    assert spp.cosine == [row.cosine for row in spp.rows]
    assert spp.pixel_norm == [row.pixel_norm for row in spp.rows]
    assert spp.avg_mean == [row.avg_mean for row in spp.rows]


def test_activated_outputs_and_the_networks_output():
    torch.manual_seed(0)
    net = Net(LAYOUTS["NCHW"], lambda b, x, f: torch.relu(x + f))
    model = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    x = torch.randn(4, 3, 8, 8)
    spp = record(model, x)
    for row in spp.rows:
        assert row.avg_mean > 0  # of the activated sum, which is what leaves the block
        assert row.cosine > 0
    with torch.no_grad():
        assert spp.output.cosine == pytest.approx(cosine(model(x)), abs=FLOAT32)


def test_files_from_before_are_read():
    content = json.loads(record(Net(LAYOUTS["NCHW"], lambda b, x, f: x + f), (4, 3, 8, 8)).to_json())
    for row in [content["stem"], content["output"], *content["rows"]]:
        for name in ("avg_mean", "pixel_norm", "cosine"):
            del row[name]
    spp = SPP.from_dict(content)
    assert {row.cosine for row in spp.rows} == {row.pixel_norm for row in spp.rows} == {None}
    assert spp.diagnose() == SPP.from_dict(content).diagnose()
    assert "cosine" in str(spp).splitlines()[1]


def test_inputs_that_are_alike_are_not_compared():
    torch.manual_seed(0)
    net, one = Net(LAYOUTS["NCHW"], lambda b, x, f: x + f), torch.randn(1, 3, 8, 8)
    for noise in (0.0, 1e-4):
        spp = record(net, one + noise * torch.randn(4, 3, 8, 8))
        assert {row.cosine for row in [spp.stem, *spp.rows]} == {None}
        assert spp.rows[0].pixel_norm > 0


def test_only_the_batch_is_compared():
    class Tokens(nn.Module):
        """(N, C, H, W) -> (H * W, N, C), as sequences come first in some networks."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            x = x.flatten(2).permute(2, 0, 1)
            return x + self.layer(x)

    spp = record(nn.Sequential(nn.Conv2d(3, 8, 1), Tokens()), (4, 3, 5, 5))
    assert spp.rows[0].cosine is None


def test_means_make_examples_alike_and_standardized_weights_do_not():
    """NFNets, section 2: the inner product of independent examples is large where means are not removed."""
    torch.manual_seed(0)
    how = dict(num_classes=10, alpha=1.0, skip_gain=1.0)
    free = record(normfree.create_model("nf_resnet50", **how), (4, 3, 64, 64))
    shifted = record(normfree.create_model("nf_resnet50", **how, standardize=False), (4, 3, 64, 64))
    assert max(free.cosine) < 0.2
    assert min(shifted.cosine) > 0.8
    (finding,) = shifted.diagnose()
    assert finding.kind == "mean shift"
    assert f"different examples have a mean cosine of {max(shifted.cosine):.2f} at " in finding.message


def blind(model: nn.Module, name: str) -> nn.Module:
    """The network with a layer's weight at 0: behind its bias, nothing of the input is left."""
    nn.init.zeros_(model.get_parameter(f"{name}.weight"))
    nn.init.constant_(model.get_parameter(f"{name}.bias"), 0.5)
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_a_network_that_does_not_see_its_input(trained):
    """Its positions differ, so that every channel varies, and every example is the same."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    assert record(vit, (4, 3, 64, 64)).diagnose(trained=trained) == []
    spp = record(blind(vit, "patch_embed.proj"), (4, 3, 64, 64))
    assert min(spp.avg_var) > 0
    finding = spp.diagnose(trained=trained)[0]
    assert finding.kind == "examples alike"
    assert finding.blocks == ("stem", *spp.blocks)
    assert "stem are nearly the same for different examples: their mean cosine is 1.000000" in finding.message


def test_a_stem_that_is_off_in_a_convolutional_network():
    torch.manual_seed(0)
    model = normfree.create_model("nf_resnet50", num_classes=10, skip_gain=1.0)
    with torch.no_grad():
        model.stem.conv.gain.zero_()
        model.stem.conv.bias.fill_(0.5)
    finding = record(model, (4, 3, 64, 64)).diagnose()[0]
    assert finding.kind in ("examples alike", "no signal")


def test_a_first_block_that_loses_the_input():
    stem = Row("stem", 0, avg_var=1.0, cosine=0.1)
    rows = [Row(str(i), 0, avg_var=1.0, res_avg_var=1.0, shape=(8, 4, 4), cosine=1.0) for i in range(3)]
    assert [finding.blocks for finding in SPP("net", rows, stem).diagnose()] == [("0", "1", "2")]


def test_a_class_token_is_no_fault():
    """CaiT's class token has seen no example at first: the last two rows are the same for all."""
    torch.manual_seed(0)
    spp = record(timm.create_model("cait_xxs24_224", img_size=64, num_classes=10), (2, 3, 64, 64))
    assert spp.rows[-1].cosine > 0.9999
    assert spp.diagnose() == []


def test_one_block_that_is_alike_is_no_fault_where_later_ones_are_not():
    rows = [Row(str(i), 0, avg_var=1.0, res_avg_var=1.0, shape=(8, 4, 4), cosine=c) for i, c in enumerate((1.0, 0.5))]
    assert SPP("net", rows).diagnose() == []
    rows[1].cosine = 1.0
    assert [finding.blocks for finding in SPP("net", rows).diagnose()] == [("0", "1")]


def test_examples_that_become_alike_little_by_little():
    cosines = (0.5, 0.9, 0.998, 0.99991, 0.99999)
    rows = [Row(str(i), 0, avg_var=1.0, res_avg_var=1.0, shape=(8 << i, 4, 4), cosine=c) for i, c in enumerate(cosines)]
    assert [finding.blocks for finding in SPP("net", rows).diagnose()] == [("3", "4")]
