"""Weights in every form: which network they are of, what each tensor is called, and every bit there and back."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from small_models import CONTROLS, SMALL, small

import normfree
from normfree import UsageError
from normfree.models.config import ModelConfig
from normfree.weights import load_haiku, load_timm, to_timm
from normfree.weights.convert import (
    FORMS,
    choose_model,
    convert,
    empty_model,
    fits,
    fitting_models,
    load,
    report,
    same_tensors,
    shapes_of,
    tensor_names,
)

PAIRS = list(itertools.permutations(FORMS, 2))
NETWORKS = [name for name in SMALL | CONTROLS if name != "bn_nfnet_f0"]


def config(name: str) -> ModelConfig:
    return ModelConfig(name, options=dict((SMALL | CONTROLS)[name]))


def timm_net(classes: int = 10, channels: int = 3) -> torch.nn.Module:
    model = normfree.create_model("timm_test_nfnet", num_classes=classes, in_chans=channels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def through(model, name: str, form: str) -> torch.nn.Module:
    """Out in a form and into a fresh network."""
    weights = convert(model, form)
    if form != "normfree":
        return load(config(name), weights, form, "here")
    other = config(name).build(num_classes=10, in_chans=3)
    other.load_state_dict(weights)
    return other


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_all_directions_are_exact(before, after):
    """The released NFNet is the family that all three forms have."""
    model = small("nfnet_f0")
    given = convert(model, before)
    middle = through(through(model, "nfnet_f0", before), "nfnet_f0", after)
    back = convert(middle, before)
    if before == "haiku":
        assert pickle.dumps(given) == pickle.dumps(back)
    else:
        assert given.keys() == back.keys()
        assert all(torch.equal(given[name], back[name]) and given[name].shape == back[name].shape for name in given)
    assert same_tensors(model, middle, list(model.state_dict())) == []
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), middle.eval()(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_and_its_running_statistics(name):
    model = small(name)
    again = through(model, name, "haiku")
    kept = [tensor for tensor in model.state_dict() if not tensor.endswith("num_batches_tracked")]
    assert same_tensors(model, again, kept) == []
    assert not again.training


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_the_report_names_every_tensor_once(before, after):
    model = small("nfnet_f0")
    source, dest = (shapes_of(convert(model, form), form) for form in (before, after))
    rows = report(model, source, before, dest, after)
    assert sorted(row.source for row in rows) == sorted(source)
    assert sorted(row.dest for row in rows) == sorted(dest)
    for row in rows:
        assert (row.source_shape, row.dest_shape) == (source[row.source], dest[row.dest])
        assert np.prod(row.source_shape) == np.prod(row.dest_shape)


def test_the_report_of_what_one_side_lacks():
    model = small("bn_resnet50")
    arrays = convert(model, "haiku")
    averages = [module for module in arrays if module.endswith("_ema")]
    for module in averages:
        arrays[module] |= dict(hidden=arrays[module]["average"], counter=np.array(7))
    source, ours = shapes_of(arrays, "haiku"), shapes_of(model.state_dict(), "normfree")
    rows = report(model, source, "haiku", ours, "normfree")
    assert sorted(row.source for row in rows if row.source) == sorted(source)
    assert sorted(row.dest for row in rows if row.dest) == sorted(ours)
    unused = [row.source for row in rows if row.dest is None]
    assert sorted(unused) == sorted(f"{module}/{name}" for module in averages for name in ("hidden", "counter"))
    fresh = [row.dest for row in rows if row.source is None]
    assert fresh == [name for name in ours if name.endswith("num_batches_tracked")]


def test_without_running_statistics_they_are_fresh():
    model = small("bn_resnet50")
    arrays = {module: inner for module, inner in convert(model, "haiku").items() if not module.endswith("_ema")}
    state = load(config("bn_resnet50"), arrays, "haiku", "here").state_dict()
    assert all((state[name] == 1).all() for name in state if name.endswith("running_var"))
    assert all((state[name] == 0).all() for name in state if name.endswith(("running_mean", "tracked")))


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (7, 3), (3, 1), (0, 3), (1, 5)])
def test_classes_and_channels_come_from_the_tensors(classes, channels):
    model = timm_net(classes, channels)
    shapes = shapes_of(to_timm(model), "timm")
    assert choose_model(shapes, "timm", "file") == ("timm_test_nfnet", [])
    again = load(ModelConfig("timm_test_nfnet"), to_timm(model), "timm", "file")
    assert again.num_classes == classes
    assert again.in_chans == channels
    assert same_tensors(model, again, list(model.state_dict())) == []


def meta(name: str, form: str, **options) -> dict:
    """Shapes of a variant in a form, without its weights."""
    with torch.device("meta"):
        model = normfree.create_model(name, **options)
    if form == "timm":
        return shapes_of(to_timm(model), form)
    from normfree.weights.haiku import _haiku_shape

    own = model.state_dict()
    names = tensor_names(model, "haiku")
    return {theirs: _haiku_shape(theirs.rpartition("/")[2], own[ours]) for ours, theirs in names.items()}


HAIKU = ["nfnet_f0", "nfnet_f0_plus", "nf_regnet_b1", "nf_resnet50", "nf_seresnet50", "nf_resnet26_small"]
HAIKU += ["bn_resnet50", "bn_resnet50_v1", "plain_resnet50", "fixup_resnet50", "skipinit_resnet50"]


@pytest.mark.parametrize("name", HAIKU)
def test_the_authors_weights_are_recognized(name):
    shapes = meta(name, "haiku", num_classes=11)
    assert fitting_models(shapes, "haiku") == [name]
    shapes.popitem()
    assert fitting_models(shapes, "haiku") == []


@pytest.mark.parametrize(
    "name", ["timm_nfnet_l0", "timm_eca_nfnet_l0", "timm_nf_regnet_b1", "timm_nf_resnet50", "timm_nf_seresnet26"]
)
def test_timms_weights_are_recognized(name):
    assert fitting_models(meta(name, "timm", num_classes=11), "timm") == [name]


def test_the_released_function_comes_first():
    shapes = meta("timm_dm_nfnet_f0", "timm")
    assert fitting_models(shapes, "timm") == ["nfnet_f0", "timm_dm_nfnet_f0"]
    assert choose_model(shapes, "timm", "file") == ("nfnet_f0", ["timm_dm_nfnet_f0"])


@pytest.mark.parametrize("form", ["haiku", "timm"])
def test_no_model_fits(form):
    for shapes in ({}, {"a": (1,)}, {"stages.0.0.conv1.weight": (2**60,)}, {"NFNet/~/nf_block/~/conv0/w": ()}):
        assert fitting_models(shapes, form) == []
        with pytest.raises(UsageError, match=r"no model in .*--model"):
            choose_model(shapes, form, "file")


@pytest.mark.parametrize("head", [(2**60, 0), (0, 2**60), (2**40,), (2**60, 2**60), ()])
def test_the_shapes_of_a_file_are_not_believed(head):
    shapes = shapes_of(to_timm(timm_net()), "timm") | {"head.fc.weight": head, "stem.conv1.weight": (0, 2**60, 3, 3)}
    model = empty_model(ModelConfig("timm_test_nfnet"), shapes, "timm")
    assert model.num_classes == 1000
    assert not fits(model, shapes, "timm")


def test_what_does_not_fit_is_named():
    state = to_timm(timm_net())
    with pytest.raises(UsageError, match=r"^file has the tensors of timm_test_nfnet, not of nfnet_f0$"):
        load(ModelConfig("nfnet_f0"), state, "timm", "file")
    short = {name: tensor for name, tensor in state.items() if name != "head.fc.bias"}
    with pytest.raises(UsageError, match=r"^file: weights do not fit: 1 missing \(head.fc.bias\)$"):
        load(ModelConfig("timm_test_nfnet"), short, "timm", "file")
    with pytest.raises(UsageError, match=r"^file: head.fc.bias is of type torch.complex64"):
        load(ModelConfig("timm_test_nfnet"), state | {"head.fc.bias": torch.zeros(10) * 1j}, "timm", "file")
    with pytest.raises(UsageError, match="no Haiku counterpart"):
        convert(timm_net(), "haiku")
    with pytest.raises(UsageError, match="no counterpart in timm"):
        convert(small("nf_resnet50"), "timm")
    with pytest.raises(UsageError, match="'nfnet_f9' is unknown"):
        load(ModelConfig("nfnet_f9"), state, "timm", "file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32(dtype):
    state = {name: tensor.to(dtype) for name, tensor in to_timm(timm_net()).items()}
    model = load(ModelConfig("timm_test_nfnet"), state, "timm", "file")
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in to_timm(model).items())


def test_a_difference_of_one_bit_is_seen():
    a, b = timm_net(), timm_net()
    b.load_state_dict(a.state_dict())
    names = list(a.state_dict())
    assert same_tensors(a, b, names) == []
    with torch.no_grad():
        a.head.fc.bias[3] = 0.0
        b.head.fc.bias[3] = -0.0  # equal, but not the same
    assert same_tensors(a, b, names) == ["head.fc.bias"]


def test_the_loaders_agree():
    model = small("nfnet_f0")
    for form, fill in (("haiku", load_haiku), ("timm", load_timm)):
        weights = convert(model, form)
        ours = fill(normfree.create_model("nfnet_f0", num_classes=10, **SMALL["nfnet_f0"]), weights)
        assert same_tensors(ours, load(config("nfnet_f0"), weights, form, "here"), list(model.state_dict())) == []


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm_nf_resnet26", dict(widths=(32, 64, 64, 64))),
        ("nf_resnet50", SMALL["nf_resnet50"] | dict(skip_gain=None)),
        ("nfnet_f0", SMALL["nfnet_f0"] | dict(stem="dct")),
    ],
)
def test_constants_that_no_file_holds(name, options):
    """The branch's factor where there is no SkipInit, and the DCT: a network read from a file has them, too."""
    model = normfree.create_model(name, **options).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("gain"):
            parameter.fill_(1.0)  # no branch is 0
    form = "timm" if name.startswith("timm") else "normfree"
    loaded = load(ModelConfig(name, options=options), convert(model, form), form, "weights")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), model(x))
