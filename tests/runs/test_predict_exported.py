"""`normfree predict` on exported files and models by name, its JSON, and how it prepares images."""

import json
import re
import shutil
import sys
from pathlib import Path

import golden_data
import image_files
import numpy as np
import pytest
import torch
from exported_files import without
from onnx import TensorProto, helper, save
from PIL import Image
from small_models import small

from normfree.data import centre_view, decode_image, evaluation_view, normalize
from normfree.data.resize import centre_crop, padded_centre_window
from normfree.export import Preprocessing, open_archive, to_archive, to_onnx
from normfree.models import create_model
from normfree.runs import deployable
from normfree.runs import predict as prediction
from normfree.runs.load import load_trained
from normfree.tasks.trained import view_of

GUIDE = Path(__file__).parents[2] / "docs" / "export.md"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(out: str) -> dict[str, dict[str, float]]:
    """Image -> class -> probability, of the lines of JSON."""
    lines = [json.loads(line) for line in out.splitlines()]
    return {line["path"]: {c["name"]: c["probability"] for c in line["classes"]} for line in lines}


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """The run as exported files, by the names that the tests call them by."""
    folder, network = tmp_path_factory.mktemp("files"), deployable.open_deployable(str(trained))
    settings = dict(preprocessing=network.preprocessing, classes=network.classes)
    to_onnx(network.model, folder / "free.onnx", **settings)
    to_onnx(network.model, folder / "fixed.onnx", **settings, batch=2)
    to_archive(network.model, folder / "free.pt2", **settings)
    to_archive(network.model, folder / "half.pt2", **settings, precision="bfloat16")
    return folder


@pytest.mark.parametrize(
    ("name", "tolerance"), [("free.onnx", 1e-5), ("fixed.onnx", 1e-5), ("free.pt2", 1e-5), ("half.pt2", 0.02)]
)
def test_an_exported_file_predicts_what_the_run_does(normfree, trained, files, name, tolerance):
    expected = read(normfree("predict", trained, trained / "examples", "--json", "--top", 10).out)
    result = normfree("predict", files / name, trained / "examples", "--json", "--top", 10)
    assert (result.code, result.err) == (0, "")
    found = read(result.out)
    assert list(found) == list(expected)
    for path in expected:
        assert found[path] == pytest.approx(expected[path], abs=tolerance)


@pytest.mark.parametrize("name", ["free.onnx", "fixed.onnx", "free.pt2"])
@pytest.mark.parametrize("size", [3, 4])
def test_several_images_at_once(normfree, trained, files, name, size):
    """Also where the file's batch is fixed at 2, and the last one is not full."""
    expected = read(normfree("predict", trained, trained / "examples", "--json", "--top", 10).out)
    flags = ["--json", "--top", 10, "--batch-size", size]
    found = read(normfree("predict", files / name, trained / "examples", *flags).out)
    assert list(found) == list(expected)
    for path in expected:
        assert found[path] == pytest.approx(expected[path], abs=1e-5)


def test_text_names_the_same_classes(normfree, trained, files):
    lines = [
        normfree("predict", network, trained / "examples", "--top", 1).out.splitlines()
        for network in (trained, files / "free.onnx")
    ]
    names = [[line.split()[-1] for line in those[:20]] for those in lines]
    assert names[0] == names[1]
    assert [those[20] for those in lines] == ["10 images"] * 2


def test_json_says_all(normfree, trained):
    images = sorted((trained / "examples").iterdir())[:2]
    result = normfree("predict", trained, *images, "--json", "--top", 3)
    first, second = map(json.loads, result.out.splitlines())
    assert (first["path"], second["path"]) == tuple(map(str, images))
    assert [sorted(entry) for entry in first["classes"]] == [["index", "name", "probability"]] * 3
    net = load_trained(str(trained))
    with torch.no_grad():
        expected = net.model(net.transform(decode_image(images[0], 1))[None]).softmax(1)[0]
    assert first["classes"][0]["index"] == expected.argmax()
    assert first["classes"][0]["name"] == str(expected.argmax().item())
    assert first["classes"][0]["probability"] == pytest.approx(expected.max().item(), abs=1e-6)


def test_json_of_an_unreadable_image(normfree, trained, tmp_path):
    bad, good = image_files.break_file(tmp_path / "a.png"), image_files.write(tmp_path / "b.png")
    result = normfree("predict", trained, tmp_path, "--json")
    assert result.code == 1
    assert list(read(result.out)) == [str(good)]
    assert str(bad) in result.err


@pytest.fixture(scope="module", params=["nfnet_f0", "nf_resnet50"])
def photograph(request, tmp_path_factory):
    """The golden photograph as a file, and a network of its golden size."""
    folder = tmp_path_factory.mktemp("photograph")
    torch.manual_seed(0)
    model = small(request.param)
    to_archive(model, folder / "net.pt2", preprocessing=Preprocessing.of(model, 96), classes=list("abcdefghij"))
    return model, image_files.write(folder / "china.png", golden_data.load("preprocessing")["image"])


