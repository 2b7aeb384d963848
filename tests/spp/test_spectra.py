"""Singular values against numpy's, and weights that have collapsed."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import normfree
from normfree.nn import SameConv2d, WSConv2d
from normfree.spp import Spectrum, spectra

# rtol: the Gram matrix squares the condition, here below 1e3, in float64
RTOL = 1e-8


def of(layer: nn.Module) -> Spectrum:
    (found,) = spectra(nn.Sequential(layer))
    return found


def singular_values(weight: torch.Tensor, groups: int = 1) -> np.ndarray:
    """(groups, min(outputs, fan-in)), by numpy, largest first."""
    parts = weight.detach().double().flatten(1).chunk(groups)
    return np.stack([np.linalg.svd(part.numpy(), compute_uv=False) for part in parts])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(8, 12, 3), (12, 72)),
        (lambda: nn.Conv2d(8, 12, 3, groups=4), (3, 18)),
        (lambda: nn.Conv2d(4, 32, 1), (32, 4)),
        (lambda: nn.Conv2d(6, 6, 3, groups=6), (1, 9)),
        (lambda: nn.Conv1d(8, 12, 3), (12, 24)),
        (lambda: nn.Conv3d(2, 5, 3), (5, 54)),
        (lambda: nn.Linear(20, 7), (7, 20)),
        (lambda: nn.Linear(7, 20), (20, 7)),
        (lambda: SameConv2d(8, 12, 3, groups=2, input_scale=5.0), (6, 36)),
    ],
)
def test_raw_weights(layer, shape):
    layer = layer()
    values = singular_values(layer.weight, getattr(layer, "groups", 1))
    got = of(layer)
    assert got.shape == shape
    np.testing.assert_allclose(got.largest, values.max(), rtol=RTOL)
    np.testing.assert_allclose(got.smallest, values[:, -1].min(), rtol=RTOL)
    np.testing.assert_allclose(got.condition, values.max() / values[:, -1].min(), rtol=RTOL)


@pytest.mark.parametrize(("outputs", "groups"), [(12, 1), (12, 3), (40, 1), (18, 2), (9, 1), (80, 4)])
def test_standardized_weights_without_the_constant(outputs, groups):
    layer = WSConv2d(groups * (9 if outputs < 20 else 2), outputs, 1 if outputs < 20 else 3, groups=groups)
    nn.init.normal_(layer.gain, mean=1.0, std=0.3)
    layer.input_scale = 1.7  # gamma / beta is no part of the weight
    weight = layer.standardized_weight() / 1.7
    got, values = of(layer), singular_values(weight, groups)
    rows, fan_in = weight.shape[0] // groups, weight[0].numel()
    assert got.shape == (rows, fan_in)
    if rows >= fan_in:
        assert values[:, fan_in - 1].max() < 1e-6 * values.max()  # what is left out
        values = values[:, : fan_in - 1]
    np.testing.assert_allclose(got.largest, values.max(), rtol=1e-6)  # the weight is standardized in float32
    np.testing.assert_allclose(got.smallest, values[:, -1].min(), rtol=1e-6)
    np.testing.assert_allclose(got.condition, values.max() / values[:, -1].min(), rtol=1e-6)


def rank_deficient(weight):
    weight[1] = -2 * weight[0]


def one_direction(weight):
    weight.copy_(weight[:1] * torch.randn(len(weight), 1, 1, 1))


def zero_row(weight):
    weight[3] = 0.0


@pytest.mark.parametrize("collapse", [rank_deficient, one_direction, zero_row])
@pytest.mark.parametrize("layer", [nn.Conv2d, SameConv2d, WSConv2d])
@pytest.mark.parametrize("width", [8, 64])
def test_a_collapsed_weight(layer, collapse, width):
    conv = layer(width, 16, 3)
    healthy = of(conv).condition
    with torch.no_grad():
        collapse(conv.weight)
    assert healthy < 10
    assert of(conv).condition > 3e6  # a standardized weight is rounded to float32


def test_an_ill_conditioned_weight():
    conv = nn.Conv2d(64, 16, 3)
    u, s, v = torch.linalg.svd(conv.weight.detach().double().flatten(1), full_matrices=False)
    s[-1] = s[0] / 1e4
    conv.weight = nn.Parameter((u * s @ v).view_as(conv.weight))
    assert of(conv).condition == pytest.approx(1e4, rel=1e-6)


def test_one_group_of_many():
    conv = nn.Conv2d(16, 16, 3, groups=4)
    with torch.no_grad():
        conv.weight[5] = conv.weight[4]
    assert of(conv).condition == math.inf


def test_collapse_in_a_network_names_its_layer():
    model = normfree.create_model("nf_resnet50", depths=(1, 1, 1, 1), widths=(32, 64, 64, 64), num_classes=10)
    with torch.no_grad():
        one_direction(model.stages[2][0].conv1.weight)
    found = spectra(model)
    assert max(found, key=lambda s: s.condition).layer == "stages.2.0.conv1"
    names = [name for name, m in model.named_modules() if isinstance(m, SameConv2d | nn.Linear)]
    assert [s.layer for s in found] == names


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value):
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1, 2] = value
    got = of(layer)
    assert all(map(math.isnan, (got.largest, got.smallest, got.condition)))
    assert got.shape == (3, 4)


def test_zero_weights_and_single_inputs():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    assert of(layer) == Spectrum("0", 0.0, 0.0, math.inf, (3, 4))
    assert of(nn.Linear(1, 1)).condition == 1.0
    assert of(SameConv2d(4, 4, 1, groups=4)).shape == (1, 1)


def test_nothing_is_changed_and_compiled_models_are_the_same():
    model = normfree.create_model("nf_resnet26_small", depths=(1,), widths=(16,), num_classes=10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert spectra(torch.compile(model, backend="eager")) == spectra(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
