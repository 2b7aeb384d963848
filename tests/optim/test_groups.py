"""Who gets what: every parameter in exactly one group."""

import re

import pytest
import torch
from optim_cases import answers
from small_models import CONTROLS, EFFICIENTNETS, SMALL, small
from tiny_runs import network
from torch import nn

import normfree
from normfree import UsageError
from normfree.nn import Role, SkipInit, SqueezeExcite, WSConv2d, parameter_roles
from normfree.optim import OptimConfig, agc_, freeze, param_groups

# docs/facts.md, "Who gets what": role -> (decayed, clipped)
TABLE = {
    "weight": (True, True),
    "classifier": (True, False),
    "gain": (False, True),
    "bias": (False, True),
    "skip_gain": (False, True),
}


def names_by_group(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


@pytest.mark.parametrize("name", [*SMALL, *CONTROLS, *EFFICIENTNETS])
def test_every_parameter_is_in_exactly_one_group(name):
    model = small(name)
    groups = param_groups(model, weight_decay=2e-5, clipping=0.01)
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", SMALL)
def test_the_released_table(name):
    groups = param_groups(small(name), weight_decay=2e-5, clipping=0.01)
    assert {group["name"]: (group["weight_decay"], group["clipping"]) for group in groups} == {
        role: (2e-5 if decayed else 0.0, 0.01 if clipped else None) for role, (decayed, clipped) in TABLE.items()
    }


@pytest.mark.parametrize("name", SMALL)
def test_what_is_in_which_group(name):
    model = small(name)
    groups = names_by_group(model, param_groups(model))
    assert groups["classifier"] == ["head.fc.weight"]
    assert "head.fc.bias" in groups["bias"]
    patterns = dict(
        weight=r"\.weight$", gain=r"(?<!skip)\.gain$", bias=r"\.bias$", skip_gain=r"\.skip_init\.skip_gain$"
    )
    for role, pattern in patterns.items():
        expected = [n for n, _ in model.named_parameters() if re.search(pattern, n) and n != "head.fc.weight"]
        assert groups[role] == expected, role
    if name != "nf_resnet50":
        assert {"stages.0.0.squeeze_excite.fc0.weight", "stages.0.0.squeeze_excite.fc1.weight"} <= set(groups["weight"])
        assert "stages.0.0.squeeze_excite.fc0.bias" in groups["bias"]


@pytest.mark.parametrize("name", [*CONTROLS, "bn_efficientnet_b0"])
def test_what_is_in_which_group_of_the_controls(name):
    model = small(name)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    expected = {role: [] for role in TABLE}
    for path, parameter in model.named_parameters():
        module, _, last = path.rpartition(".")
        role = last if last in ("bias", "skip_gain") else "gain" if module in norms or last == "scale" else "weight"
        expected["classifier" if path == "head.fc.weight" else role].append(path)
        assert parameter.ndim == 1 or role == "weight"
    assert names_by_group(model, param_groups(model)) == {role: names for role, names in expected.items() if names}


@pytest.mark.parametrize("name", normfree.list_models())
def test_every_variant_is_covered(name):
    two_per_stage = (2,) * len(normfree.model_info(name).depths)  # further blocks of a stage are like its second
    with torch.device("meta"):
        model = normfree.create_model(name, depths=two_per_stage)
    assert parameter_roles(model).keys() == dict(model.named_parameters()).keys()


def test_any_optimizer_takes_the_groups():
    groups = param_groups(small("nfnet_f0"), weight_decay=0.1, clipping=0.01)
    for optimizer in (torch.optim.SGD(groups, lr=0.1), torch.optim.AdamW(groups), torch.optim.RMSprop(groups)):
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0, 0.0, 0.0]
        assert [group["clipping"] for group in optimizer.param_groups] == [0.01, None, 0.01, 0.01, 0.01]


def test_without_clipping_nothing_is_clipped():
    assert {group["clipping"] for group in param_groups(small("nfnet_f0"))} == {None}
    assert {group["weight_decay"] for group in param_groups(small("nfnet_f0"))} == {0.0}


def test_frozen_parameters_and_missing_classifiers():
    model = small("nf_resnet50", num_classes=0)
    model.stem.requires_grad_(False)
    groups = param_groups(model)
    assert "classifier" not in names_by_group(model, groups)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_reset_classifier_is_still_the_classifier():
    model = small("nf_resnet50")
    model.reset_classifier(3)
    assert names_by_group(model, param_groups(model))["classifier"] == ["head.fc.weight"]


def test_networks_of_torchs_layers():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.PReLU(),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 2),
    )
    assert names_by_group(model, param_groups(model)) == {
        "weight": ["0.weight", "6.weight"],
        "gain": ["1.weight", "2.weight", "3.weight", "5.weight"],
        "bias": ["0.bias", "1.bias", "3.bias", "5.bias", "6.bias"],
    }


