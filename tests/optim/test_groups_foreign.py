"""Parameter groups of other people's networks: layers of torch, and which layer is the classifier."""

import re
import warnings

import optim_cases
import pytest
import timm
import torch
import torchvision
from optim_cases import answers
from small_models import small
from torch import nn

from normfree import UsageError
from normfree.nn import Role, SqueezeExcite, WSConv2d, explain_roles, parameter_roles
from normfree.optim import param_groups

# docs/facts.md, "Who gets what": role -> (decayed, clipped)
LAYERS = {
    "lstm": (nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2), 12, 8),
    "gru": (nn.GRU(2, 3, bias=False), 2, 0),
    "cell": (nn.LSTMCell(2, 3), 2, 2),
    "attention": (nn.MultiheadAttention(4, 2, add_bias_kv=True), 2, 4),
    "attention of other sizes": (nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False), 4, 0),
    "embedding": (nn.Embedding(3, 4), 1, 0),
    "bag": (nn.EmbeddingBag(3, 4), 1, 0),
    "bilinear": (nn.Bilinear(2, 3, 4), 1, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torchs_layers_are_known(name):
    layer, weights, biases = LAYERS[name]
    roles = list(parameter_roles(layer).values())
    assert roles.count(Role.WEIGHT) == weights
    assert roles.count(Role.BIAS) == biases
    assert len(roles) == weights + biases


@pytest.mark.parametrize(
    "norm", [nn.RMSNorm(4), nn.BatchNorm1d(4), nn.InstanceNorm2d(4, affine=True), nn.SyncBatchNorm(4)]
)
def test_norms_are_known(norm):
    assert set(parameter_roles(norm).values()) <= {Role.GAIN, Role.BIAS}


# networks whose modules declare nothing: the parameters that are the classifier, and how it is found
FOREIGN = {
    "timm resnet18": (lambda: timm.create_model("resnet18"), ["fc.weight"], "get_classifier"),
    "timm regnety_002": (lambda: timm.create_model("regnety_002"), ["head.fc.weight"], "get_classifier"),
    "timm no classes": (lambda: timm.create_model("resnet18", num_classes=0), [], None),
    "timm several": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
        ["head.weight", "head_dist.weight"],
        "get_classifier",
    ),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(), ["fc.weight"], "guessed"),
    "torchvision vgg11": (lambda: torchvision.models.vgg11(), ["classifier.6.weight"], "guessed"),
    "torchvision squeezenet": (lambda: torchvision.models.squeezenet1_1(), ["classifier.1.weight"], "guessed"),
    "torchvision densenet121": (lambda: torchvision.models.densenet121(), ["classifier.weight"], "guessed"),
    "torchvision mobilenet": (lambda: torchvision.models.mobilenet_v3_small(), ["classifier.3.weight"], "guessed"),
    "torchvision vit_b_16": (lambda: torchvision.models.vit_b_16(), ["heads.head.weight"], "guessed"),
    "wrapped": (
        lambda: nn.Sequential(nn.Identity(), torchvision.models.resnet18()), ["1.fc.weight"], "guessed"
    ),
    "parallel": (lambda: nn.DataParallel(torchvision.models.resnet18()), ["module.fc.weight"], "guessed"),
}  # fmt: skip
TOKENS = {"*cls_token": "bias", "*class_token": "bias", "*dist_token": "bias", "*pos_embed*": "bias"}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_classifier_of_other_networks_is_found(name):
    make, expected, source = FOREIGN[name]
    with torch.device("meta"):
        model = make()
    names = dict(model.named_parameters())
    roles = {key: role for key, role in TOKENS.items() if any(re.fullmatch(key.replace("*", ".*"), n) for n in names)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = answers(model, roles=roles)
    classifiers = [name for name, (role, *_) in found.items() if role == "classifier"]
    assert classifiers == expected
    assert all(found[name] == ("classifier", True, False) for name in expected)
    assert {its.source for its in explain_roles(model, roles) if its.role is Role.CLASSIFIER} == {source} - {None}
    if source == "guessed":
        (warning,) = said
        assert str(warning.message).startswith(f"{expected[0]} is taken for the classifier's weight and not clipped")
        assert warning.filename == optim_cases.__file__  # the caller's line
        for role in ("classifier", "weight"):  # said by the caller: nothing is guessed
            assert answers(model, roles=roles | {expected[0]: role})[expected[0]] == (role, True, role == "weight")
        answers(model, clipping=None, roles=roles)  # nothing is clipped: nothing to say
    else:
        assert not said


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("make", "name"), [(Own, "fc2.weight"), (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)), "1.weight")]
)
def test_an_undeclared_classifier_is_said_with_its_name_and_clipped(make, name):
    model = make()
    with pytest.warns(UserWarning, match=f"no classifier is declared, and {name} of the last linear layer is clipped"):
        assert answers(model)[name] == ("weight", True, True)
    for options in (
        dict(roles={name: "classifier"}),
        dict(roles={name: "weight"}),
        dict(unclipped=[name]),
        dict(clipping=None),
    ):
        answers(model, **options)  # decided: a warning would be an error here


def test_it_is_said_once():
    model = Own()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            answers(model)
    assert len(said) == 1


def test_networks_of_our_blocks_without_a_classifier_say_nothing():
    answers(nn.Sequential(WSConv2d(3, 8, 3), SqueezeExcite(8)))
    answers(small("nfnet_f0", num_classes=0))


