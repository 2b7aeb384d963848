"""Prepacking: the same function at any shape, plain folding where oneDNN's operators cannot be used."""

import contextlib
import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from precision import assert_no_farther, assert_same_function, in_float64
from small_models import CONTROLS, EFFICIENTNETS, SMALL, shake, small
from timm.models._features import FeatureGetterNet
from torch import nn

import normfree
from normfree import UsageError
from normfree.export import fold, prepack
from normfree.export.packed import PackedBlock, PackedConv2d, PackedLinear
from normfree.kernels import library
from normfree.models import NFBlock
from normfree.nn import Activation, ScaledActivation, WSConv2d

TIMM = ["timm_dm_nfnet_f0", "timm_test_nfnet", "timm_nf_regnet_b0", "timm_nf_ecaresnet26"]


@pytest.fixture(params=[*SMALL, *CONTROLS, *EFFICIENTNETS, *TIMM], scope="module")
def model(request):
    torch.manual_seed(0)
    if request.param in TIMM:
        options = dict(num_classes=10, depths=(1, 2, 1, 1))
        return shake(normfree.create_model(request.param, **options).eval())
    return small(request.param)


def relative(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


@torch.no_grad()
def test_same_function(model):
    packed, exact = prepack(model, (1, 3, 64, 64)), in_float64(model)
    shapes = (1, 3, 64, 64), (3, 3, 64, 64), (2, 3, 75, 66), (1, 3, 96, 33)  # one it is packed for, and others
    inputs = [torch.randn(*shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    assert_same_function(packed, model, exact, *inputs)
    assert_same_function(packed.forward_features, model.forward_features, exact.forward_features, inputs[-1])


@torch.no_grad()
@pytest.mark.parametrize("processor", ["this", "without bfloat16"])
def test_bfloat16(model, processor, monkeypatch):
    """oneDNN computes in bfloat16 on some processors only; on the others a warning says that nothing is packed."""
    able = torch.ops.mkldnn._is_mkldnn_bf16_supported() and processor == "this"
    if processor != "this":
        monkeypatch.setattr(PackedConv2d, "forward", broken)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folded = fold(model).bfloat16()
    says = pytest.warns(UserWarning, match="oneDNN's operators cannot be used, the folded network is not packed")
    with contextlib.nullcontext() if able else says:
        packed = prepack(folded, x.shape)
    assert any(isinstance(module, PackedConv2d) for module in packed.modules()) == able
    if not able:
        assert torch.equal(packed(x.bfloat16()), folded(x.bfloat16()))
        return
    error = relative(folded(x.bfloat16()).float(), model(x))
    assert relative(packed(x.bfloat16()).float(), model(x)) < 1.5 * error + 1e-3  # of rounding, not of another function


def test_convolutions_are_packed(model):
    before = sum(p.numel() for p in model.parameters())
    packed = prepack(model, (1, 3, 64, 64))
    kinds = [type(module) for module in packed.modules()]
    assert PackedConv2d in kinds
    assert PackedLinear in kinds
    assert not any(issubclass(kind, nn.Conv2d | nn.Linear) for kind in kinds)
    assert sum(p.numel() for p in model.parameters()) == before  # the model itself is as it was
    if isinstance(model, normfree.models.NormFreeNet):
        blocks = [module for module in packed.modules() if isinstance(module, PackedBlock)]
        assert len(blocks) == sum(len(stage) for stage in model.stages)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "gelu_erf", "tanh", "elu"])
def test_activations(activation):
    """With and without a counterpart in oneDNN."""
    torch.manual_seed(0)
    model, x = small("nfnet_f0", activation=activation), torch.randn(4, 3, 64, 64)
    assert_same_function(prepack(model, x.shape), model, in_float64(model), x)


@torch.no_grad()
def test_a_network_of_ones_own():
    torch.manual_seed(0)
    act = ScaledActivation("gelu")
    net = nn.Sequential(WSConv2d(3, 8, 3, 2), act, nn.Sequential(WSConv2d(8, 8, 3), nn.ReLU()), nn.Flatten(1)).eval()
    x = torch.randn(2, 3, 33, 20)
    assert_same_function(prepack(net, x.shape), net, in_float64(net), x)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50", "nf_regnet_b0"])
def test_pyramids(name):
    """Maps in front of activations stay what they are; only what is between them is fused."""
    torch.manual_seed(0)
    model, x = small(name), torch.randn(1, 3, 64, 64)
    getter = FeatureGetterNet(copy.deepcopy(model), out_indices=(0, 1, 2, 3, 4)).eval()
    packed = prepack(getter, x.shape)
    assert any(isinstance(module, PackedBlock) for module in packed.modules())
    expected = model.forward_intermediates(x, intermediates_only=True)
    exact = in_float64(model).forward_intermediates(x.double(), intermediates_only=True)
    for got in (packed(x), prepack(model, x.shape).forward_intermediates(x, intermediates_only=True)):
        for levels in zip(got, expected, exact, strict=True):
            assert_no_farther(*levels)


def test_what_a_packed_network_refuses():
    torch.manual_seed(0)
    packed = prepack(small("nf_resnet50"), (1, 3, 64, 64))
    for attempt in (copy.deepcopy, pickle.dumps, lambda net: net.bfloat16(), lambda net: net.to("meta")):
        with pytest.raises(UsageError, match="stays as and where it is"):
            attempt(packed)


def broken(*args):
    raise RuntimeError("no such operator")


def other(x, weight, bias, *args):
    return F.conv2d(x, weight.to_dense() * 2, bias)


@torch.no_grad()
@pytest.mark.parametrize("operator", [broken, other])
def test_without_onednn_the_folded_network_is_returned(monkeypatch, operator):
    torch.manual_seed(0)
    model, x = small("nf_resnet50"), torch.randn(1, 3, 64, 64)
    monkeypatch.setattr(PackedConv2d, "forward", lambda self, x: operator(x, self.weight, self.bias))
    with pytest.warns(UserWarning, match="not packed"):
        packed = prepack(model, x.shape)
    assert not any(isinstance(module, PackedConv2d) for module in packed.modules())
    assert torch.equal(packed(x), fold(model)(x))


@pytest.mark.parametrize("x", [torch.randn(1, 5), torch.randn(1, 7), torch.randn(1, 6).bfloat16()])
def test_a_packed_linear_layer_refuses_what_a_linear_layer_refuses(x):
    linear = nn.Linear(6, 4)
    for layer in (linear, PackedLinear(linear)):
        with pytest.raises(RuntimeError):
            layer(x)


def test_a_packed_linear_layer_without_kernels(monkeypatch):
    linear, x = nn.Linear(6, 4), torch.randn(1, 6)
    monkeypatch.setattr(library, "_load", lambda: (None, "turned off by a test"))
    torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


def test_refusals():
    model = small("nf_resnet50")
    with pytest.raises(UsageError, match="training mode"):
        prepack(model.train())
    model.eval()
    with pytest.raises(UsageError, match=r"torch.float16 on cpu"):
        prepack(fold(model).half())
    with pytest.raises(UsageError, match=r"float32 on meta"):
        prepack(fold(model).to("meta"))
    with pytest.raises(UsageError, match=r"input_shape \(=\(1, 4, 64, 64\)\)"):
        prepack(model, (1, 4, 64, 64))
    with pytest.raises(UsageError, match="nothing"):
        prepack(nn.ReLU().eval())
    for shape in (192, "192", (3, 64, 64), (0, 3, 64, 64), (1.5, 3, 64, 64)):
        with pytest.raises(UsageError, match=r"must be \(N, C, H, W\)"):
            prepack(model, shape)


class Unusual(nn.Module):
    """A convolution that only training calls, and subclasses and paddings that oneDNN's operator does not know."""

    class Twice(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Conv2d(3, 3, 1), Activation("relu"))
        self.another = nn.Conv2d(3, 3, 1)
        self.circular = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.named = nn.Conv2d(4, 4, 3, padding="same")
        self.twice, self.last, self.plain = self.Twice(4, 4, 1), self.Half(4, 2), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.auxiliary(self.another(x)) if self.training else x
        return self.last(self.plain(self.twice(self.named(self.circular(x)))).mean((2, 3)))


@torch.no_grad()
def test_layers_that_are_not_called_or_not_known_stay_as_they_are():
    torch.manual_seed(0)
    net, x = Unusual().eval(), torch.randn(1, 3, 8, 8)
    packed = prepack(net, x.shape)
    assert [type(layer) is PackedConv2d for layer in (packed.another, packed.twice, packed.plain)] == [
        False,
        False,
        True,
    ]
    torch.testing.assert_close(packed(x), net(x), rtol=1e-4, atol=1e-5)


class DoubledBlock(NFBlock):
    def forward(self, x):
        return super().forward(x) * 2


@torch.no_grad()
def test_blocks_of_ones_own():
    torch.manual_seed(0)
    model, x = small("nf_resnet50"), torch.randn(4, 3, 64, 64)
    for block in model.stages[0]:
        block.__class__ = DoubledBlock
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = prepack(model, x.shape)
    assert_same_function(packed, model, in_float64(model), x)
