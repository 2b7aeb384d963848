"""No healthy network of the papers is accused."""

import pytest
import torch
from spp.diagnosed import FIGURES, LINEAR, NORMFREE, SETTINGS, V2_AFTER, findings, network

from normfree.spp import record


@pytest.mark.sample(0.25, by=("name", "options"))  # one of the sizes each
@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("name", [*NORMFREE, "nf_efficientnet_b0"])
@pytest.mark.parametrize(("size", "batch", "seed"), [(64, 2, 0), (75, 3, 1), (96, 4, 2), (160, 2, 3)])
def test_normalizer_free_networks_are_healthy(name, options, size, batch, seed):
    assert findings(network(name, seed, **options), size, batch, seed) == []


@pytest.mark.parametrize(
    "name", ["nf_resnet50", "nfnet_f0", "nf_regnet_b0", "nf_regnet_b2", "nf_efficientnet_b0", "nf_resnet26_small"]
)
@pytest.mark.parametrize("options", SETTINGS[::2], ids=str)
def test_networks_of_the_papers_are_healthy(name, options):
    assert findings(network(name, small=False, **options)) == []


@pytest.mark.parametrize("options", [{}, FIGURES], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        ("nf_resnet50", dict(depths=(1, 1, 1, 1), widths=(32, 64, 64, 64))),
        ("nf_resnet50", dict(depths=(2, 3, 20, 2), widths=(64, 64, 64, 64))),
        ("nf_resnet50", dict(depths=(2, 2), widths=(64, 128), stem="3x3")),
        ("nfnet_f0", dict(depths=(4, 8, 12, 6), widths=(32, 64, 64, 64), group_width=16)),
        ("nf_regnet_b0", dict(depths=(2, 4, 8, 4), widths=(32, 32, 64, 64))),
        ("nf_regnet_b0", dict(depths=(1, 2, 28, 2), widths=(32, 64, 64, 64))),  # beta^2 of 2.1, pooled from 5 px to 3
    ],
    ids=lambda shape: f"{shape[0]}{shape[1]['depths']}",
)
@pytest.mark.parametrize("size", [64, 75])
def test_depth_width_and_odd_sizes_are_no_fault(shape, options, size):
    assert findings(network(shape[0], 1, **shape[1], **options), size, seed=1) == []


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "leaky_relu", "elu"])
def test_activations_are_no_fault(activation):
    assert findings(network("nf_resnet50", activation=activation, **FIGURES)) == []


@pytest.mark.parametrize(("size", "batch", "seed"), [(64, 2, 0), (96, 4, 1), (128, 2, 2)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bn_resnet50", {}),
        ("bn_resnet50", V2_AFTER),
        ("bn_resnet50", LINEAR),
        ("bn_resnet50", dict(squeeze_excite=True)),
        ("bn_resnet50_v1", {}),
        ("bn_resnet50_v1", dict(squeeze_excite=True)),
        ("fixup_resnet50", {}),
        ("skipinit_resnet50", {}),
        ("bn_nfnet_f0", {}),
        ("nf_resnet50", FIGURES | LINEAR),
        ("nf_resnet50", FIGURES | LINEAR | dict(standardize=False)),
    ],
    ids=str,
)
def test_controls_are_healthy(name, options, size, batch, seed):
    assert findings(network(name, seed, **options), size, batch, seed) == []


@pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_sa12", "mobileone_s0", "repvgg_a0"])
def test_parallel_normalized_branches_are_no_residual_block(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    assert record(timm.create_model(name), (4, 3, 64, 64)).diagnose() == []
