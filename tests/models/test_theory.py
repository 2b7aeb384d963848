"""What the papers say must hold for any such network: no example sees another; variance grows as predicted."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, WITHOUT_NORM, grads, small

import normfree
from normfree.functional import expected_variances
from normfree.models import NFBlock

DOUBLE = torch.float64


def blocks(model):
    return [module for module in model.modules() if isinstance(module, NFBlock)]


@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0", *WITHOUT_NORM])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_gradient_of_a_batch_is_the_mean_of_its_micro_batches_gradients(name, micro_batch):
    model = small(name).train().double()
    x, labels = torch.randn(6, 3, 33, 33, dtype=DOUBLE), torch.arange(6)

    def gradient(part):
        model.zero_grad()
        F.cross_entropy(model(x[part]), labels[part]).backward()
        return grads(model)

    whole = gradient(slice(0, 6))
    parts = [gradient(slice(start, start + micro_batch)) for start in range(0, 6, micro_batch)]
    for key, expected in whole.items():
        assert expected.any(), key
        mean = sum(part[key] for part in parts) / len(parts)
        # float64 sums over a few thousand places in another order; a batch statistic would show in the first digits
        assert (mean - expected).norm() <= 1e-12 * expected.norm(), key


@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0", *WITHOUT_NORM])
def test_no_example_sees_another(name):
    model = small(name).train().double()
    x = torch.randn(3, 3, 33, 33, dtype=DOUBLE)
    expected = model(x)
    x[1:] = 100 * torch.randn(2, 3, 33, 33, dtype=DOUBLE) + 7
    changed = model(x)
    assert not torch.allclose(changed[1:], expected[1:])
    # float64 rounding, should a library block its sums by the batch; it is bit for bit on most machines
    torch.testing.assert_close(changed[0], expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(model(x[:1])[0], expected[0], rtol=1e-12, atol=0)


def channel_variance(x):
    """Average over channels of the variance over batch and space."""
    return x.detach().transpose(0, 1).flatten(1).var(1, correction=0).mean().item()


@torch.no_grad()
def measured_variances(model, x):
    """Variance of each block's output at skip gain 1."""
    measured = []
    for block in blocks(model):
        block.skip_init.skip_gain.fill_(1.0)
        block.register_forward_hook(lambda m, a, out: measured.append(channel_variance(out)))
    model(x)
    return measured


def predicted_variances(depths, alpha=0.2):
    """Variance of each block's output: what the next block of the stage, were there one, would take in."""
    return [variance for depth in depths for variance in expected_variances([depth + 1], alpha)[0][1:]]


def test_prediction_restarts_at_each_transition():
    assert predicted_variances((3, 2)) == pytest.approx([1.04, 1.08, 1.12, 1.04, 1.08], rel=1e-12)  # float64 rounding


def test_beta_is_the_square_root_of_the_predicted_variance():
    depths = (3, 4, 6, 3)
    model = normfree.create_model("nf_resnet50")
    expected = [math.sqrt(variance) for stage in expected_variances(depths) for variance in stage]
    assert [block.beta for block in blocks(model)] == pytest.approx(expected, rel=1e-12)  # float64 rounding
    for block in blocks(model):  # and stands in the weight, with gamma
        assert block.conv0.input_scale == pytest.approx(block.act.gamma / block.beta, rel=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_variance_grows_as_predicted(seed):
    torch.manual_seed(seed)
    model = normfree.create_model("nf_resnet50").eval()
    measured = measured_variances(model, torch.randn(4, 3, 224, 224))
    # 10 %; the largest deviation over eight seeds: 6 %, in the last stage, whose maps are 7 x 7
    assert measured == pytest.approx(predicted_variances((3, 4, 6, 3)), rel=0.10)


def test_variance_grows_as_predicted_without_max_pooling_and_for_larger_branches():
    options = dict(alpha=0.5, stem="3x3", widths=(256, 512, 1024), depths=(4, 4, 4))
    model = normfree.create_model("nf_resnet50", **options).eval()
    measured = measured_variances(model, torch.randn(4, 3, 64, 64))
    # largest deviation over eight seeds: 8.4 %; ReLU, since for others act(x) / beta is not act(x / beta)
    assert measured == pytest.approx(predicted_variances((4, 4, 4), 0.5), rel=0.10)


@pytest.mark.parametrize("name", SMALL)
def test_blocks_are_the_identity_at_initialization_but_for_transitions(name):
    model = normfree.create_model(name, **SMALL[name]).eval()
    for block in blocks(model):
        assert block.skip_init.skip_gain.item() == 0
        x = torch.randn(2, block.in_channels, 6, 6)
        out = block(x)
        if block.conv_shortcut is None:
            assert torch.equal(out, x)
        else:  # the shortcut alone: the 1x1 convolution of the scaled activation, downscaled
            scaled = block.act(x) if block.pool is None else block.pool(block.act(x))
            assert torch.equal(out, block.conv_shortcut(scaled))


@pytest.mark.parametrize("name", SMALL)
def test_block_is_its_equation(name):
    """shortcut + alpha * skip_gain * f(gamma * act(x) / beta), every factor where the paper writes it."""
    model = small(name).double()
    for block in blocks(model):
        scales = {}
        for conv in (m for m in block.modules() if isinstance(m, normfree.nn.WSConv2d)):
            scales[conv], conv.input_scale = conv.input_scale, 1.0
        x = torch.randn(2, block.in_channels, 7, 7, dtype=DOUBLE)

        def act(h, block=block):
            return block.act.gamma * block.act(h)

        scaled = act(x) / block.beta
        shortcut = x
        if block.conv_shortcut is not None:
            shortcut = block.conv_shortcut(scaled if block.pool is None else block.pool(scaled))
        branch = block.conv1(act(block.conv0(scaled)))
        if block.conv1b is not None:
            branch = block.conv1b(act(branch))
        if block.se_position == "middle":
            branch = block.squeeze_excite(branch)
        branch = block.conv2(act(branch))
        if block.se_position == "end":
            branch = block.squeeze_excite(branch)
        expected = shortcut + block.skip_init(branch)
        for conv, scale in scales.items():
            conv.input_scale = scale
        torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-12)  # float64 rounding of folded constants
