"""What theory expects, against numbers written out and against what networks do at initialization."""

import numpy as np
import pytest
import torch
from torch import nn

import normfree
from normfree.functional import expected_variances
from normfree.models import NFBlock
from normfree.spp import Row, record
from normfree.spp.predict import normfree_variances, predict

WIDE = dict(widths=(256, 512, 512, 512), depths=(2, 2, 3, 2), num_classes=10, stochdepth_rate=0.0)


def with_gains(model, gain):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NFBlock):
                module.skip_init.skip_gain.fill_(gain)
    return model


def nf_blocks(model):
    return [module for module in model.modules() if isinstance(module, NFBlock)]


def row(**numbers):
    return Row("block", 0, **dict(avg_var=1.0, res_avg_var=1.0) | numbers)


def test_the_branch_is_added_to_what_the_row_before_put_out():
    rows = [row(added_var=0.5, avg_var=1.4), row(added_var=0.25), row(added_var=1.0, shortcut_var=3.0, transition=True)]
    predict(nn.Identity(), rows, Row("stem", 0, avg_var=1.0))
    assert [r.expected_var for r in rows] == [1.5, 1.65, 4.0]
    assert {r.expected_res_var for r in rows} == {None}


def test_no_expectation_behind_activations_or_without_a_merge_or_stem():
    rows = [row(added_var=0.5, activated=True), row(added_var=None, res_avg_var=None), row(added_var=0.5)]
    predict(nn.Identity(), rows, Row("stem", 0, avg_var=1.0))
    assert [r.expected_var for r in rows] == [None, None, 1.5]
    rows = [row(added_var=0.5)]
    predict(nn.Identity(), rows, None)
    assert rows[0].expected_var is None


def test_with_skip_gains_of_1_it_is_the_papers_recursion():
    """Var + alpha^2, and 1 + alpha^2 behind a transition (section 3); average pooling takes a part of the shortcut."""
    model = with_gains(normfree.create_model("nf_resnet50", **WIDE), 1.0)
    blocks = nf_blocks(model)
    assert all(block.pool is None for block in blocks)
    # the variance that a block hands on is the next one's input
    entries = [v for stage in expected_variances(WIDE["depths"], alpha=0.2) for v in stage]
    got = normfree_variances(blocks)
    resets = [0, *np.cumsum(WIDE["depths"])[:-1]]
    for index, (variance, branch) in enumerate(got):
        entry = 1.0 if index in resets else entries[index]
        assert variance == pytest.approx(entry + 0.2**2)
        assert branch == pytest.approx(1.0)


def test_with_skip_gains_of_0_the_signal_stays_while_beta_does_not_know():
    blocks = nf_blocks(normfree.create_model("nf_resnet50", **WIDE))
    variance = 1.0
    for block, (got, branch) in zip(blocks, normfree_variances(blocks), strict=True):
        assert branch == pytest.approx(variance / block.beta**2)
        variance = branch if block.conv_shortcut is not None else variance
        assert got == pytest.approx(variance)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_networks_do_at_initialization_what_theory_expects(gain):
    model = with_gains(normfree.create_model("nf_resnet50", **WIDE), gain)
    spp = record(model, (4, 3, 96, 96))
    for r in spp.rows:
        # a few hundred channels, zero padding, maps of 3 pixels: a quarter
        assert r.ratio == pytest.approx(1.0, abs=0.3), r.block
        assert r.expected_res_var is not None


def test_the_branch_is_measured_where_a_skip_gain_of_0_hides_it():
    """Skip gains are folded into the last convolution, and so is 0."""
    model = normfree.create_model("nf_resnet50", **WIDE)
    branches = [record(with_gains(model, gain), (2, 3, 64, 64)).rows[0].res_avg_var for gain in (0.0, 0.01, 1.0)]
    np.testing.assert_allclose(branches, branches[-1], rtol=1e-5)
    assert branches[-1] > 0.1


def test_a_part_of_a_network_is_expected_to_do_what_it_does_in_the_whole():
    model = with_gains(normfree.create_model("nf_resnet50", **WIDE), 1.0)
    whole = {r.block: (r.expected_var, r.expected_res_var) for r in record(model, (2, 3, 64, 64)).rows}
    for pattern in ("stages.2.*", "stages.*.1"):
        part = {
            r.block: (r.expected_var, r.expected_res_var) for r in record(model, (2, 3, 64, 64), blocks=pattern).rows
        }
        assert part == {name: whole[name] for name in part}
        assert part


def test_ratio():
    assert row(expected_var=2.0).ratio == 0.5
    assert row().ratio is row(expected_var=0.0).ratio is None
