"""The signal of networks with other weight schemes: as theory predicts; faults planted in them are found."""

import numpy as np
import pytest
import torch
from spp.diagnosed import blocks, kinds, network

from normfree.gain import he_gain
from normfree.spp import record, spectra
from normfree.spp.predict import normfree_variances

SCHEMES = ["decoupled", "soft", "normalized", "raw"]
WIDE = dict(widths=(256, 512, 512), depths=(2, 2, 3), stem="7x7-nopool", skip_gain=1.0)
CENTRED = ["decoupled", "soft"]  # weights of mean 0
WITH_MEAN = ["normalized", "raw"]


@pytest.mark.parametrize(
    ("scheme", "activation"),
    [(scheme, activation) for scheme in SCHEMES for activation in ("selu", "tanh")] + [(s, "relu") for s in CENTRED],
)
def test_variance_grows_as_predicted(scheme, activation):
    spp = record(network("nf_resnet50", weight_scheme=scheme, activation=activation, **WIDE), (2, 3, 96, 96))
    # 10 %; the largest deviation over eight seeds: 9.4 %, zero padding in the last stage
    assert [row.ratio for row in spp.rows] == pytest.approx([1.0] * len(spp.rows), rel=0.10)


@pytest.mark.parametrize("scheme", WITH_MEAN)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_weights_with_a_mean_keep_the_second_moment(scheme, activation):
    options = WIDE | dict(widths=(256, 512), depths=(1, 2))
    moments = []
    for seed in range(8):  # the means of a network have one direction: the average over networks is predicted
        spp = record(
            network("nf_resnet50", seed, weight_scheme=scheme, activation=activation, **options), (2, 3, 96, 96)
        )
        moments.append([(row.avg_var + row.avg_sq_mean) / row.expected_var for row in spp.rows])
        assert spp.rows[-1].avg_sq_mean > 0.3 * spp.rows[-1].avg_var  # where variance alone would miss it
    np.testing.assert_allclose(np.mean(moments, axis=0), 1.0, rtol=0.10)


def test_theory_of_weights_with_a_mean_has_hes_gamma():
    model = network("nf_resnet50", weight_scheme="normalized", activation="silu", **WIDE)
    (row, *_) = record(model, (2, 3, 32, 32)).rows
    assert row.theory.gamma == he_gain("silu")
    variance, branch = normfree_variances(blocks(model))[0]
    assert (variance, branch) == pytest.approx((1.04, 1.0), rel=2e-3)  # moments in three digits


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["nf_resnet50", "nf_seresnet50"])
def test_healthy_networks_have_no_fault(name, scheme):
    activation = "tanh" if scheme in WITH_MEAN else "relu"
    options = dict(activation=activation, weight_scheme=scheme, stem="7x7-nopool")
    for more in ({}, dict(skip_gain=1.0), dict(skip_gain=1.0, alpha=1.0)):
        assert kinds(network(name, **options, **more)) == []


@pytest.mark.parametrize("scheme", CENTRED)
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0"])
def test_other_healthy_families(name, scheme):
    assert kinds(network(name, weight_scheme=scheme, skip_gain=1.0)) == []


@pytest.mark.parametrize("scheme", WITH_MEAN)
def test_weights_with_a_mean_shift_means_behind_relu(scheme):
    assert "mean shift" in kinds(network("nf_resnet50", weight_scheme=scheme, skip_gain=1.0, alpha=1.0))


@pytest.mark.parametrize("scheme", CENTRED)
def test_a_decoupled_weight_that_nothing_pulls_is_found(scheme):
    """Weights that grow without the step behind the optimizer's: branches gain variance."""
    model = network("nf_resnet50", weight_scheme=scheme, skip_gain=1.0)
    with torch.no_grad():
        for block in blocks(model):
            for conv in (block.conv0, block.conv1, block.conv2):
                conv.weight *= 1.4
    assert kinds(model) == ["branch variance"]
    with torch.no_grad():
        for block in blocks(model):
            for conv in (block.conv0, block.conv1, block.conv2):
                conv.weight += 1.5 * conv.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
    assert "mean shift" in kinds(model)
    for block in blocks(model):
        for conv in (block.conv0, block.conv1, block.conv2):
            conv.standardize_()
    assert kinds(model) == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("gain", [0.4, 2.5])
def test_one_branch_of_another_variance(scheme, gain):
    activation = "tanh" if scheme in WITH_MEAN else "relu"
    model = network("nf_resnet50", weight_scheme=scheme, activation=activation, skip_gain=1.0, stem="7x7-nopool")
    with torch.no_grad():
        conv = blocks(model)[3].conv2
        (conv.weight if scheme == "raw" else conv.gain).mul_(gain)
    spp = record(model, (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert (finding.kind, finding.blocks) == ("branch variance", (spp.rows[3].block,))


def test_spectra_leave_out_the_constant_where_the_mean_is_0():
    conditions = {}
    for scheme in ("standardized", *SCHEMES):
        model = network("nf_resnet50", weight_scheme=scheme)
        conditions[scheme] = next(s for s in spectra(model) if s.layer == "stages.0.1.conv0")
    for scheme in CENTRED:
        assert conditions[scheme].condition == pytest.approx(conditions["standardized"].condition, rel=1e-5)
    assert conditions["normalized"].smallest < conditions["standardized"].smallest * 1.5
    assert all(s.condition < 1e4 for s in conditions.values())