def test_networks_of_our_layers():
    model = nn.ModuleDict(dict(conv=WSConv2d(3, 8, 3), se=SqueezeExcite(8), skip=SkipInit(), plain=nn.Conv1d(2, 2, 1)))
    groups = names_by_group(model, param_groups(model))
    assert groups["weight"] == ["conv.weight", "se.fc0.weight", "se.fc1.weight", "plain.weight"]
    assert groups["skip_gain"] == ["skip.skip_gain"]


class Head(nn.Module):
    parameter_roles = {"fc.weight": Role.CLASSIFIER}

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.table = nn.Embedding(3, 4)
        self.head = Head()


def test_the_outermost_declaration_wins_and_the_caller_outranks_it():
    assert parameter_roles(Head()) == {"fc.weight": Role.CLASSIFIER, "fc.bias": Role.BIAS}
    assert parameter_roles(Head(), {"fc.weight": Role.WEIGHT})["fc.weight"] is Role.WEIGHT
    model = nn.Sequential(nn.Identity(), Head())
    assert parameter_roles(model)["1.fc.weight"] is Role.CLASSIFIER
    assert parameter_roles(model, {"1.fc.weight": Role.GAIN})["1.fc.weight"] is Role.GAIN
    model.parameter_roles = {"1.fc.weight": Role.WEIGHT}  # on an instance
    assert parameter_roles(model)["1.fc.weight"] is Role.WEIGHT


def test_parameters_without_a_role_are_named():
    with pytest.raises(UsageError, match=r'no role is known for temperature; pass roles=\{"temperature": \.\.\.\}'):
        param_groups(Odd())
    roles = {"temperature": Role.GAIN}
    model = Odd()
    assert names_by_group(model, param_groups(model, roles=roles)) == {
        "weight": ["table.weight"],
        "classifier": ["head.fc.weight"],
        "gain": ["temperature"],
        "bias": ["head.fc.bias"],
    }


@pytest.mark.parametrize("layer", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_layers_whose_units_are_not_the_first_dimension_say_so(layer):
    groups = param_groups(layer(4, 2, 1, groups=2), weight_decay=0.1, clipping=0.01)
    assert [(g["name"], g["weight_decay"], g.get("transposed")) for g in groups] == [
        ("weight", 0.1, 2),
        ("bias", 0, None),
    ]
    groups = param_groups(layer(2, 2, 1), weight_decay=0.1, clipping=0.01, unclipped=["weight"])
    assert [(g["clipping"], g.get("transposed")) for g in groups] == [(None, 1), (0.01, None)]


def test_roles_of_parameters_that_do_not_exist_are_named():
    with pytest.raises(UsageError, match=r"roles names fc\.wieght, which"):
        param_groups(Head(), roles={"fc.wieght": Role.WEIGHT})


def tied(role):
    model = nn.ModuleDict(dict(embed=nn.Linear(4, 2), head=Head()))
    model.head.fc.weight = model.embed.weight
    return model if role is None else (model, {"embed.weight": role, "head.fc.weight": role})


def test_a_shared_parameter_with_two_roles_is_named():
    with pytest.raises(UsageError, match=r"embed.weight \(weight\) is shared as head.fc.weight \(classifier\)"):
        param_groups(tied(None))


def test_a_shared_parameter_with_one_role_counts_once():
    model, roles = tied(Role.CLASSIFIER)
    assert names_by_group(model, param_groups(model, roles=roles)) == {
        "classifier": ["embed.weight"],
        "bias": ["embed.bias", "head.fc.bias"],
    }
    layer = nn.Linear(3, 3)
    assert sum(len(group["params"]) for group in param_groups(nn.Sequential(layer, layer))) == 2


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        (dict(weight_decay=-1e-5), r"weight_decay \(=-1e-05\)"),
        (dict(clipping=0.0), r"clipping \(=0.0\)"),
        (dict(clipping=-0.1), r"clipping \(=-0.1\)"),
        (dict(clipping=float("nan")), r"clipping \(=nan\)"),
        (dict(weight_decay=float("nan")), r"weight_decay \(=nan\)"),
    ],
    ids=str,
)
def test_bad_numbers_are_quoted(options, quoted):
    with pytest.raises(UsageError, match=quoted):
        param_groups(nn.Linear(2, 2), **options)


def test_roles_by_their_value():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    groups = {group["name"]: group["params"] for group in param_groups(model, roles={"1.weight": "classifier"})}
    assert groups["classifier"] == [model[1].weight]
    assert sum(p.numel() for params in groups.values() for p in params) == sum(p.numel() for p in model.parameters())
    with pytest.raises(UsageError, match=r"role of 1.weight \(='head'\) is unknown"):
        param_groups(model, roles={"1.weight": "head"})


