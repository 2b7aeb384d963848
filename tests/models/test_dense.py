"""Networks that answer for every pixel: no normalization, roles, variance, what the head's parts compute."""

import pytest
import torch
import torch.nn.functional as F
from precision import distance
from small_models import CONTROLS, EFFICIENTNETS, SMALL, shake, small

import normfree
from normfree import UsageError
from normfree.export import prepack
from normfree.models import depth_estimator, segmenter
from normfree.models.backbone import feature_scale
from normfree.models.dense import UpConv2d, UpProjection, resized
from normfree.nn import Activation, SameConv2d, WSConv2d, recompute_weights
from normfree.optim import param_groups
from normfree.training.memory import Allocated

OURS = [*SMALL, "nf_efficientnet_b0", "fixup_resnet50", "skipinit_resnet50"]
MAKERS = {"segmentation": lambda net: segmenter(net, 5, width=16), "depth": lambda net: depth_estimator(net, width=16)}


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("name", OURS)
def test_no_normalization_layer_and_every_parameter_has_a_role(name, task):
    model = MAKERS[task](small(name, output_stride=16))
    found = {type(module).__name__ for module in model.modules()}
    assert not [kind for kind in found if "Norm" in kind.replace("NormFree", "")]
    groups = param_groups(model, weight_decay=1e-4, clipping=0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    classifier = next(group for group in groups if group["name"] == "classifier")
    last = model.head.classifier if task == "segmentation" else model.head.last
    assert [p is last.weight for p in classifier["params"]] == [True]
    assert classifier["clipping"] is None


@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("name", [*SMALL, *CONTROLS, *EFFICIENTNETS])
def test_shapes_and_one_gradient_step_at_batch_size_1(name, task):
    model = MAKERS[task](small(name, output_stride=16)).train(name in OURS)
    x = torch.randn(1, 3, 64, 48)
    out = model(x)
    assert out.shape == (1, 5 if task == "segmentation" else 1, 64, 48)
    before = (out - 1).square().mean()
    before.backward()
    used = [p for n, p in model.named_parameters() if n != "backbone.bias2.bias"]  # of FixUp's classifier
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in used)
    torch.optim.SGD(param_groups(model), lr=1e-3).step()
    assert (model(x) - 1).square().mean() < before


@torch.no_grad()
@pytest.mark.parametrize("task", MAKERS)
def test_an_image_does_not_see_the_others(task):
    model = MAKERS[task](small("nf_resnet50", output_stride=16))
    x = torch.randn(3, 3, 48, 48)
    together, alone = model(x), torch.cat([model(one[None]) for one in x])
    # sums of other lengths, in float32
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_backbones_features_are_unchanged():
    """What a checkpoint computes is what the network for pixels sees; dilation: tests/models/test_features.py."""
    trained = small("nf_resnet50")
    x = torch.randn(1, 3, 64, 64)
    expected = trained.forward_features(x)
    model = segmenter(small("nf_resnet50"), 5, width=8).eval()
    state = {k: v for k, v in trained.state_dict().items() if not k.startswith("head.")}
    model.backbone.load_state_dict(state)
    assert torch.equal(model.backbone.forward_features(x), expected)
    dilated = segmenter(small("nf_resnet50", output_stride=16), 5, width=8).eval()
    dilated.backbone.load_state_dict(state)
    wide, narrow = (net.double().forward_features(x.double()) for net in (dilated.backbone, trained))
    assert wide.shape[-1] == 4
    assert distance(wide[..., ::2, ::2], narrow) < 1e-13  # sums in another order, in float64


@torch.no_grad()
def test_up_projection_is_a_convolution_of_zeros_in_between():
    x, up = torch.randn(2, 6, 5, 7), shake(UpConv2d(6, 4, input_scale=1.5)).eval()
    spread = torch.zeros(2, 6, 10, 14)
    spread[..., ::2, ::2] = x
    plain = WSConv2d(6, 4, 5, input_scale=3.0)
    plain.load_state_dict(up.state_dict())
    torch.testing.assert_close(up(x), plain(spread), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(up(x, torch.tensor(0.5)), 0.5 * up(x), rtol=1e-5, atol=1e-5)
    for folded in (normfree.fold(up), up.folded(torch.tensor(1.0))):
        assert type(folded) is torch.nn.ConvTranspose2d
        assert torch.equal(folded(x), up(x))


@torch.no_grad()
def test_heads_keep_the_signals_variance():
    torch.manual_seed(0)
    x = torch.randn(4, 256, 16, 16)
    out = UpProjection(256, 128, Activation("relu"))(x)
    assert 0.8 < out.var().item() < 1.25  # edges see padding; a random draw of 128 channels


@torch.no_grad()
def test_the_head_sees_features_of_unit_size():
    net = normfree.create_model("nf_resnet50", num_classes=0, depths=(1, 2, 2, 3), skip_gain=1.0, output_stride=16)
    features = net.forward_features(torch.randn(4, 3, 128, 128))
    # sqrt(1 + 3 * 0.2**2); the stem's pooling takes maxima, and theory does not know padding
    assert feature_scale(net) == pytest.approx(1.12**-0.5)
    assert 0.6 < features.square().mean().item() * feature_scale(net) ** 2 < 1.7


@torch.no_grad()
@pytest.mark.parametrize("task", MAKERS)
@pytest.mark.parametrize("name", [*SMALL, "nf_efficientnet_b0"])
def test_folded_networks_compute_the_same(name, task):
    model, x = shake(MAKERS[task](small(name, output_stride=16))).eval(), torch.randn(2, 3, 48, 35)
    folded, expected = normfree.fold(model), model(x)
    # the same weights to the bit; a gate's constants may be multiplied in another order
    assert ((folded(x) - expected).norm() / expected.norm()).item() < 1e-5
    assert not [name for name, module in folded.named_modules() if isinstance(module, SameConv2d)]
    assert not [name for name, _ in folded.named_parameters() if name.endswith("gain")]
    # transposed convolutions stay as they are
    packed = prepack(model, (2, 3, 48, 35))
    assert ((packed(x) - expected).norm() / expected.norm()).item() < 1e-5


@torch.no_grad()
def test_resize_keeps_corners_where_the_grid_has_them():
    maps = torch.randn(1, 2, 5, 5)
    odd = resized(maps, (65, 65))
    assert torch.allclose(odd[..., ::16, ::16], maps, atol=1e-6)
    assert torch.equal(resized(maps, (80, 80)), F.interpolate(maps, (80, 80), mode="bilinear", align_corners=False))
    assert resized(maps, (5, 5)) is maps
    assert resized(maps.bfloat16(), (10, 10)).dtype == torch.float32


def test_refusals():
    with pytest.raises(UsageError, match=r"num_classes \(=1\) must be at least 2"):
        segmenter(small("nf_resnet50"), 1)
    with pytest.raises(UsageError, match=r"width \(=0\) must be at least 1"):
        depth_estimator(small("nf_resnet50"), width=0)


def test_up_projections_weights_are_computed_again_to_the_same_gradients():
    network = depth_estimator(small("nf_resnet50")).train()
    x = torch.randn(1, 3, 64, 64)

    def gradients():
        network.zero_grad()
        torch.manual_seed(1)  # of stochastic depth
        network(x).square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    def kept():
        torch.manual_seed(1)
        with Allocated() as allocated:
            out = network(x)
            return allocated.now - out.nbytes

    before, expected = kept(), gradients()
    recompute_weights(network)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, WSConv2d))
    assert before - kept() == 4 * weights
