"""The rules for trained networks: what training may do is no fault; a network that died is named."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from spp.diagnosed import blocks, network

from normfree.data import digits
from normfree.errors import UsageError
from normfree.optim import AGC, param_groups
from normfree.spp import Frame, diagnose, record, spectra

OPTIONS = dict(in_chans=1, depths=(1, 1, 1), widths=(16, 16, 32))


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    split = digits(1).train
    return (split.images[:count].float() / 255 - 0.305) / 0.376, torch.as_tensor(split.labels[:count])


@pytest.fixture(scope="module")
def run():
    """A small network that learned some digits, and the frame before its first step."""
    torch.manual_seed(0)
    model = network("nf_resnet26_small", small=False, **OPTIONS)
    x, y = images(512)
    first = Frame(0, record(model, x[:32]), spectra(model))
    optimizer = torch.optim.SGD(
        param_groups(model, weight_decay=5e-4, clipping=0.02), lr=0.5, momentum=0.9, nesterov=True
    )
    agc = AGC(optimizer)
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * min(1.0, (step + 1) / 50)
        part = slice(64 * (step % 8), 64 * (step % 8) + 64)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        agc.step()
        optimizer.step()
    assert (model(x).argmax(1) == y).float().mean() > 0.6
    return model.eval(), x[:32], first


def findings(model, x, first=None) -> list:
    return record(model, x).diagnose(trained=True, first=first, spectra=spectra(model))


def test_a_healthy_run_has_no_fault_although_it_left_its_initialization(run):
    model, x, first = run
    assert findings(model, x, first) == []
    assert findings(model, torch.randn_like(x), None) == []
    assert record(model, x).diagnose() != []  # which is what the rules for untrained networks make of it


@pytest.mark.parametrize("options", [dict(gamma=2.0), dict(alpha=1.0), dict(standardize=False)], ids=str)
def test_what_only_matters_before_training_is_not_asked(options):
    assert record(network("nf_resnet50", skip_gain=1.0, **options), (2, 3, 64, 64)).diagnose(trained=True) == []


def test_a_branch_whose_units_are_all_off_is_dead(run):
    model, x, first = run
    model = copy.deepcopy(model)
    torch.nn.init.constant_(blocks(model)[1].conv1.bias, -100.0)
    (finding,) = findings(model, x, first)
    assert (finding.kind, finding.blocks) == ("dead branch", ("stages.1.0",))
    assert "1 of 3 branches does not vary with the input (stages.1.0): its units are off" in str(finding)


def test_all_branches_may_be_dead(run):
    model, x, _ = run
    model = copy.deepcopy(model)
    for block in blocks(model):
        torch.nn.init.constant_(block.conv1.bias, -100.0)
    (finding,) = findings(model, x)
    assert finding.blocks == ("stages.0.0", "stages.1.0", "stages.2.0")
    assert "3 of 3 branches do not vary with the input" in str(finding)


def quiet(model):
    """The last transition hands on next to nothing but its bias, as units that die one after the other leave it."""
    last = blocks(model)[-1]
    torch.nn.init.constant_(last.conv_shortcut.gain, 1e-3)
    torch.nn.init.ones_(last.conv_shortcut.bias)
    torch.nn.init.constant_(last.conv2.gain, 1e-2)
    return model


def test_an_output_that_does_not_depend_on_the_input(run):
    model, x, first = run
    constant, drift = findings(quiet(copy.deepcopy(model)), x, first)
    assert (constant.kind, constant.blocks) == ("constant output", ("stages.2.0",))
    assert "says nearly the same of every input: from stages.2.0 on" in str(constant)
    assert (drift.kind, drift.blocks) == ("drift", ("stages.2.0",))
    assert [one.kind for one in findings(quiet(copy.deepcopy(model)), x)] == ["constant output"]  # of no first record


def test_variance_far_from_the_first_record(run):
    model, x, first = run
    rows = [dataclasses.replace(row, avg_var=row.avg_var / 1e5) for row in first.spp.rows]
    before = Frame(100, dataclasses.replace(first.spp, rows=rows), first.spectra)
    (finding,) = findings(model, x, before)
    assert finding.kind == "drift"
    assert "-fold since step 100, from " in str(finding)
    assert "; 3 of 3 blocks are further than 1000-fold away" in str(finding)


def test_weights_that_lost_their_rank(run):
    model, x, first = run
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks(model):
            for conv in (block.conv0, block.conv1, block.conv2):
                rows = conv.weight.flatten(1)
                conv.weight.copy_((rows[:1] + 1e-3 * rows).view_as(conv.weight))  # all rows alike
    found = [one for one in findings(model, x, first) if one.kind == "spectrum"]
    assert "such networks collapse" in str(found[0])
    with torch.no_grad():
        blocks(model)[0].conv0.bias[0] = torch.nan
        model.head.fc.weight[0, 0] = torch.nan
    assert [one.kind for one in findings(model, x, first)] == ["not finite"]


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_behind_the_blocks(run, part, value):
    model, x, _ = run
    model = copy.deepcopy(model)
    with torch.no_grad():
        getattr(model.head.fc, part)[0] = value
    for found in (findings(model, x), record(model, x).diagnose(trained=True), record(model, x).diagnose()):
        (finding,) = found
        assert (finding.kind, finding.blocks) == ("not finite", ("output", f"head.fc.{part}"))
        assert str(finding).endswith(f"; head.fc.{part} has values that are not finite")


def test_a_weight_that_is_not_finite_and_has_no_say(run):
    """Whose unit is off in the recording, behind a gate of 0, or in a layer that is not used."""
    model, x, _ = run
    model = copy.deepcopy(model)
    model.spare = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.spare.weight, torch.nan)
    torch.nn.init.constant_(model.spare.bias, torch.inf)
    (finding,) = record(model, x).diagnose(trained=True)
    assert finding.blocks == ("spare.weight", "spare.bias")
    assert "spare.weight and 1 more parameter have values that are not finite" in str(finding)


def test_logits_that_do_not_depend_on_the_input(run):
    model, x, _ = run
    for part, value in (("weight", 0.0), ("bias", 1e6)):
        broken = copy.deepcopy(model)
        torch.nn.init.constant_(getattr(broken.head.fc, part), value)
        (finding,) = findings(broken, x)
        assert (finding.kind, finding.blocks) == ("constant output", ("output",))
        assert "the network's output is nearly the same for every input" in str(finding)
        assert "stages.2.0, the last block, has" in str(finding)
    assert findings(broken, x[:1]) == []  # one input does not vary,
    assert findings(broken, x[:1].expand(4, -1, -1, -1)) == []  # nor does one that is shown several times


def test_numbers_far_from_zero_are_an_output(run):
    """Such as years, with a standard deviation of 10."""
    model, x, _ = run
    model = copy.deepcopy(model)
    with torch.no_grad():
        logits = model(x)
        model.head.fc.weight.mul_(10 / logits.std())
        model.head.fc.bias.fill_(2000.0)
    assert findings(model, x) == []


def test_what_is_recorded_of_the_output_is_kept(run):
    model, x, _ = run
    model = copy.deepcopy(model)
    torch.nn.init.constant_(model.head.fc.bias, torch.nan)
    spp = record(model, x)
    again = type(spp).from_dict(spp.to_dict())
    assert again.lost == ("head.fc.bias",)
    assert list(map(str, again.diagnose(trained=True))) == list(map(str, spp.diagnose(trained=True)))
    old = {key: value for key, value in spp.to_dict().items() if key not in ("output", "lost")}
    assert type(spp).from_dict(old).output is None  # of an older file


def test_what_cannot_be_compared_is_refused(run):
    model, x, first = run
    other = record(network("nf_resnet50"), (2, 3, 64, 64))
    with pytest.raises(UsageError, match="the record of step 0 is of other blocks than NFResNet"):
        diagnose(other, trained=True, first=first)
    with pytest.raises(UsageError, match="pass trained=True"):
        record(model, x).diagnose(first=first)
