"""Each failure that the paper names, planted in a healthy network, is found and named; healthy networks are not."""

import dataclasses
import math
import re

import pytest
import torch
from spp.diagnosed import FIGURES, NORMFREE, SETTINGS, V2_AFTER, blocks, findings, kinds, network
from torch import nn

from normfree.models import NFBlock
from normfree.spp import diagnose, record

# Explosion


@pytest.mark.parametrize("name", NORMFREE)
def test_explosion_without_beta(name):
    model = network(name, depths=(2, 3, 6, 3), **FIGURES)
    for block in blocks(model):
        block.conv0.input_scale *= block.beta
        if block.conv_shortcut is not None:
            block.conv_shortcut.input_scale *= block.beta
    spp = record(model, (2, 3, 64, 64))
    (finding,) = [f for f in spp.diagnose() if f.kind == "explosion"]
    worst = max(spp.rows, key=lambda row: row.avg_var)
    assert finding.blocks[0] == worst.block
    assert f"to {worst.avg_var:.3g} at {worst.block}" in str(finding)


def without_norm(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return model


@pytest.mark.parametrize("name", ["bn_resnet50", "bn_resnet50_v1"])
def test_explosion_without_batch_norm(name):
    assert "explosion" in kinds(without_norm(network(name)))


def test_skipinit_that_starts_at_one_explodes():
    model = network("skipinit_resnet50")
    for block in blocks(model):
        nn.init.ones_(block.skip_init.skip_gain)
    assert "explosion" in kinds(model)


def test_an_explosion_beyond_float32_is_named_as_well():
    model = network("plain_resnet50", depths=(3, 3, 8, 3), widths=(64, 64, 64, 64))
    with torch.no_grad():
        for block in blocks(model):
            block.conv2.weight *= 1e3
    found = findings(model)
    assert [f.kind for f in found] == ["not finite", "explosion"]


# Attenuation


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["nf_resnet50", "nf_seresnet50"])
def test_the_gain_of_he(name, options):
    (finding,) = findings(network(name, gamma=math.sqrt(2), **options))
    assert finding.kind == "attenuation"
    as_if = float(str(finding).split("as if gamma were ")[1].split()[0])
    assert as_if == pytest.approx(math.sqrt(2), rel=0.05)  # of one sixth of the branches' 20% scatter
    assert "instead of 1.713" in str(finding)


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0"])
def test_a_missing_gain(name):
    (finding,) = findings(network(name, gamma=1.0, **FIGURES))
    assert finding.kind == "attenuation"
    assert finding.blocks


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("name", NORMFREE[1:])
def test_squeeze_excite_without_its_factor(name, options):
    spp = record(network(name, se_factor=1.0, **options), (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert finding.kind == "attenuation"
    assert finding.blocks == tuple(spp.blocks)
    (gate,) = re.findall(r"gate averages ([\d.]+) in stages.0.0 and", str(finding))
    assert float(gate) == pytest.approx(0.5, abs=0.02)  # a sigmoid around 0
    assert re.search(r"multiply it by (2|1\.9\d|2\.0\d?)$", str(finding))


def test_a_gain_that_is_too_large():
    (finding,) = findings(network("nf_resnet50", gamma=2.0, skip_gain=1.0))
    assert finding.kind == "branch variance"
    assert "branches gain variance in every block" in str(finding)


# Mean shift


@pytest.mark.parametrize("options", SETTINGS[1:], ids=str)
@pytest.mark.parametrize("name", ["nf_resnet50", "nf_seresnet50"])
def test_weights_that_are_not_standardized_shift_means(name, options):
    spp = record(network(name, standardize=False, **options), (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert finding.kind == "mean shift"
    worst = next(row for row in spp.rows if row.block == finding.blocks[0])
    assert f"({worst.avg_sq_mean:.3g} to {worst.avg_var:.3g})" in str(finding)
    assert worst.avg_sq_mean > 2 * worst.avg_var


@pytest.mark.parametrize("name", NORMFREE)
def test_a_planted_mean(name):
    model = network(name, **FIGURES)
    with torch.no_grad():
        for block in blocks(model):
            block.conv2.bias.normal_(std=3.0)
    assert "mean shift" in kinds(model)


# Branches: variance, dead


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("name", NORMFREE)
@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_one_branch_of_another_variance(name, factor, options):
    model = network(name, **options)
    with torch.no_grad():
        blocks(model)[3].conv2.gain *= factor
    spp = record(model, (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert (finding.kind, finding.blocks) == ("branch variance", (spp.rows[3].block,))
    assert f"ends with variance {spp.rows[3].res_avg_var:.3g} where" in str(finding)


@pytest.mark.parametrize("factor", [0.3, 3.0])
@pytest.mark.parametrize(("name", "options"), [("bn_resnet50", {}), ("bn_resnet50", V2_AFTER), ("bn_resnet50_v1", {})])
def test_one_branch_of_another_variance_behind_batch_norm(name, options, factor):
    model = network(name, **options)
    block = blocks(model)[3]
    with torch.no_grad():
        (block.bn2 if name.endswith("v1") else block.conv2).weight *= factor
    (finding,) = findings(model)
    assert (finding.kind, finding.blocks) == ("branch variance", ("stages.1.1",))


def zero_gain(block):
    nn.init.zeros_(block.conv2.gain)


def zero_weight(block):
    nn.init.zeros_(block.conv1.weight)


def zero_skip_gain(block):
    nn.init.zeros_(block.skip_init.skip_gain)


@pytest.mark.parametrize("kill", [zero_gain, zero_weight, zero_skip_gain])
@pytest.mark.parametrize("name", NORMFREE)
def test_a_dead_branch(name, kill):
    model = network(name, **FIGURES)
    kill(blocks(model)[3])
    spp = record(model, (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert (finding.kind, finding.blocks) == ("dead branch", (spp.rows[3].block,))
    assert f"the branch of {spp.rows[3].block} " in str(finding)


@pytest.mark.parametrize("name", ["nf_resnet50", "bn_resnet50"])
def test_a_branch_that_is_almost_dead_is_named_once(name):
    model = network(name)
    layer = blocks(model)[3].conv2
    with torch.no_grad():
        (layer.gain if name == "nf_resnet50" else layer.weight).mul_(1e-4)
    assert kinds(model) == ["dead branch"]


@pytest.mark.parametrize("name", ["bn_resnet50", "bn_resnet50_v1", "bn_nfnet_f0"])
def test_a_dead_branch_behind_batch_norm(name):
    model = network(name)
    block = blocks(model)[3]
    nn.init.zeros_((block.bn2 if name.endswith("v1") else block.conv2).weight)
    spp = record(model, (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert (finding.kind, finding.blocks) == ("dead branch", (spp.rows[3].block,))


# Missing reset


@pytest.mark.parametrize("name", NORMFREE)
def test_a_missing_reset(name):
    model = network(name, **FIGURES)
    for block in blocks(model):
        if block.conv_shortcut is not None:
            block.conv_shortcut.input_scale *= block.beta
    spp = record(model, (2, 3, 64, 64))
    found = spp.diagnose()
    assert {f.kind for f in found} == {"missing reset"}
    due = [row for row in spp.rows if row.transition and row.theory.beta**2 >= 2]
    assert [f.blocks for f in found] == [(row.block,) for row in due]
    for finding, row in zip(found, due, strict=True):
        assert f"has variance {row.shortcut_var:.3g} where {row.theory.shortcut_var:.3g} was due" in str(finding)


class OfTheSignal(nn.Module):
    """A shortcut's convolution that sees the block's input instead of what it is given."""

    def __init__(self, block):
        super().__init__()
        self.conv, self.signal = block.conv_shortcut, None
        block.conv_shortcut = self
        block.register_forward_pre_hook(self.keep)

    def keep(self, block, args):
        self.signal = args[0]

    def forward(self, _):
        return self.conv(self.signal)


@pytest.mark.parametrize(("name", "options"), [("bn_resnet50", {}), ("bn_resnet50", V2_AFTER)])
def test_a_missing_reset_beside_batch_norm(name, options):
    model = network(name, **options)
    for block in blocks(model):
        if block.conv_shortcut is not None:
            OfTheSignal(block)
    found = findings(model)
    assert {f.kind for f in found} == {"missing reset"}
    assert found[-1].blocks == ("stages.3.0",)


def test_a_missing_reset_without_the_shortcuts_batch_norm():
    model = network("bn_resnet50_v1", small=False)
    for block in blocks(model):
        if block.conv_shortcut is not None:
            block.shortcut_bn = nn.Identity()
    found = findings(model)
    assert {f.kind for f in found} == {"missing reset"}
    assert found[-1].blocks == ("stages.3.0",)


# Not finite, and the rest


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["nf_resnet50", "bn_resnet50"])
def test_not_finite(name, value):
    model = network(name)
    with torch.no_grad():
        blocks(model)[3].conv1.weight[0] = value
    spp = record(model, (2, 3, 64, 64))
    (finding,) = spp.diagnose()
    assert (finding.kind, finding.blocks) == ("not finite", ("stages.1.1", "stages.1.1.conv1.weight"))
    assert f"having taken a variance of {spp.rows[2].avg_var:.3g}" in str(finding)


def test_findings_are_sentences():
    (finding,) = findings(network("nf_resnet50", gamma=math.sqrt(2)))
    assert str(finding) == f"{finding.kind}: {finding.message}"
    assert len(str(finding).splitlines()) == 1


def test_recordings_read_from_a_file_are_judged_alike():
    spp = record(network("nf_seresnet50", se_factor=1.0, **FIGURES), (2, 3, 64, 64))
    assert diagnose(type(spp).from_dict(spp.to_dict())) == spp.diagnose()


def test_named_blocks_without_branches_are_not_judged():
    model = network("nf_resnet50")
    spp = record(model, (2, 3, 64, 64), blocks="stages.*")
    rows = [dataclasses.replace(row, res_avg_var=None, added_var=None, theory=None) for row in spp.rows]
    assert dataclasses.replace(spp, rows=rows).diagnose() == []


def test_our_blocks_are_those_the_faults_are_planted_in():
    assert all(isinstance(block, NFBlock) for name in NORMFREE for block in blocks(network(name)))
