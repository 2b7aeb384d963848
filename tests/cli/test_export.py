"""`normfree export`: files, what is printed, and what is refused before anything is written."""

import json
import sys

import onnx
import onnxruntime
import pytest
import torch

from normfree.cli.export import _parser, _place
from normfree.export import open_archive, open_onnx
from normfree.runs.load import load_trained


def test_a_folder_is_where_the_file_goes(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seen").mkdir()
    for arguments, file in (([], "run.onnx"), (["--format", "pt2"], "run.pt2")):
        options = _parser().parse_args([str(trained), "--out", "seen", *arguments])
        assert str(_place(options)[0]) == f"seen/{file}"


def test_an_onnx_file_of_a_run(normfree, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = normfree("export", trained)
    assert result.code == 0, result.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.onnx"]
    (line,) = result.err.splitlines()  # the exporter says nothing
    assert line.startswith("exporting nf_resnet26_small (")
    first, second, third, last = result.out.splitlines()
    assert first.startswith("run.onnx (0.")
    assert first.endswith("MB): nf_resnet26_small, float32, opset 20")
    assert second == "image (N, 1, 8, 8) -> logits (N, 10), float32; class names are in the file"
    assert float(third.removeprefix("checked with onnxruntime at batch 1 and 3: largest relative difference ")) < 1e-5
    assert last == "next: normfree predict run.onnx IMAGE_OR_FOLDER ..."
    about = open_onnx("run.onnx").description
    assert (about.model, about.classes) == ("nf_resnet26_small", tuple(map(str, range(10))))
    assert (about.preprocessing.size, about.preprocessing.resize_margin) == (8, 0)


@pytest.mark.parametrize(
    ("which", "arguments"), [("best", [".", "--checkpoint", "best"]), ("last", ["checkpoints/last/ema.safetensors"])]
)
def test_which_checkpoint_and_a_file_of_one(normfree, trained, tmp_path, which, arguments):
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = load_trained(str(trained), which).model(images)
    assert normfree("export", trained / arguments[0], *arguments[1:], "--out", tmp_path / "a.pt2").code == 0
    torch.testing.assert_close(open_archive(tmp_path / "a.pt2").run(images), expected, rtol=1e-5, atol=1e-5)


def test_options_reach_the_file(normfree, trained, tmp_path):
    path = tmp_path / "a.onnx"
    flags = ["--size", 12, "--batch", 2, "--opset", 21, "--precision", "float16"]
    result = normfree("export", trained, "--out", path, *flags)
    assert result.code == 0, result.err
    assert "float16, opset 21\nimage (2, 1, 12, 12) -> logits (2, 10)" in result.out
    assert "at batch 2: " in result.out
    about = open_onnx(path).description
    assert (about.preprocessing.size, about.batch, about.opset, about.precision) == (12, 2, 21, "float16")
    assert onnx.load(path).opset_import[0].version == 21
    (image,) = onnxruntime.InferenceSession(str(path)).get_inputs()
    assert image.shape == [2, 1, 12, 12]


def test_a_model_by_name_with_fresh_weights(normfree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = normfree("export", "nf_resnet26_small", "--random", "--format", "pt2", "--precision", "bfloat16")
    assert result.code == 0, result.err
    assert "fresh weights of seed 0" in result.err
    about = open_archive("nf_resnet26_small.pt2").description
    assert (about.classes, about.precision, about.preprocessing.size) == (None, "bfloat16", 32)
    assert "image (N, 3, 32, 32) -> logits (N, 1000), float32\n" in result.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--opset", "17"], "opset (=17) must be an integer of at least 18"),
        (["--opset", "20", "--format", "pt2"], "--opset is for --format onnx, not for pt2"),
        (["--precision", "bfloat16"], "precision (='bfloat16')"),
        (["--precision", "int4"], "argument --precision: invalid choice: 'int4'"),
        (["--size", "0"], "--size (=0) must be from 1 to 4096"),
        (["--batch", "0"], "--batch (='0') must be dynamic or a number of at least 1"),
        (["--batch", "many"], "--batch (='many') must be dynamic or a number of at least 1"),
        (
            ["--batch", "99999999999"],
            "--batch (='99999999999') must be dynamic or a number of at least 1 and at most 4096",
        ),
        (["--out", "a.pt"], "--out a.pt must end in .onnx or .pt2"),
        (["--out", "a.pt2", "--format", "onnx"], "--out a.pt2 must end in .onnx for --format onnx"),
        (["--out", "nowhere/a.onnx"], "cannot write nowhere/a.onnx: folder nowhere does not exist"),
        (["--out", "/proc/a.onnx"], "cannot write /proc/a.onnx: "),
        (["--random"], "--random is for models by name"),
    ],
)
def test_what_cannot_be_done_with_a_run(normfree, trained, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = normfree("export", trained, *arguments)
    assert result.code == 2
    assert said in result.error
    assert (result.out, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/nope"], "runs/nope does not exist"),
        (["a.safetensors"], "a.safetensors does not exist"),
        (["nfnet_f00", "--random"], "model 'nfnet_f00' is unknown; did you mean nfnet_f0"),
        (["nfnet_f0", "--random", "--checkpoint", "best"], "--checkpoint chooses among a run folder's files"),
        (["a.onnx"], "a.onnx is an exported file, whose weights are folded; give the run"),
        ([], "the following arguments are required: NETWORK"),
    ],
)
def test_what_is_no_network(normfree, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = normfree("export", *arguments)
    assert result.code == 2
    assert said in result.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(normfree, trained, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = normfree("export", trained, "--out", tmp_path / "a.onnx")
    assert result.code == 2
    assert result.error == f'ONNX files need the package {package}: pip install "normfree[onnx]"'
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(normfree, trained, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", interrupt)
    result = normfree("export", trained, "--out", tmp_path / "a.pt2")
    assert result.code == 130
    assert result.err.splitlines()[-1] == "normfree: interrupted"
    assert list(tmp_path.iterdir()) == []


def test_the_description_is_one_line_of_json(normfree, trained, tmp_path):
    assert normfree("export", trained, "--out", tmp_path / "a.pt2").code == 0
    extra = {"normfree": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert "\n" not in extra["normfree"]
    assert json.loads(extra["normfree"])["preprocessing"]["mean"] == [0.305]  # the recipe's


def test_int8(normfree, trained, tmp_path):
    """Calibrated on the run's images, its accuracy before and after; eval says the same of the file."""
    path = tmp_path / "a.onnx"
    result = normfree("export", trained, "--out", path, "--precision", "int8", "--calibrate-images", 40)
    assert result.code == 0, result.err
    assert "int8, opset 20" in result.out
    assert "calibrated on 40 images of digits, biases corrected\n" in result.out
    (line,) = (line for line in result.out.splitlines() if line.startswith("test accuracy: "))
    float32, int8 = (float(part.split()[1]) for part in line.removeprefix("test accuracy: ").split(", "))
    assert abs(float32 - int8) < 3
    assert f"{int8:.2f}" in normfree("eval", path, "--data", "digits").out


def test_int8_keeps_within(normfree, trained, tmp_path):
    path = tmp_path / "a.onnx"
    result = normfree("export", trained, "--out", path, "--precision", "int8", "--keep-within", 100)
    assert result.code == 0, result.err
    assert "all layers in int8: test accuracy" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibrate", "digits"], "--calibrate is for --precision int8, not for float32"),
        (["--precision", "int8", "--format", "pt2"], "--precision int8 is for --format onnx, not for pt2"),
        (["--precision", "int8", "--calibrate-images", 0], "--calibrate-images (=0) must be at least 1"),
        (["--precision", "int8", "--keep-within", 101], "--keep-within (=101) must be from 0 to 100"),
        (["--precision", "int8", "--calibrate", "nowhere"], "nowhere"),
    ],
)
def test_int8_refusals(normfree, trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = normfree("export", trained, *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_int8_of_a_model_needs_images(normfree, tmp_path):
    arguments = ["nf_resnet26_small", "--random", "--precision", "int8", "--out", tmp_path / "a.onnx"]
    result = normfree("export", *arguments)
    assert "nf_resnet26_small does not say where images are; give --calibrate DATA" in result.err
    (tmp_path / "images").mkdir()
    result = normfree("export", *arguments, "--calibrate", tmp_path / "images")
    assert "images holds no image" in result.err
    assert not (tmp_path / "a.onnx").exists()