def probabilities(model, view: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        return dict(zip("abcdefghij", model(view[None]).softmax(1)[0].tolist(), strict=True))


def test_images_are_prepared_as_in_the_papers(normfree, photograph):
    """The network's input is TensorFlow's, to a thousandth of a grey level."""
    model, image = photograph
    result = normfree("predict", image.parent / "net.pt2", image, "--json", "--top", 10)
    golden = torch.from_numpy(golden_data.load("preprocessing")["eval_resize_crop_32/96/normalized"])
    if model.family == "nf_resnet":
        golden = torch.from_numpy(golden_data.load("crop_resize")["wide/96"])
        golden = normalize(golden.permute(2, 0, 1), MEAN, STD).permute(1, 2, 0)
    (found,) = read(result.out).values()
    assert found == pytest.approx(probabilities(model, golden.permute(2, 0, 1)), abs=1e-5)
    view = view_of(Preprocessing.of(model, 96))(decode_image(image))
    torch.testing.assert_close(view, golden.permute(2, 0, 1), rtol=0, atol=1e-3 / 255 / min(STD))


def test_antialiased_images_are_pillows(normfree, photograph):
    model, path = photograph
    result = normfree("predict", path.parent / "net.pt2", path, "--json", "--top", 10, "--antialias")
    (found,) = read(result.out).values()
    with Image.open(path) as file:
        if model.family == "nf_resnet":
            top, left, side, _ = padded_centre_window(file.height, file.width, 96)
            file = file.crop((left, top, left + side, top + side)).resize((96, 96), Image.Resampling.BICUBIC)
        else:
            file = file.resize((128, 128), Image.Resampling.BICUBIC)
        view = centre_crop(torch.from_numpy(np.array(file)).permute(2, 0, 1), 96).float()
    # one of a thousand pixels is rounded to the next grey level
    assert found == pytest.approx(probabilities(model, normalize(view, MEAN, STD)), abs=1e-4)
    (exact,) = read(normfree("predict", path.parent / "net.pt2", path, "--json", "--top", 10).out).values()
    assert max(abs(found[name] - exact[name]) for name in found) > 1e-3
    exact = centre_view if model.family == "nf_resnet" else evaluation_view
    assert (view - exact(decode_image(path), 96)).abs().mean() > 1  # grey levels


def small_by_name(name, **options):
    return create_model(name, widths=(8, 8, 16), depths=(1, 1, 1))


def test_a_model_by_name_knows_imagenets_classes(normfree, trained, monkeypatch):
    asked = []
    monkeypatch.setattr(deployable, "create_model", lambda name, **o: asked.append((name, o)) or small_by_name(name))
    image = sorted((trained / "examples").iterdir())[0]
    result = normfree("predict", "nf_resnet26_small", image, "--json", "--top", 1000)
    assert (result.code, asked) == (0, [("nf_resnet26_small", {"pretrained": True})])
    (line,) = map(json.loads, result.out.splitlines())
    names = {entry["index"]: entry["name"] for entry in line["classes"]}
    assert len(names) == 1000
    assert (names[0], names[999]) == ("tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue")
    assert deployable.imagenet_classes(10) is None


def test_classes_without_names_are_numbers(normfree, tmp_path):
    model = small("nf_resnet50")
    to_archive(model, tmp_path / "a.pt2", preprocessing=Preprocessing.of(model, 64))
    out = normfree("predict", tmp_path / "a.pt2", image_files.write(tmp_path / "a.png"), "--top", 10).out
    assert sorted(int(line.split()[-1]) for line in out.splitlines()[1:]) == list(range(10))


def test_images_of_other_channels(normfree, tmp_path):
    view = Preprocessing(8, 2, (0.5,) * 2, (0.5,) * 2)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 3)).eval()
    to_archive(model, tmp_path / "a.pt2", preprocessing=view)
    result = normfree("predict", tmp_path / "a.pt2", image_files.write(tmp_path / "a.png"))
    assert result.code == 2
    assert "a.png: 3 channels; 2 are needed" in result.err
    np.save(tmp_path / "b.npy", image_files.pixels(9, 11)[:, :, :2])
    assert normfree("predict", tmp_path / "a.pt2", tmp_path / "b.npy").code == 0


