"""ONNX files: the network's function in onnxruntime, no arithmetic on weights, a description, and how writing fails."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_runs
import torch
from onnx import TensorProto, helper
from onnxruntime import quantization
from small_models import EFFICIENTNETS, SMALL, shake, small
from torch import nn

import normfree
from normfree import UsageError
from normfree.export import (
    Preprocessing,
    onnx_file,
    open_onnx,
    operators,
    seal,
    to_onnx,
    weight_arithmetic,
)

SIZES = dict.fromkeys(SMALL | EFFICIENTNETS, 64) | {"nf_seresnet50": 75, "timm_test_nfnet": 64}
VIEW = Preprocessing(8, 1, (0.5,), (0.5,), 0)  # of the tiny network


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return small(name) if name in SMALL | EFFICIENTNETS else shake(normfree.create_model(name, num_classes=10).eval())


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return tiny_runs.network(drop_rate=0.0, stochdepth_rate=0.0).eval()


def logits(path: Path, images: torch.Tensor) -> np.ndarray:
    """By onnxruntime, without this library."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images.numpy()})[0]


def difference(path: Path, model: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        expected = model(images).numpy()
    found = logits(path, images)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.fixture(scope="module", params=SIZES)
def exported(request, tmp_path_factory):
    """(model, what was written) of a small network of each family."""
    model = network(request.param)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, to_onnx(model, path, preprocessing=Preprocessing.of(model, SIZES[request.param]))


def test_logits_are_the_networks(exported):
    model, written = exported
    assert written.difference < 1e-5
    assert written.checked == (1, 3)
    for batch in (1, 4):
        # float32 over a few layers; the files measure below 2e-6
        assert difference(written.path, model, torch.randn(batch, *model_shape(written))) < 1e-5


def model_shape(written) -> tuple[int, int, int]:
    view = written.description.preprocessing
    return view.channels, view.size, view.size


def test_no_arithmetic_on_weights_and_no_normalization(exported):
    _, written = exported
    assert weight_arithmetic(written.path) == []
    found = operators(written.path)
    assert found["Conv"] > 4
    assert not any("Normalization" in operator for operator in found)


def test_the_graph_is_valid_and_names_nothing_of_this_computer(exported):
    _, written = exported
    onnx.checker.check_model(str(written.path), full_check=True)
    assert str(Path(normfree.__file__).parent).encode() not in written.path.read_bytes()


def test_weights_are_described_once(exported):
    _, written = exported
    graph = onnx.load(str(written.path)).graph
    assert not {info.name for info in graph.value_info} & {tensor.name for tensor in graph.initializer}


@pytest.mark.parametrize("weights", ["QUInt8", "QInt8"])
def test_dynamic_quantization_of_onnxruntime(exported, tmp_path, weights):
    model, written = exported
    path = tmp_path / "quantized.onnx"
    quantization.quantize_dynamic(
        written.path, path, weight_type=quantization.QuantType[weights], op_types_to_quantize=["MatMul", "Gemm", "Conv"]
    )
    assert any("Integer" in operator for operator in operators(path))
    assert path.stat().st_size < 0.6 * written.path.stat().st_size
    images = torch.randn(2, *model_shape(written))
    with pytest.raises(UsageError, match=r"quantized\.onnx is not as it was written: .* normfree\.export\.seal"):
        open_onnx(path)
    seal(path)
    onnx.checker.check_model(str(path))
    opened = open_onnx(path)  # it still says how it is fed
    assert opened.description == written.description
    with torch.no_grad():
        expected = model(images)
    # weights and activations of 8 bits, one scale per tensor: measured 0.02 to 0.08
    assert (opened.run(images) - expected).norm() < 0.3 * expected.norm()


def test_a_control_keeps_its_batch_normalization(tmp_path):
    model = small("bn_resnet50", depths=(1, 1, 1, 1))
    written = to_onnx(model, tmp_path / "a.onnx", preprocessing=Preprocessing.of(model, 64))
    assert operators(written.path).get("BatchNormalization", 0) > 0
    assert difference(written.path, model, torch.randn(2, 3, 64, 64)) < 1e-5


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b1", "nf_resnet50", "timm_nf_ecaresnet50"])
def test_networks_of_full_size(tmp_path, name):
    model = shake(normfree.create_model(name).eval())
    written = to_onnx(model, tmp_path / "a.onnx")
    assert written.difference < 1e-5
    assert weight_arithmetic(written.path) == []


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(model, what was written) of the tiny network."""
    model, path = tiny(), tmp_path_factory.mktemp("one") / "tiny.onnx"
    return model, to_onnx(model, path, preprocessing=VIEW, classes=[f"number {i}" for i in range(10)], name="mine")


def test_description(one):
    _, written = one
    model = onnx.load(written.path)
    (entry,) = [prop for prop in model.metadata_props if prop.key == "normfree"]
    said = json.loads(entry.value)
    assert (said["model"], said["format"], said["opset"], said["batch"]) == ("mine", 1, 20, None)
    assert (said["precision"], said["normfree"], said["torch"]) == ("float32", normfree.__version__, torch.__version__)
    assert said["classes"] == [f"number {i}" for i in range(10)]
    assert said["preprocessing"] == dict(
        size=8,
        channels=1,
        resize_margin=0,
        mean=[0.5],
        std=[0.5],
        resize="squash",
        interpolation="bicubic",
        cubic_a=-0.5,
        antialias=False,
    )
    assert [opset.version for opset in model.opset_import if not opset.domain] == [20]
    assert open_onnx(written.path).description == written.description


def test_what_a_model_says_of_itself():
    model = normfree.create_model("nf_resnet26_small", num_classes=10)
    view = Preprocessing.of(model)
    assert (view.size, view.channels, view.resize_margin) == (model.default_cfg["test_input_size"][-1], 3, 32)
    assert (view.mean, view.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Preprocessing.of(model, 48).size == 48


def test_opened_again_it_computes_the_same(one):
    model, written = one
    deployed, images = open_onnx(written.path), torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(deployed.run(images), model(images), rtol=1e-5, atol=1e-5)


def test_the_same_network_gives_the_same_bytes(one, tmp_path):
    model, written = one
    again = to_onnx(model, tmp_path / "tiny.onnx", preprocessing=VIEW, classes=written.description.classes, name="mine")
    assert again.path.read_bytes() == written.path.read_bytes()


def test_it_is_quiet_and_leaves_the_network_as_it_was(capfd, tmp_path):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_onnx(model, tmp_path / "a.onnx", preprocessing=VIEW)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_fixed_batch(tmp_path):
    model = tiny()
    written = to_onnx(model, tmp_path / "a.onnx", preprocessing=VIEW, batch=2)
    assert (written.checked, written.description.batch) == ((2,), 2)
    assert difference(written.path, model, torch.randn(2, 1, 8, 8)) < 1e-5
    with pytest.raises(Exception, match="invalid dimensions"):
        logits(written.path, torch.randn(3, 1, 8, 8))


def test_half_precision_takes_and_gives_float32(tmp_path):
    model = tiny()
    written = to_onnx(model, tmp_path / "a.onnx", preprocessing=VIEW, precision="float16")
    assert 1e-5 < difference(written.path, model, torch.randn(2, 1, 8, 8)) < 1e-2
    types = {tensor.data_type for tensor in onnx.load(written.path).graph.initializer if len(tensor.dims) == 4}
    assert types == {TensorProto.FLOAT16}
    assert weight_arithmetic(written.path) == []


def test_an_older_operator_set(tmp_path):
    model = tiny()
    written = to_onnx(model, tmp_path / "a.onnx", preprocessing=VIEW, opset=18)
    assert onnx.load(written.path).opset_import[0].version == 18
    assert difference(written.path, model, torch.randn(2, 1, 8, 8)) < 1e-5


def test_large_weights_are_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "EXTERNAL_ABOVE", 1000)
    model = tiny()
    written = to_onnx(model, tmp_path / "a.onnx", preprocessing=VIEW)
    assert written.files == (tmp_path / "a.onnx", tmp_path / "a.onnx.data")
    assert set(tmp_path.iterdir()) == set(written.files)
    assert difference(written.path, model, torch.randn(2, 1, 8, 8)) < 1e-5
    assert weight_arithmetic(written.path) == []
    assert open_onnx(written.path).run(torch.randn(1, 1, 8, 8)).shape == (1, 10)


def test_weight_arithmetic_is_found(tmp_path):
    value = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    nodes = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["w", "two"], ["scaled"], name="scale"),
        helper.make_node("Neg", ["scaled"], ["negative"], name="negate"),
        helper.make_node("Clip", ["x", "", "negative"], ["y"], name="harmless"),
    ]
    at = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", at[:1], at[1:], [value])), tmp_path / "a.onnx")
    assert weight_arithmetic(tmp_path / "a.onnx") == ["Mul scale", "Neg negate"]
    assert operators(tmp_path / "a.onnx") == {"Constant": 1, "Mul": 1, "Neg": 1, "Clip": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(precision="bfloat16"), "onnxruntime"),
        (dict(precision="int4"), "precision (='int4') must be one of float32, float16, bfloat16, int8"),
        (dict(opset=17), "opset (=17) must be an integer of at least 18"),
        (dict(opset=99), "opset (=99) cannot be written by torch"),
        (dict(batch=0), "batch (=0) must be 1 to 4096 for images of 1 x 8 x 8, or None"),
        (dict(classes="abcdefghij"), "classes (='abcdefghij') must be a list of names, not one string"),
        (dict(classes=list("abcdefghaa")), "classes has 'a' more than once"),
        (dict(classes=["a"]), "classes has 1 names, the network has 10 outputs"),
        (dict(preprocessing=Preprocessing(8, 3, (0.5,) * 3, (0.5,) * 3)), "does not take images of 3 x 8 x 8"),
    ],
)
def test_unusable_values(tmp_path, options, said):
    with pytest.raises(UsageError) as caught:
        to_onnx(tiny(), tmp_path / "a.onnx", **{"preprocessing": VIEW, **options})
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (dict(size=0), "size (=0)"),
        (dict(resize_margin=-1), "resize_margin (=-1)"),
        (dict(mean=(0.5, 0.5)), "mean (=(0.5, 0.5)) must have a number for each of 1 channels"),
        (dict(std=(0.0,)), "std (=(0.0,)) must be above 0"),
    ],
)
def test_unusable_preprocessing(numbers, said):
    with pytest.raises(UsageError) as caught:
        Preprocessing(**{**dict(size=8, channels=1, mean=(0.5,), std=(0.5,)), **numbers})
    assert said in str(caught.value)


class Twice(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: tiny().train(), "training mode"),
        (lambda: tiny().double(), "takes float32"),
        (lambda: nn.Conv2d(1, 1, 1).eval(), "does not return one tensor"),
        (lambda: Twice().eval(), "does not return one tensor"),
    ],
)
def test_unusable_networks(tmp_path, model, said):
    with pytest.raises(UsageError, match=said):
        to_onnx(model(), tmp_path / "a.onnx", preprocessing=VIEW)


def test_a_network_that_does_not_say_how_images_are_prepared(tmp_path):
    with pytest.raises(UsageError, match="give preprocessing="):
        to_onnx(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), tmp_path / "a.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError) as caught:
        to_onnx(tiny(), tmp_path / "a.onnx", preprocessing=VIEW)
    assert package in str(caught.value)
    assert 'pip install "normfree[onnx]"' in str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"), [("a.txt", "must end in .onnx"), ("nowhere/a.onnx", "does not exist"), ("d.onnx", "is a folder")]
)
def test_places_that_cannot_be_written(tmp_path, path, said):
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(UsageError, match=said):
        to_onnx(tiny(), tmp_path / path, preprocessing=VIEW)


def foreign(path: Path, text: str | None = None) -> Path:
    at = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", at[:1], at[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if text is not None:
        helper.set_model_props(model, {"normfree": text})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.write_bytes(b"no"), "is no ONNX file that can be used: damaged at byte 0"),
        (foreign, "was not written by normfree export"),
        (lambda path: foreign(path, "{"), "cannot be used"),
        (lambda path: foreign(path, "[]"), "cannot be used"),
        (lambda path: foreign(path, '{"format": 2}'), "another version"),
        (lambda path: foreign(path, '{"format": 1, "preprocessing": {"resize": "short side"}}'), "cannot be used"),
    ],
)
def test_files_that_cannot_be_opened(tmp_path, make, said):
    path = tmp_path / "a.onnx"
    make(path)
    with pytest.raises(UsageError, match=said) as caught:
        open_onnx(path)
    assert str(path) in str(caught.value)
