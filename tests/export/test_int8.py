"""int8 ONNX files: what rounding costs, corrected biases, layers that stay in float32, and what is refused."""

import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from small_models import small
from torch import nn

import normfree
from normfree import RunFailed, UsageError
from normfree.export import Calibration, Preprocessing, open_onnx, to_archive, to_onnx
from normfree.export.write import TOLERANCE

VIEW = Preprocessing(32, 3, (0.5,) * 3, (0.5,) * 3, 0)


def network():
    torch.manual_seed(0)
    return small("nf_resnet50").eval()


def images(count=16, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def export(path, model=None, **settings):
    calibration = Calibration(images(), **settings)
    return to_onnx(model or network(), path, preprocessing=VIEW, precision="int8", calibration=calibration)


def tensors(path):
    model = onnx.load(path)
    return model, {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_the_function_and_the_description(tmp_path):
    model = network()
    written = export(path := tmp_path / "a.onnx", model)
    file, inputs = open_onnx(path), images(5)
    assert file.description.precision == "int8"
    with torch.no_grad():
        expected = model(inputs)
    found = file.run(inputs)
    assert found.dtype is torch.float32
    assert 0 < written.difference < TOLERANCE["int8"]
    # other images than those of the calibration: at most the noise of 8 bits in some layers more
    assert ((found - expected).norm() / expected.norm()).item() < TOLERANCE["int8"]
    assert path.stat().st_size < 0.7 * to_onnx(model, tmp_path / "f.onnx", preprocessing=VIEW).path.stat().st_size


def test_weights_are_int8_with_a_scale_for_each_channel(tmp_path):
    model = network()
    export(path := tmp_path / "a.onnx", model)
    _, values = tensors(path)
    folded = normfree.fold(model)
    quantized = [name for name, value in values.items() if value.dtype == np.int8 and value.ndim == 4]
    assert len(quantized) == sum(isinstance(module, nn.Conv2d) for module in folded.modules())
    for name in quantized:
        weight = folded.state_dict()[name.removesuffix("_quantized")].numpy()
        scale = values[name.replace("_quantized", "_scale")]
        assert scale.shape == (len(weight),)
        restored = values[name] * scale[:, None, None, None]
        # half a step, and the rounding of float32
        assert (np.abs(restored - weight) <= 0.501 * scale[:, None, None, None]).all()


def test_corrected_biases_leave_no_mean_error(tmp_path):
    """Of one layer on the images of the calibration: the rounding of its weights does not move its mean outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 8)).eval()
    conv, inputs = model[0], images()
    shifts = {}
    for corrected in (True, False):
        to_onnx(
            model,
            path := tmp_path / f"{corrected}.onnx",
            preprocessing=VIEW,
            precision="int8",
            calibration=Calibration(inputs, bias_correction=corrected),
        )
        _, values = tensors(path)
        rounded = values["0.weight_quantized"] * values["0.weight_scale"][:, None, None, None]
        bias = values["0.bias_quantized"] * values["0.bias_quantized_scale"]
        with torch.no_grad():
            new = nn.functional.conv2d(
                inputs.double(), torch.from_numpy(rounded).double(), torch.from_numpy(bias).double()
            )
            shifts[corrected] = (new - conv.double()(inputs.double())).mean((0, 2, 3)).abs()
        conv.float()
        step = torch.from_numpy(np.abs(values["0.bias_quantized_scale"]))
    assert (shifts[True] <= step).all()  # the bias is rounded, too
    assert shifts[True].max() < shifts[False].max()


def test_layers_stay_in_float32_until_it_is_good_enough(tmp_path):
    seen = []

    def accept(path, kept):
        seen.append(tuple(kept))
        return len(kept) == 2

    written = export(tmp_path / "a.onnx", accept=accept)
    assert [len(kept) for kept in seen] == [0, 1, 2]
    assert written.kept == seen[-1]
    _, values = tensors(tmp_path / "a.onnx")
    for name in written.kept:
        assert values[f"{name}.weight"].dtype == np.float32
        assert f"{name}.weight_quantized" not in values


def test_the_planted_layer_stays_first(tmp_path):
    """Large weights of a channel that is always 0 leave no steps for the layer's other weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 4)).eval()
    with torch.no_grad():
        model[0].weight[:, 2] *= 1000
    shown = images() * torch.tensor([1.0, 1.0, 0.0])[:, None, None]
    calibration = Calibration(shown, accept=lambda path, kept: bool(kept))
    path = tmp_path / "a.onnx"
    written = to_onnx(model, path, preprocessing=VIEW, precision="int8", calibration=calibration)
    assert written.kept == ("0",)


def test_refused_if_nothing_is_good_enough(tmp_path):
    with pytest.raises(RunFailed, match="not accurate enough, even with all"):
        export(tmp_path / "a.onnx", accept=lambda path, kept: False)
    assert not list(tmp_path.iterdir())


def test_refused_if_it_differs_too_much(tmp_path, monkeypatch):
    monkeypatch.setitem(TOLERANCE, "int8", 1e-6)
    with pytest.raises(RunFailed, match="differ"):
        export(tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_the_same_file_again(tmp_path):
    sums = set()
    for name in ("a.onnx", "b.onnx"):
        export(tmp_path / name)
        sums.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(sums) == 1


def test_layers_without_biases(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 30 * 30, 4, bias=False)).eval()
    assert export(tmp_path / "a.onnx", model).difference < TOLERANCE["int8"]


def test_a_fixed_batch(tmp_path):
    calibration = Calibration(images(5))
    to_onnx(
        network(), path := tmp_path / "a.onnx", preprocessing=VIEW, precision="int8", calibration=calibration, batch=2
    )
    assert open_onnx(path).run(images(2)).shape[0] == 2


def test_a_damaged_file_is_refused(tmp_path):
    export(path := tmp_path / "a.onnx")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.onnx"):
        open_onnx(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (images(4, 24), "calibration images are 3 x 24 x 24; the network takes 3 x 32 x 32"),
        (images(4)[:0], "calibration takes one or more images"),
        (images(4).double(), "not .* of torch.float64"),
        (images(4) / 0, "calibration images must be finite"),
    ],
)
def test_wrong_images(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        to_onnx(network(), tmp_path / "a.onnx", preprocessing=VIEW, precision="int8", calibration=Calibration(wrong))


def test_calibration_and_precision_belong_together(tmp_path):
    with pytest.raises(UsageError, match=r"precision \(='int8'\) needs calibration="):
        to_onnx(network(), tmp_path / "a.onnx", preprocessing=VIEW, precision="int8")
    with pytest.raises(UsageError, match=r"precision \(='float32'\) takes no calibration="):
        to_onnx(network(), tmp_path / "a.onnx", preprocessing=VIEW, calibration=Calibration(images()))
    with pytest.raises(UsageError, match="is for ONNX files"):
        to_archive(network(), tmp_path / "a.pt2", preprocessing=VIEW, precision="int8")