def foreign(path):
    at = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", at[:1], at[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.onnx"], "nowhere.onnx does not exist"),
        (["nowhere.pt2"], "nowhere.pt2 does not exist"),
        (["foreign.onnx"], "foreign.onnx does not say how its images are prepared; it was not written by normfree"),
        (["free.onnx", "--device", "cuda"], "--device cuda: ONNX files are run on the cpu"),
        (
            ["free.onnx", "--checkpoint", "best"],
            "--checkpoint chooses among a run folder's files; free.onnx is no run folder",
        ),
        (
            ["free.pt2", "--checkpoint", "best"],
            "--checkpoint chooses among a run folder's files; free.pt2 is no run folder",
        ),
        (["free.pt2", "--device", "warp"], "(='warp') is not available"),
        (["nf_resnet49"], "model 'nf_resnet49' is unknown; did you mean nf_resnet"),
        (["nf_resnet50", "--checkpoint", "best"], "nf_resnet50 is no run folder"),
    ],
)
def test_what_is_no_classifier(normfree, files, monkeypatch, arguments, said):
    monkeypatch.chdir(files)
    foreign("foreign.onnx")
    image = image_files.write(files / "a.png")
    result = normfree("predict", *arguments, image)
    assert result.code == 2
    assert said in result.error
    assert result.out == ""


def test_onnxruntime_is_missing(normfree, files, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = normfree("predict", files / "free.onnx", trained / "examples")
    assert result.code == 2
    assert result.error == 'ONNX files need the package onnxruntime: pip install "normfree[onnx]"'
    assert normfree("predict", files / "free.pt2", trained / "examples").code == 0


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_resnet50"])
def test_the_guides_code_predicts_the_same(normfree, files, monkeypatch, name):
    """docs/export.md, run as it stands, without this library: an antialiased view, then the exact one."""
    monkeypatch.chdir(files)
    model = small(name)  # in colour and with a margin, unlike the run
    to_onnx(model, "digits.onnx", preprocessing=Preprocessing.of(model, 64), classes=list("abcdefghij"))
    shutil.copy("free.pt2", "digits.pt2")
    image_files.write(files / "image.png", golden_data.load("preprocessing")["image"])
    first, second, third = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[-3:]
    logits = re.search(r"^logits = .*?(?=^print)", first, re.DOTALL | re.MULTILINE)[0]
    # torchvision and Pillow round a few pixels differently
    for flags, code, tolerance in ((["--antialias"], first, 1e-3), ([], first + second + logits, 1e-5)):
        names: dict = {}
        exec(code, names)
        (expected,) = read(normfree("predict", "digits.onnx", "image.png", "--json", "--top", 10, *flags).out).values()
        found = torch.from_numpy(names["logits"]).softmax(0).tolist()
        assert dict(zip(names["about"]["classes"], found, strict=True)) == pytest.approx(expected, abs=tolerance)
    names = {}
    exec(third, names)
    assert names["logits"].shape == (5, 10)
    assert names["extra"]["normfree"] == open_archive("digits.pt2").description.to_json()


def test_the_guides_network_of_ones_own(normfree, tmp_path, monkeypatch):
    """docs/building.md: its block, deployed with a Preprocessing of its own."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.with_name("building.md").read_text(), re.DOTALL)
    (deploy,) = [block for block in blocks if "Preprocessing" in block]
    torch.manual_seed(0)
    names: dict = {}
    exec(blocks[0] + deploy, names)
    path = image_files.write(tmp_path / "photo.png", image_files.pixels(90, 130))
    (found,) = read(normfree("predict", "mine.onnx", path, "--json").out).values()
    seen = normalize(centre_view(decode_image(path), 64, 8), MEAN, STD)
    with torch.no_grad():
        expected = names["network"](seen[None]).softmax(1)[0].tolist()
    assert found == pytest.approx(dict(zip(["cat", "dog"], expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize("name", ["free.onnx", "free.pt2"])
def test_a_file_of_an_earlier_version_is_used_and_one_that_was_changed_is_not(normfree, trained, files, tmp_path, name):
    path, image = Path(shutil.copy(files / name, tmp_path / name)), min((trained / "examples").iterdir())
    expected = normfree("predict", path, image).out
    without(path)
    result = normfree("predict", path, image)
    assert (result.code, result.out) == (0, expected)
    assert result.err == f"{path} has no checksum, as files of earlier versions; whether it is whole is not known\n"
    shutil.copy(files / name, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for verb in (["predict", path, image], ["eval", path, "--data", "digits"]):
        result = normfree(*verb)
        assert (result.code, result.out) == (2, "")
        assert result.error.startswith(f"{path} is not as it was written")


def test_images_of_one_name_are_numbered():
    paths = [Path(f"{i}/a.png") for i in range(3)] + [Path("a-2.png"), Path("x/a.jpg"), Path("b.png")]
    assert list(prediction._names(paths, lambda path: path.stem).values()) == ["a", "a-2", "a-3", "a-2-2", "a-4", "b"]
    many = prediction._names([Path(f"{i}/a.png") for i in range(5000)], lambda path: path.stem)
    assert len(set(many.values())) == 5000
