"""The backward signal: gradients as autograd gives them, theory's norms, and the faults of gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision
from spp.diagnosed import FIGURES, network
from spp.hand_made import LAYOUTS, Net, sequence
from torch import nn

from normfree import UsageError
from normfree.spp import SPP, plot, record

SHAPE = (4, 3, 8, 8)
NOT_INPLACE = {"sum": lambda b, x, f: x + f, "scaled": lambda b, x, f: torch.addcmul(x, f, b.gamma)}
MERGES = NOT_INPLACE | {"in place": lambda b, x, f: (x * 1).add_(f).relu_()}


def cotangent(y: torch.Tensor) -> torch.Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(~0))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NLC", "NCL", "NC"])
def test_gradients_are_autograds(layout, merge):
    net, outputs = Net(LAYOUTS[layout], MERGES[merge]), []
    spp = record(net, LAYOUTS[layout].shape, backward=True)
    x = torch.randn(LAYOUTS[layout].shape, generator=torch.Generator().manual_seed(0))
    for module in (net.stem, *net.blocks):
        module.register_forward_hook(lambda m, a, y: outputs.append(y))
    y = net(x)
    expected = [g.square().mean().item() for g in torch.autograd.grad(y, outputs, cotangent(y))]
    np.testing.assert_allclose([spp.stem.grad_var, *spp.grad_var], expected, rtol=1e-4)  # float32
    values = [row.grad_var * math.prod(row.shape) for row in spp.rows]  # of an example
    np.testing.assert_allclose(np.square(spp.grad_norm), values, rtol=1e-6)


def test_what_is_recorded_forwards_is_the_same():
    """To rounding: gradients make torch take other paths. All merges are found, also of tokens and of views."""
    vit = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64)
    nets = [network("nfnet_f0", **FIGURES), network("nf_efficientnet_b0"), torchvision.models.swin_t(), vit]
    for net in nets:
        plain, both = record(net, (2, 3, 32, 32)), record(net, (2, 3, 32, 32), backward=True)
        assert both.blocks == plain.blocks
        np.testing.assert_allclose(both.avg_var, plain.avg_var, rtol=1e-4)
        assert None not in both.grad_var
        assert not any(plain.grad_var)
        assert not any(p.grad is not None for p in net.parameters())


def test_frozen_parameters_and_the_users_mode_do_not_matter():
    net = Net(LAYOUTS["NCHW"], MERGES["sum"])
    expected = record(net, SHAPE, backward=True).grad_var
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        assert record(net, x, backward=True).grad_var == expected
    assert not x.requires_grad


def test_layers_of_variance_one_over_fan_in_keep_the_norm():
    """Backward, a layer of fan-in n and m outputs multiplies the mean square by m / n, and there are n / m as many."""
    torch.manual_seed(0)
    widths = [256, 512, 128, 384]
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    spp = record(nn.Sequential(*layers), (64, 256), blocks="*", backward=True)
    assert spp.grad_norm == pytest.approx([384**0.5] * 3, rel=0.05)
    assert spp.grad_var == pytest.approx([384 / n for n in widths[1:]], rel=0.1)


def deep(activation, std: float, *, norm: bool = False, depth: int = 12, width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(width, width) for _ in range(depth)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=std / width**0.5)
        nn.init.zeros_(layer.bias)
    norms = [[nn.BatchNorm1d(width)] if norm else [] for _ in layers]
    return nn.Sequential(*(nn.Sequential(layer, *n, activation()) for layer, n in zip(layers, norms, strict=True)))


def found(net: nn.Module, shape=(64, 64), blocks: str | None = "*") -> list:
    return record(net, shape, blocks=blocks, backward=True).diagnose()


def test_growth_behind_batch_norm_is_that_of_theory():
    """pi / (pi - 1) per ReLU in the limit of width, batch and depth (Yang et al. 2019)."""
    spp = record(deep(nn.ReLU, 1.0, norm=True, width=256), (256, 256), blocks="*", backward=True)
    steps = np.square(spp.grad_norm[:-1]) / np.square(spp.grad_norm[1:])
    assert steps.mean() == pytest.approx(math.pi / (math.pi - 1), rel=0.05)


@pytest.mark.parametrize(
    ("activation", "std", "kind"),
    [
        (nn.Tanh, 0.5, "vanishing gradient"),
        (nn.Sigmoid, 1.0, "vanishing gradient"),
        (nn.Tanh, 4.0, "exploding gradient"),
    ],
)
def test_gradients_of_plain_networks(activation, std, kind):
    kinds = [finding.kind for finding in found(deep(activation, std))]
    assert kinds[-1] == kind


@pytest.mark.parametrize(
    ("activation", "std", "norm"), [(nn.ReLU, 2**0.5, False), (nn.Tanh, 1.0, False), (nn.ReLU, 1.0, True)]
)
def test_healthy_plain_networks(activation, std, norm):
    assert not [finding for finding in found(deep(activation, std, norm=norm)) if "gradient" in finding.kind]


class Scaled(nn.Module):
    """Its function is the identity, its gradient is multiplied."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.detach() + self.factor * (x - x.detach())