def test_freezing():
    model = network()
    freeze(model, ["stem", "stages.0"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(("stem.", "stages.0."))}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = OptimConfig(weight_decay=0.1, sam_rho=0.05).build(model.train())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model(torch.randn(4, 1, 8, 8)).logsumexp(1).sum().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name in frozen)
    with pytest.raises(UsageError, match=r"'stems', which the network does not have; it has head, stages, stem"):
        freeze(model, ["stems"])
    with pytest.raises(UsageError, match="nothing to train"):
        freeze(model, ["stem", "stages", "head"])


@pytest.mark.parametrize("name", ["head.fc.bias", "stages.0.0.conv0.gain", "stages.0.0.skip_init.skip_gain"])
@pytest.mark.parametrize("how", ["roles", "unclipped"])
def test_what_is_left_out_of_clipping_is_not_decayed_if_it_was_not(name, how):
    model = small("nfnet_f0")
    before = answers(model)
    options = dict(roles={name: "classifier"}) if how == "roles" else dict(unclipped=[name])
    after = answers(model, **options)
    role = "classifier" if how == "roles" else before[name][0]
    assert after.pop(name) == (role, False, False)
    assert before.pop(name)[1:] == (False, True)
    assert after == before  # nobody else


def test_weights_that_are_left_out_of_clipping_are_decayed_as_before():
    model = small("nfnet_f0")
    after = answers(model, unclipped=["stem.*", "*.gain"])
    for name, (role, decayed, clipped) in answers(model).items():
        left_out = name.startswith("stem.") or name.endswith(".gain")
        assert after[name] == (role, decayed, clipped and not left_out)
    assert answers(model, unclipped="stem.*") == answers(model, unclipped=["stem.*"])


def test_groups_of_one_role_that_differ_keep_its_name():
    groups = param_groups(small("nfnet_f0"), weight_decay=0.1, clipping=0.01, unclipped=["*.squeeze_excite.*"])
    seen = [(group["name"], group["weight_decay"], group["clipping"]) for group in groups]
    assert seen == [
        ("weight", 0.1, 0.01),
        ("weight", 0.1, None),
        ("classifier", 0.1, None),
        ("gain", 0.0, 0.01),
        ("bias", 0.0, 0.01),
        ("bias", 0.0, None),
        ("skip_gain", 0.0, 0.01),
    ]


def test_unclipped_names_that_do_not_exist_are_named():
    with pytest.raises(UsageError, match=r"unclipped names \*\.wieght, which the model does not have"):
        param_groups(Head(), unclipped=["fc.*", "*.wieght"])


class Timm(nn.Module):
    """Parameters as in timm's NFNets: gains of shape (C, 1, 1, 1), scalars at a block's end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stem.gain = nn.Parameter(torch.full((4, 1, 1, 1), 2.0))
        self.skipinit_gain = nn.Parameter(torch.ones(()))
        self.fc = nn.Linear(4, 2)

    def get_classifier(self):
        return self.fc


def test_patterns_of_roles():
    roles = {"*.gain": "gain", "skip*_gain": "skip_gain"}
    assert answers(Timm(), roles=roles) == {
        "skipinit_gain": ("skip_gain", False, True),
        "stem.weight": ("weight", True, True),
        "stem.bias": ("bias", False, True),
        "stem.gain": ("gain", False, True),
        "fc.weight": ("classifier", True, False),
        "fc.bias": ("bias", False, True),
    }
    assert parameter_roles(Timm(), roles | {"stem.gain": "weight"})["stem.gain"] is Role.WEIGHT  # a name outranks
    with pytest.raises(UsageError, match=r"stem.gain is gain by roles '\*.gain' and bias by roles 'stem.g\*'; name it"):
        param_groups(Timm(), roles=roles | {"stem.g*": "bias"})
    with pytest.raises(UsageError, match=r"roles names \*\.gian, which"):
        param_groups(Timm(), roles={"*.gian": "gain"})
    with pytest.raises(
        UsageError, match=r'for skipinit_gain, stem.gain; pass roles=\{"skipinit_gain": ..., "\*.gain": ...'
    ):
        param_groups(Timm())


def test_gains_with_several_rows_are_one_unit():
    model = Timm()
    groups = param_groups(model, clipping=0.01, roles={"*.gain": "gain", "skipinit_gain": "skip_gain"})
    assert [group["name"] for group in groups if group.get("one_unit")] == ["gain"]
    model.stem.gain.grad = torch.zeros(4, 1, 1, 1)
    model.stem.gain.grad[1] = 5.0
    assert agc_(groups).units == {"gain": 1}
    torch.testing.assert_close(model.stem.gain.grad.flatten()[1].item(), 0.01 * 4.0)  # |gain| is 4


@pytest.mark.parametrize("name", SMALL)
def test_no_released_group_is_of_several_rows(name):
    for group in param_groups(small(name), clipping=0.01):
        assert group.keys() == {"params", "name", "weight_decay", "clipping"}
