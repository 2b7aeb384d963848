"""Faults of a single block, of the first one, of half of the blocks; and networks without any signal."""

import re

import pytest
import torch
import torchvision
from spp.diagnosed import blocks, findings, kinds, network
from torch import nn

from normfree.spp import record


def test_the_first_block_is_judged_too():
    model = network("nf_resnet50", skip_gain=1.0)
    blocks(model)[0].conv2.gain.data *= 10
    (finding,) = findings(model)
    assert (finding.kind, finding.blocks) == ("branch variance", ("stages.0.0",))


@pytest.mark.parametrize("name", ["layer1.0", "layer3.0"])
def test_a_transition_behind_batch_norm(name):
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    nn.init.constant_(model.get_submodule(name).bn3.weight, 10.0)
    (finding,) = findings(model, size=96)
    assert (finding.kind, finding.blocks) == ("branch variance", (name,))


def test_one_leap_is_not_growth_everywhere():
    model = network("nf_resnet50", skip_gain=1.0)
    model.stages[1][1].register_forward_hook(lambda module, args, output: 10 * output)
    (finding,) = [finding for finding in findings(model) if finding.kind == "explosion"]
    assert finding.blocks == ("stages.1.1",)
    assert "leaps" in str(finding)


def test_half_of_the_gates_without_their_factor_are_one_finding():
    model = network("nf_seresnet50", skip_gain=1.0)
    for block in blocks(model)[::2]:
        block.squeeze_excite.factor = 1.0
    (finding,) = findings(model)
    assert finding.kind == "attenuation"
    assert len(finding.blocks) == len(blocks(model)[::2])
    assert "multiply it by 2" in str(finding)


def test_many_branches_of_another_variance_are_one_finding_with_their_gain():
    model = network("nf_resnet50", skip_gain=1.0)
    for block in blocks(model)[2:5]:
        block.conv2.gain.data *= 0.3
    (finding,) = findings(model)
    assert finding.kind == "branch variance"
    assert len(finding.blocks) == 3
    gain = float(re.search(r"end with ([\d.]+) of the variance", str(finding))[1])
    assert gain == pytest.approx(0.09, rel=0.4)  # 0.3 squared, of branches that have a little more than their due


def test_nothing_gets_through():
    model = network("nf_resnet50")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert kinds(model) == ["no signal"]


def test_single_values_are_not_judged():
    assert kinds(network("nf_resnet50", skip_gain=1.0), size=32, batch=1) == []  # the last maps are 1 x 1
    (finding,) = findings(network("nf_resnet50", skip_gain=1.0), size=1, batch=1)
    assert (finding.kind, "larger inputs" in str(finding)) == ("no signal", True)


def test_means_that_the_signal_outweighs_are_no_shift():
    """Biases make a branch's means exceed its variance, but not the sum's."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
            nn.init.normal_(self.second.bias, std=0.3)

        def forward(self, x):
            return x + 0.2 * self.second(self.first(x).relu())

    torch.manual_seed(0)
    spp = record(nn.Sequential(Block(), Block(), Block()), (4, 16, 16, 16))
    assert all(row.res_avg_sq_mean > row.res_avg_var for row in spp.rows)
    assert "mean shift" not in [finding.kind for finding in spp.diagnose()]
