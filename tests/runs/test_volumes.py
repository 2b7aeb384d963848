"""Runs on volumes, and U-Nets in the place of a backbone and its head."""

import json

import pytest
import torch

import normfree
from normfree.cli import main
from normfree.recipes import load_recipe
from normfree.runs.cost import count_network

TINY = ["--model.options.widths", "[4,8]", "--model.options.depths", "[1,1]", "--train.device", "cpu", "--quiet"]
VOLUMES = ["--data", "volumes:6,16", "--data.image_size", "16", "--data.test_size", "16", "--train.steps", "3", *TINY]


@pytest.fixture(scope="module", params=["demo_volumes", "demo_volumes_bn", "demo_volumes_in"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes") / "run"
    assert main(["train", "--recipe", request.param, *VOLUMES, "--out", str(folder)]) == 0
    return folder


def test_a_run_is_trained_and_measured(run, tmp_path, capsys):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [value for line in lines for name, value in line.items() if name.endswith("dice")]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    assert main(["eval", str(run)]) == 0
    text = capsys.readouterr().out
    assert "Dice " in text
    assert "tube" in text
    assert main(["spp", str(run), "--out", str(tmp_path / "spp")]) == 0
    assert main(["report", str(run)]) == 0


def test_what_volumes_do_not_have_is_refused(run, capsys):
    assert main(["predict", str(run), "nothing.png"]) == 2
    assert "networks for volumes have no `normfree predict`" in capsys.readouterr().err
    assert main(["export", str(run)]) == 2


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["--data", "scenes:4"], 'must be "volumes:N" for volumes'),
        (["--model", "nf_resnet26_small"], "must be a U-Net of volumes, such as nf_unet3d"),
        (["--model", "nf_unet"], "nf_unet has 2 dimensions; task.name volumes has volumes"),
        (["--data.channels", "3"], "data.channels (=3) must be 1 for volumes"),
        (["--data.mixup", "0.2"], "data.mixup (=0.2) must be 0 for volumes"),
        (["--data.short_side", "8"], "data.short_side (=8) is for images"),
        (["--task.head_width", "8"], "task.head_width (=8) must be null for nf_unet3d"),
    ],
    ids=["source", "backbone", "dimensions", "channels", "mixing", "images", "head"],
)
def test_what_does_not_fit_is_named(arguments, quoted, tmp_path, capsys):
    assert main(["train", "--recipe", "demo_volumes", *VOLUMES, "--out", str(tmp_path / "run"), *arguments]) == 2
    assert quoted in capsys.readouterr().err


def test_a_unet_segments_images(tmp_path, capsys):
    sizes = ["--data", "scenes:8,32", "--data.image_size", "32", "--data.test_size", "32", "--train.steps", "2"]
    network = ["--model", "nf_unet", "--task.head_width", "null", "--train.batch_size", "2", *TINY]
    folder = tmp_path / "run"
    assert main(["train", "--recipe", "demo_segmentation", *sizes, *network, "--out", str(folder)]) == 0
    assert main(["eval", str(folder)]) == 0
    assert "mean IoU" in capsys.readouterr().out
    image = next((folder / "examples").glob("*.png"))
    assert main(["predict", str(folder), str(image), "--out", str(tmp_path / "pictures")]) == 0


@pytest.mark.parametrize("recipe", ["digits", "demo_depth"])
def test_unets_are_for_segmentation(recipe, tmp_path, capsys):
    assert main(["train", "--recipe", recipe, "--model", "nf_unet", "--out", str(tmp_path / "run")]) == 2
    assert "nf_unet) is a U-Net, for segmentation" in capsys.readouterr().err


def test_multiply_adds_are_those_of_a_volume():
    recipe = load_recipe("demo_volumes")
    params, macs = count_network(recipe, ["a", "b", "c"])
    model = normfree.create_model("nf_unet3d", num_classes=3, in_chans=1, ratio=0.5)
    assert params == sum(p.numel() for p in model.parameters())
    assert macs == normfree.models.count_macs(model, (1, 32, 32, 32))


def test_commands_know_unets(tmp_path, capsys):
    assert main(["models", "nf_unet*"]) == 0
    assert "nf_unet3d" in capsys.readouterr().out
    options = [f"--option={text}" for text in ("widths=[4,8]", "depths=[1,1]", "in_chans=1", "skip_gain=1.0")]
    assert main(["spp", "nf_unet3d", "--size", "16", *options, "--out", str(tmp_path / "spp")]) == 0
    assert "variance" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nf_unet", "nf_unet3d"])
def test_onnx_has_the_same_function(name, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = normfree.create_model(name, num_classes=3, in_chans=1, widths=(4, 8), depths=(1, 1), skip_gain=1.0).eval()
    x = torch.randn(1, 1, *(9,) * model.dims)
    path = str(tmp_path / "unet.onnx")
    torch.onnx.export(normfree.fold(model), (x,), dynamo=True, verbose=False).save(path)
    session = runtime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(x), atol=1e-5, rtol=1e-4)