@pytest.mark.parametrize(("factor", "kind"), [(100.0, "exploding"), (0.001, "vanishing")])
def test_the_block_that_does_it_is_named(factor, kind):
    net = torchvision.models.resnet18()
    net.layer3[0].bn2.register_forward_hook(lambda m, a, y: Scaled(factor)(y))
    net.layer3[0].downsample.register_forward_hook(lambda m, a, y: Scaled(factor)(y))
    (finding,) = found(net, (4, 3, 32, 32), None)
    assert finding.kind == f"{kind} gradient"
    assert finding.blocks[0] in ("layer2.1", "stem")
    assert "layer3.0" in str(finding)


def test_a_gradient_that_is_cut_off():
    net = torchvision.models.resnet18()
    net.layer2.register_forward_hook(lambda m, a, y: y.detach())
    (finding,) = found(net, (4, 3, 32, 32), None)
    assert finding.kind == "no gradient"
    assert finding.blocks[0] == "layer2.1"
    assert "that of layer3.0 has a norm of" in str(finding)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in ("nf_resnet50", "nf_seresnet50", "nfnet_f0", "nf_regnet_b0", "nf_efficientnet_b0")]
    + [(name, {}) for name in ("bn_resnet50", "bn_resnet50_v1", "bn_nfnet_f0", "fixup_resnet50", "skipinit_resnet50")]
    + [(name, FIGURES) for name in ("nf_resnet50", "nfnet_f0")]
    + [("nf_unet", dict(widths=(16, 32, 64), depths=(1, 1, 1))), ("bn_unet", dict(widths=(16, 32), depths=(1, 1)))],
    ids=str,
)
def test_healthy_families(name, options):
    assert found(network(name, **options), (2, 3, 64, 64), None) == []


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", None), ("densenet121", "features.denseblock?.*")])
def test_healthy_networks_of_torchvision(name, blocks):
    torch.manual_seed(0)
    assert found(getattr(torchvision.models, name)(), (2, 3, 64, 64), blocks) == []


def test_what_has_no_gradient_is_refused():
    class Cut(nn.Sequential):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(UsageError, match="backward=True: no output of Cut has a gradient"):
        record(Cut(*sequence(Net(LAYOUTS["NCHW"], MERGES["sum"]).blocks[0])), SHAPE, backward=True)

    class InPlace(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x).exp()
            return y + x.mul_(0)[:, :1] + y.mul_(2)  # exp needs its output

    with pytest.raises(UsageError, match="the backward pass of Sequential fails") as error:
        record(sequence(InPlace(8, 8, 1)), SHAPE, blocks="1", backward=True)
    assert "\n" not in str(error.value)


def test_table_and_picture(tmp_path):
    spp = record(Net(LAYOUTS["NCHW"], MERGES["sum"]), SHAPE, backward=True)
    assert str(spp).splitlines()[1].endswith("gradient var.")
    assert len({len(line) for line in str(spp).splitlines()[1:]}) == 1
    assert "grad_var,grad_norm" in spp.to_csv().splitlines()[0]
    assert SPP.from_dict(spp.to_dict()).grad_norm == spp.grad_norm
    assert [axes.get_title() for axes in spp.plot().axes][3:] == ["variance of the gradient"]
    (axes,) = plot(spp, columns=["grad_norm"]).axes
    assert list(axes.lines[0].get_ydata()) == spp.grad_norm
