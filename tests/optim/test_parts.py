"""Clipping by parts of a network; the decay of weights does not depend on it."""

import itertools

import pytest
from optim_cases import answers
from torch import nn

import normfree
from normfree import UsageError
from normfree.optim import param_groups

OPTIONS = dict(num_classes=4, depths=(1, 1, 1), widths=(16, 16, 32))


def network():
    return normfree.create_model("nf_resnet26_small", **OPTIONS)


def thresholds(model, **options):
    """The threshold of each parameter by its name, and its weight decay."""
    made = param_groups(model, **{"weight_decay": 0.1, "clipping": 0.01, **options})
    of = {p: (group["clipping"], group["weight_decay"]) for group in made for p in group["params"]}
    return {name: of[p] for name, p in model.named_parameters()}


PARTS = dict(
    stem=lambda name: name.startswith("stem."),
    stages=lambda name: name.startswith("stages."),
    classifier=lambda name: name in ("head.fc.weight", "head.fc.bias"),
)


@pytest.mark.parametrize("on", list(itertools.product([True, False], repeat=3)))
def test_every_combination_of_stem_body_and_classifier(on):
    """NFNets, section 4.1: the parts are clipped or not, and what is decayed stays the same."""
    model = network()
    usual = thresholds(model)
    got = thresholds(model, clipping_parts=dict(zip(PARTS, on, strict=True)))
    for name, (clipping, decay) in got.items():
        part = next((part for part, inside in PARTS.items() if inside(name)), None)
        clipped = usual[name][0] is not None if part is None else on[list(PARTS).index(part)]
        assert clipping == (0.01 if clipped else None), name
        assert decay == usual[name][1]
    assert {decay for _, decay in got.values()} == {0.0, 0.1}


def test_a_part_may_have_a_threshold_of_its_own():
    model = network()
    got = thresholds(model, clipping_parts={"stages": 0.5, "stages.1": 0.02, "classifier": True, "stem": False})
    for name, (clipping, _) in got.items():
        expected = {"stages.1": 0.02, "stages.0": 0.5, "stages.2": 0.5, "stem": None, "head": 0.01}
        assert clipping == next(v for part, v in expected.items() if name.startswith(f"{part}.")), name


def test_the_most_exact_part_counts_whatever_the_order():
    entries = {
        "*.bias": 0.4,
        "stages": 0.1,
        "stages.0": False,
        "stages.0.0.conv0": 0.2,
        "stages.0.0.conv0.gain": 0.3,
    }
    for order in (entries, dict(reversed(entries.items()))):
        got = {name: clipping for name, (clipping, _) in thresholds(network(), clipping_parts=order).items()}
        assert got["stages.0.0.conv0.gain"] == 0.3
        assert got["stages.0.0.conv0.bias"] == 0.2
        assert got["stages.0.0.conv1.weight"] is None
        assert got["stages.1.0.conv0.bias"] == 0.1
        assert got["stem.conv.bias"] == 0.4
        assert got["head.fc.bias"] == 0.4
        assert got["head.fc.weight"] is None  # the classifier, as ever


def test_without_a_threshold_only_parts_with_one_of_their_own_are_clipped():
    got = thresholds(network(), clipping=None, clipping_parts={"stages.0": 0.02, "stem": True})
    assert {name.split(".")[0] for name, (clipping, _) in got.items() if clipping is not None} == {"stages"}
    assert {clipping for name, (clipping, _) in got.items() if name.startswith("stages.0.")} == {0.02}


def test_what_is_not_clipped_outranks_parts():
    got = thresholds(network(), clipping_parts={"stages": 0.1}, unclipped=["stages.0", "*.skip_gain"])
    for name, (clipping, _) in got.items():
        if name.startswith("stages.0.") or name.endswith("skip_gain"):
            assert clipping is None
        elif name.startswith("stages."):
            assert clipping == 0.1


def test_groups_of_a_role_with_several_thresholds_have_one_name():
    made = param_groups(network(), clipping=0.01, clipping_parts={"stages.0": 0.02, "stem": False})
    weights = [group["clipping"] for group in made if group["name"] == "weight"]
    assert sorted(weights, key=str) == [0.01, 0.02, None]


def test_a_guessed_classifier_that_is_a_part_needs_no_warning():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

    with pytest.warns(UserWarning, match="fc.weight is taken for the classifier's weight and not clipped"):
        assert answers(Net())["fc.weight"] == ("classifier", True, False)
    assert answers(Net(), clipping_parts={"classifier": True})["fc.weight"] == ("classifier", True, True)
    assert answers(Net(), clipping_parts={"fc": False})["fc.bias"] == ("bias", False, False)


def test_kinds_of_clipping_have_parts_too(capsys):
    made = param_groups(
        network(), clipping=1.0, clipping_kind="norm", clipping_parts={"stem": False, "classifier": True}, verbose=True
    )
    assert {group["clipping_kind"] for group in made} == {"norm"}
    assert {group["clipping"] for group in made} == {1.0, None}
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "  with all  " in lines["head.fc.weight"]
    assert "  no  " in lines["stem.conv.weight"]
    param_groups(network(), clipping=1.0, clipping_kind="layer", clipping_parts={"stages.0": 0.5}, verbose=True)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "  as one 0.5  " in lines["stages.0.0.conv0.weight"]
    assert "  as one  " in lines["stages.1.0.conv0.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(clipping_parts={"stm": True}), r"clipping_parts names 'stm', .*; it has stem, stages, head, classifier"),
        (dict(clipping_parts={"stages.7": True}), "clipping_parts names 'stages.7'"),
        (dict(clipping_parts={"stem": None}), r"clipping_parts.stem \(=None\) must be true \(clipped\), false"),
        (dict(clipping_parts={"stem": 0}), r"clipping_parts.stem \(=0\) must be true"),
        (dict(clipping_parts={"stem": "on"}), r"clipping_parts.stem \(='on'\) must be true"),
        (dict(clipping_parts={"stem": float("nan")}), r"clipping_parts.stem \(=nan\) must be true"),
        (
            dict(clipping_parts={"stem": 0.1}, clipping_kind="norm"),
            r"clipping_parts.stem \(=0.1\) must be true or false with clipping_kind norm",
        ),
        (
            dict(clipping_parts={"*.bias": 0.1, "stem.*": 0.2}),
            r"clipping_parts '\*.bias' and 'stem.\*' differ on stem.conv.bias; name it",
        ),
        (dict(clipping_parts={"*.bias": 1.0, "stem.*": True}), "differ on stem.conv.bias"),
        (dict(unclipped=["stm"]), "unclipped names stm, which the model does not have"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        thresholds(network(), **options)
