"""Networks for pixels as files: the network's function at any batch size, no arithmetic on weights, what is said."""

import onnx
import onnxruntime
import pytest
import torch
from small_models import shake, small

from normfree import UsageError
from normfree.export import (
    Preprocessing,
    open_archive,
    open_onnx,
    operators,
    to_archive,
    to_onnx,
    weight_arithmetic,
)
from normfree.models import create_model, depth_estimator, segmenter

CLASSES = ["background", "disc", "box"]
VIEW = Preprocessing(48, 3, (0.5,) * 3, (0.25,) * 3, 0, 35, "short_side", 50)
MAKERS = {"segmentation": lambda net: segmenter(net, 3, width=16), "depth": lambda net: depth_estimator(net, width=16)}
FORMATS = {"onnx": (to_onnx, open_onnx), "pt2": (to_archive, open_archive)}


@pytest.fixture(scope="module", params=MAKERS)
def model(request):
    torch.manual_seed(0)
    return request.param, shake(MAKERS[request.param](small("nf_resnet50", output_stride=16))).eval()


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, model, tmp_path_factory):
    """(task, network, format, what was written)."""
    task, network = model
    path = tmp_path_factory.mktemp(request.param) / f"a.{request.param}"
    classes = CLASSES if task == "segmentation" else None
    return (
        task,
        network,
        request.param,
        FORMATS[request.param][0](network, path, preprocessing=VIEW, classes=classes, task=task),
    )


@torch.no_grad()
def test_the_file_computes_the_networks_maps(exported):
    task, network, kind, written = exported
    assert written.difference < 1e-5
    assert written.checked == (1, 3)
    deployed = FORMATS[kind][1](written.path)
    for batch in (1, 4):
        images = torch.randn(batch, 3, 48, 35)
        found, expected = deployed.run(images), network(images)
        assert found.shape == expected.shape == (batch, 3 if task == "segmentation" else 1, 48, 35)
        # float32 over a few layers
        assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-5


def test_what_the_file_says(exported):
    task, _, kind, written = exported
    about = FORMATS[kind][1](written.path).description
    assert about == written.description
    assert about.preprocessing == VIEW
    assert about.preprocessing.shape == (3, 48, 35)
    assert (about.task, about.output) == (task, "logits" if task == "segmentation" else "metres")
    assert about.shape == ((3, 48, 35) if task == "segmentation" else (1, 48, 35))
    assert about.classes == (tuple(CLASSES) if task == "segmentation" else None)


@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_a_graph_of_plain_convolutions(exported):
    task, _, _, written = exported
    assert weight_arithmetic(written.path) == []
    found = operators(written.path)
    assert found.get("ConvTranspose", 0) == (0 if task == "segmentation" else 6)  # three up-projections of two each
    assert not any("Normalization" in operator for operator in found)
    onnx.checker.check_model(str(written.path), full_check=True)
    session = onnxruntime.InferenceSession(str(written.path))
    assert session.get_inputs()[0].shape[1:] == [3, 48, 35]
    assert isinstance(session.get_inputs()[0].shape[0], str)  # any number of images
    assert [output.name for output in session.get_outputs()] == [written.description.output]


@pytest.mark.full
@torch.no_grad()
def test_half_precision(model, tmp_path):
    task, network = model
    written = to_onnx(network, tmp_path / "a.onnx", preprocessing=VIEW, task=task, precision="float16", batch=2)
    assert (written.checked, written.description.precision) == ((2,), "float16")
    assert weight_arithmetic(written.path) == []


@pytest.mark.slow
@pytest.mark.full
@torch.no_grad()
@pytest.mark.parametrize("task", MAKERS)
def test_networks_of_full_size(tmp_path, task):
    """The rounding is that of float32: the network itself is as far from float64."""
    torch.manual_seed(0)
    backbone = create_model("nf_resnet50", num_classes=0, output_stride=16 if task == "segmentation" else 32)
    network = shake(segmenter(backbone, 21) if task == "segmentation" else depth_estimator(backbone)).eval()
    view = Preprocessing(228, 3, (0.5,) * 3, (0.5,) * 3, 0, 304, "none")
    written = to_onnx(network, tmp_path / "a.onnx", preprocessing=view, task=task, batch=1)
    assert weight_arithmetic(written.path) == []
    images = torch.randn(1, 3, 228, 304)
    found, expected = open_onnx(written.path).run(images), network.double()(images.double())
    assert ((found - expected).abs().max() / expected.abs().max()).item() < 3e-5


def test_what_such_a_network_says_of_itself(model):
    view = Preprocessing.of(model[1], 64)
    assert (view.size, view.width, view.resize, view.resize_margin) == (64, None, "none", 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(), r"DenseNet does not return one tensor \(N, outputs\); only such networks are exported for classif"),
        (
            dict(task="detection"),
            r"task \(='detection'\) must be one of classification, multi-label, regression,",
        ),
        (dict(task="segmentation", classes=["a", "b"]), r"classes has 2 names"),
    ],
)
def test_refusals(model, tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        to_onnx(model[1], tmp_path / "a.onnx", preprocessing=VIEW, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (dict(resize="crop"), r"resize \(='crop'\) must be one of squash, centre, short_side, none"),
        (
            dict(resize="short_side"),
            r"short_side \(=None\) belongs to resize 'short_side' alone; resize is 'short_side'",
        ),
        (dict(short_side=9), r"short_side \(=9\) belongs to resize 'short_side' alone; resize is 'squash'"),
        (dict(width=9), r"width \(=9\) must be that of size \(=8\)"),
        (dict(width=0, resize="none"), r"width \(=0\) must be an integer of 1 to 4096"),
    ],
)
def test_unusable_preprocessing(numbers, said):
    with pytest.raises(UsageError, match=said):
        Preprocessing(**{**dict(size=8, channels=1, mean=(0.5,), std=(0.5,)), **numbers})
