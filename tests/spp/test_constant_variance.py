"""Networks of constant variance: their signal is as predicted, and faults planted in them are found."""

import pytest
from spp.diagnosed import blocks, kinds, network

from normfree.models import NFBlock
from normfree.spp import record

OPTIONS = dict(residual="constant-variance", activation="selu", standardize=False)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("skip_gain", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_variance_stays_as_predicted(seed, skip_gain, standardize):
    options = OPTIONS | dict(skip_gain=skip_gain, alpha=0.5, stem="7x7-nopool", standardize=standardize)
    spp = record(network("nf_resnet50", seed, widths=(256, 512, 512), depths=(2, 2, 3), **options), (2, 3, 96, 96))
    # 10 %; the largest deviation over eight seeds: 8.5 %, zero padding in the last stage
    assert spp.avg_var == pytest.approx([1.0] * len(spp.rows), rel=0.10)
    assert spp.expected_var == pytest.approx([1.0] * len(spp.rows), rel=2e-3)


@pytest.mark.parametrize("options", [{}, dict(skip_gain=1.0), dict(alpha=1.0, skip_gain=1.0)], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_network_has_no_fault(seed, options):
    assert kinds(network("nf_resnet50", seed, **OPTIONS, stem="7x7-nopool", **options)) == []


def test_faults_are_found():
    options = OPTIONS | dict(alpha=1.0, skip_gain=1.0, stem="7x7-nopool")
    assert kinds(network("nf_resnet50", gamma=0.8, **options)) == ["attenuation"]
    assert kinds(network("nf_resnet50", gamma=1.4, **options)) == ["branch variance"]
    growing = network("nf_resnet50", depths=(2, 3, 6, 3), residual="constant-variance", alpha=1.0, skip_gain=1.0)
    assert kinds(growing) == []
    for block in blocks(growing):
        block.__class__ = NFBlock  # the plain sum, still with beta = 1
    assert kinds(growing) == ["explosion"]