def test_a_tied_classifier_is_one_parameter():
    model = nn.ModuleDict(dict(embed=nn.Embedding(5, 4), fc=nn.Linear(4, 5, bias=False)))
    model.fc.weight = model.embed.weight
    with pytest.warns(UserWarning, match=r"embed.weight is taken"):
        assert answers(model) == {"embed.weight": ("classifier", True, False)}


def test_what_it_guessed_is_printed_on_request(capsys):
    with pytest.warns(UserWarning, match="fc.weight is taken"):
        param_groups(torchvision.models.resnet18(num_classes=3), weight_decay=0.1, clipping=0.01, verbose=True)
    header, first, *_, weight, bias = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in (header, first, weight, bias)]
    assert rows == [
        ["parameter", "shape", "role", "decayed", "clipped", "why"],
        ["conv1.weight", "64x3x7x7", "weight", "yes", "per unit", "layer Conv2d"],
        ["fc.weight", "3x512", "classifier", "yes", "no", "attribute fc of ResNet"],
        ["fc.bias", "3", "bias", "no", "as one", "layer Linear"],
    ]
    param_groups(small("nfnet_f0"))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "what", [torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), [nn.Linear(2, 2).weight], None]
)
def test_what_is_no_network_is_refused(what):
    with pytest.raises(UsageError, match=r"a network \(torch.nn.Module\) is needed, not (SGD|list|NoneType)"):
        param_groups(what)


def test_lazy_layers_without_a_shape_are_refused():
    with pytest.raises(UsageError, match=r"0.weight of a lazy layer has no shape yet"):
        param_groups(nn.Sequential(nn.LazyLinear(3)))


class Headed(nn.Module):
    """A network with the heads given as attributes, or returned by get_classifier()."""

    def __init__(self, **heads):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        for name, head in heads.items():
            setattr(self, name, head)


class Getting(Headed):
    def __init__(self, form):
        super().__init__(a=nn.Linear(4, 2), b=nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
        self.form = form

    def get_classifier(self):
        return self.form([("a", self.a), ("b", self.b)])


def two():
    return [nn.Linear(4, 2), nn.Linear(4, 3)]


# heads, the classifiers' names, and whether a warning names each
HEADS = {
    "list": (lambda: Headed(heads=nn.ModuleList(two())), ["heads.0", "heads.1"], True),
    "dict": (lambda: Headed(head=nn.ModuleDict(dict(zip("xy", two(), strict=True)))), ["head.x", "head.y"], True),
    "two attributes": (lambda: Headed(classifier=two()[0], head=two()[1]), ["classifier", "head"], True),
    "a hidden fc": (lambda: Headed(fc=nn.Linear(4, 6), head=nn.Linear(6, 2)), ["head"], True),
    "nested": (lambda: Headed(heads=nn.ModuleList([nn.ModuleList(two())])), ["heads.0.0", "heads.0.1"], True),
    "returned list": (lambda: Getting(lambda kv: nn.ModuleList([v for _, v in kv])), ["a", "b.2"], False),
    "returned tuple": (lambda: Getting(lambda kv: tuple(v for _, v in kv)), ["a", "b.2"], False),
    "returned dict": (lambda: Getting(dict), ["a", "b.2"], False),
    "returned ModuleDict": (lambda: Getting(lambda kv: nn.ModuleDict(kv)), ["a", "b.2"], False),
}


@pytest.mark.parametrize("name", HEADS)
def test_each_of_several_heads_is_a_classifier(name):
    make, layers, said = HEADS[name]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = answers(make())
    names = [f"{layer}.weight" for layer in layers]
    assert [name for name, (role, *_) in found.items() if role == "classifier"] == names
    assert [str(w.message).split(" is taken")[0] for w in warned] == (names if said else [])


def branches():
    return Headed(outs=nn.ModuleDict(dict(classes=nn.Linear(4, 5), boxes=nn.Linear(4, 20))))


# networks whose classifier cannot be known, and what may be it
DETECTORS = {
    "retinanet": (
        lambda: torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None),
        ["head.classification_head.cls_logits", "head.regression_head.bbox_reg"],
    ),
    "fasterrcnn": (
        lambda: torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None),
        ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"],
    ),
    "maskrcnn": (
        lambda: torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None),
        ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"],
    ),
    "branches": (branches, ["outs.classes", "outs.boxes"]),
    "branches of a head": (lambda: Headed(head=Headed(a=two()[0], b=two()[1])), ["head.a", "head.b"]),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_where_the_classifier_cannot_be_known_the_candidates_are_named(name):
    make, layers = DETECTORS[name]
    with torch.device("meta"):
        model = make()
    names = [f"{layer}.weight" for layer in layers]
    roles = {"*.conv5_mask.weight": "weight"} if name == "maskrcnn" else {}  # a transposed convolution's units
    with pytest.warns(UserWarning, match="no classifier is declared") as said:
        found = answers(model, roles=roles)
    assert len(said) == 1
    assert f"and {', '.join(names)} are clipped like any other, though each may be one" in str(said[0].message)
    assert all(found[name] == ("weight", True, True) for name in names)
    assert not any(role == "classifier" for role, *_ in found.values())
    found = answers(
        model, roles=roles | {names[0]: "classifier", names[1]: "weight"}
    )  # decided: a warning is an error here
    assert found[names[0]] == ("classifier", True, False)


def test_layers_in_a_row_are_one_head():
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.hidden, self.out = nn.Conv2d(4, 8, 1), nn.Linear(32, 6), nn.Linear(6, 3)

    with pytest.warns(UserWarning, match="head.out.weight is taken") as said:
        answers(Headed(head=Mlp()))
    assert len(said) == 1
