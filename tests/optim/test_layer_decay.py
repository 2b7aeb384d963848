"""Layer-wise decay of the learning rate: the order of every family, and the factors against timm's."""

import pytest
import timm.optim
import torch
from small_models import CONTROLS, EFFICIENTNETS, GROUP_NORM, SMALL, small
from tiny_runs import network

import normfree
from normfree import UsageError
from normfree.models import segmenter
from normfree.optim import OptimConfig
from normfree.optim.layer_decay import layer_depths


@pytest.mark.parametrize("name", [*SMALL, *CONTROLS, *EFFICIENTNETS, *GROUP_NORM, "nf_cifarnet", "timm_nf_resnet26"])
def test_the_order_is_stem_blocks_classifier(name):
    if name == "nf_cifarnet":
        model = normfree.create_model(name, num_classes=4, widths=(8, 8, 8))
    elif name.startswith("timm"):
        model = normfree.create_model(name)
    else:
        model = small(name)
    depths, before = layer_depths(model), 0
    assert {depths[n] for n in depths if n.startswith("stem")} <= {0}
    for stage, blocks in enumerate(model.stages):
        for number, _ in enumerate(blocks):
            (depth,) = {depths[n] for n in depths if n.startswith(f"stages.{stage}.{number}.")}
            assert depth > before or (depth == before == 0 and not any(n.startswith("stem") for n in depths))
            before = depth
    assert {depths[n] for n in depths if n.startswith("head.")} == {before + 1}
    assert max(depths.values()) == before + 1


def test_the_factors_are_timms():
    model = network()
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.7)
    theirs = {p: group["lr_scale"] for group in groups for p in group["params"]}
    ours = OptimConfig(layer_decay=0.7).build(model)
    assert {p: g["lr_factor"] for g in ours.param_groups for p in g["params"]} == pytest.approx(theirs)
    assert min(theirs.values()) == pytest.approx(0.7**4)  # stem, three blocks, classifier


def test_it_multiplies_the_factors_of_roles():
    model = network()
    plain, both = (OptimConfig(layer_decay=0.5, lr_factors=roles).build(model) for roles in ({}, dict(gain=0.25)))
    alone = {p: g["lr_factor"] for g in plain.param_groups for p in g["params"]}
    for group in both.param_groups:
        for p in group["params"]:
            assert group["lr_factor"] == alone[p] * (0.25 if group["name"] == "gain" else 1)
    assert sum(len(group["params"]) for group in both.param_groups) == len(list(model.parameters()))


def test_a_head_lies_behind_its_backbone():
    backbone = normfree.create_model("nf_resnet26_small", num_classes=0, depths=(1, 1, 1), output_stride=8)
    model = segmenter(backbone, 3, width=8)
    depths = layer_depths(model)
    head = {depths[name] for name in depths if not name.startswith("backbone.")}
    assert head == {max(depths[name] for name in depths if name.startswith("backbone.")) + 1}
    assert depths["backbone.stem.conv.weight"] == 0


def test_what_is_refused():
    with pytest.raises(UsageError, match=r"optim.layer_decay \(=1.5\) must be above 0 and at most 1"):
        OptimConfig(layer_decay=1.5)
    net = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with pytest.raises(UsageError, match=r"optim.layer_decay needs the order of the layers, which Sequential does not"):
        OptimConfig(layer_decay=0.5, clipping=None).build(net)
