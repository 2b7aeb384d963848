"""Runs on volumes, and U-Nets in the place of a backbone and its head."""

import json

import nibabel
import numpy as np
import pytest
import torch
import volume_sets
from safetensors.torch import load_file

import normfree
from normfree.cli import main
from normfree.data.masks import MaskValues
from normfree.data.volume_files import read_header, read_mask
from normfree.export import Preprocessing, open_onnx
from normfree.recipes import load_recipe
from normfree.runs.cost import count_network
from normfree.tasks.volumes import Dice

TINY = ["--model.options.widths", "[4,8]", "--model.options.depths", "[1,1]", "--train.device", "cpu", "--quiet"]
VOLUMES = ["--data", "volumes:6,16", "--data.image_size", "16", "--data.test_size", "16", "--train.steps", "3", *TINY]
OWN = ["train", "--data.image_depth", "6", "--data.image_size", "8", "--data.image_width", "10", *TINY]
OWN += ["--train.steps", "6", "--train.eval_every", "1", "--optim.warmup_epochs", "0", "--data"]


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


def test_made_volumes_are_exported_and_have_no_pictures(run, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    assert main(["export", str(run), "--out", str(tmp_path / "made.onnx")]) == 0
    assert "image (N, 1, 16, 16, 16) -> logits (N, 3, 16, 16, 16)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["--data", "scenes:4"], 'must be "volumes:N" or "volumes:PATH" for volumes'),
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


@pytest.fixture(scope="module", params=[".npy", ".nii.gz"])
def own(request, tmp_path_factory):
    """A run on volumes in files, and their folder."""
    root = tmp_path_factory.mktemp("own")
    volume_sets.volumes_folder(root / "volumes", request.param)
    (root / "volumes/classes.txt").write_text("ground\nthing\n")
    assert main([*OWN, str(root / "volumes"), "--out", str(root / "run")]) == 0
    return root


def test_own_volumes_are_trained_measured_and_predicted(own, capsys):
    recipe = load_recipe(str(own / "run/recipe.yaml"))
    assert recipe.data.value_range == "zscore"
    assert (recipe.data.image_size, recipe.data.test_size, recipe.data.test_depth) == (8, 8, 6)
    assert main(["eval", str(own / "run"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in scores["classes"]] == ["ground", "thing"]
    last = json.loads((own / "run/metrics.jsonl").read_text().splitlines()[-2])
    assert scores["dice"] == pytest.approx(last["ema_dice"])
    folder = own / "masks"
    assert main(["predict", str(own / "run"), str(own / "volumes/val/images"), "--masks", str(folder), "--json"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(results) == 4
    dice = Dice(2)
    for result, path in zip(results, sorted((own / "volumes/val/masks").iterdir()), strict=True):
        said, truth = (read_mask(file, MaskValues(2)) for file in (result["mask"], str(path)))
        dice.confusion += torch.bincount((2 * truth + said)[truth != 255], minlength=4).view(2, 2)
        assert sum(result["classes"].values()) == pytest.approx(1, abs=1e-5)
        if path.suffix == ".gz":
            np.testing.assert_array_equal(nibabel.load(result["mask"]).affine, volume_sets.AFFINE)
            assert sum(result["millilitres"].values()) == pytest.approx(10 * 12 * 8 * 2 / 1000, abs=1e-3)
    assert dice.compute()["dice"] == pytest.approx(scores["dice"])  # what is written is what was measured


def test_exported_volumes_are_predicted_and_measured(own, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    images = str(own / "volumes/val/images")
    for kind in ("onnx", "pt2"):
        file = str(tmp_path / f"own.{kind}")
        assert main(["export", str(own / "run"), "--out", file]) == 0
        assert "image (N, 1, 6, 8, 10) -> logits (N, 2, 6, 8, 10)" in capsys.readouterr().out
        assert main(["predict", file, images, "--masks", str(tmp_path / kind)]) == 0
        assert main(["eval", file, "--data", f"volumes:{own / 'volumes'}", "--json"]) == 0
        assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["dice"] <= 1
    for one, other in zip(*(sorted((tmp_path / kind).iterdir()) for kind in ("onnx", "pt2")), strict=True):
        assert torch.equal(read_mask(str(one), MaskValues(2)), read_mask(str(other), MaskValues(2)))
    about = Preprocessing(8, 1, (0.5,), (0.5,), 0, 10, "windows", value_range="zscore", depth=6)
    assert open_onnx(tmp_path / "own.onnx").description.preprocessing == about
    assert main(["predict", file, images, "--size", "9"]) == 2
    assert "takes images of 6 x 8 x 10" in capsys.readouterr().err


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(own, tmp_path):
    options = [
        *OWN,
        str(own / "volumes"),
        "--optim.lr_drops",
        "[0.99]",
    ]  # so that the rate does not depend on the length
    assert main([*options, "--out", str(tmp_path / "whole")]) == 0
    assert main([*options, "--out", str(tmp_path / "parts"), "--train.steps", "3"]) == 0
    assert main(["train", "--resume", str(tmp_path / "parts"), "--train.steps", "6", "--quiet"]) == 0
    ends = [(tmp_path / name / "checkpoints/last/weights.safetensors") for name in ("whole", "parts")]
    first, second = (load_file(end) for end in ends)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_and_memory_change_nothing(own, tmp_path, workers):
    options = [*OWN, str(own / "volumes"), "--data.cache", "false", "--data.workers", str(workers)]
    assert main([*options, "--out", str(tmp_path / "run")]) == 0
    first, second = (load_file(end / "checkpoints/last/weights.safetensors") for end in (tmp_path / "run", own / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_is_divided_and_remembered(tmp_path, capsys):
    root = volume_sets.volumes_folder(tmp_path / "volumes", parts=(".",), count=5)
    assert main([*OWN, str(root), "--out", str(tmp_path / "run")]) == 0
    assert len(json.loads((tmp_path / "run/held_out.json").read_text())["names"]) == 1
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "1 image" in capsys.readouterr().out


def test_spacing_is_undone_in_predictions(tmp_path, capsys):
    root = volume_sets.volumes_folder(tmp_path / "volumes", ".npz", count=2)
    options = ["--data.spacing", "[1,2,1]", "--data.value_range", "[-200,400]", "--out", str(tmp_path / "run")]
    assert main([*OWN, str(root), *options]) == 0
    assert "resampled to 1 x 2 x 1 mm" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "run"), str(root / "val/images/v0.npz")]) == 0
    mask = tmp_path / "run/predictions/v0.npz"
    assert read_header(str(mask)).places(1, "") == (10, 12, 8)
    assert read_header(str(mask)).spacing == (2, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (["--data.foreground", "0.5", "--data.crop", "none"], "data.foreground (=0.5) is for data.crop random"),
        (["--data.spacing", "[1,2]"], "data.spacing (=[1.0, 2.0]) must be three numbers of mm"),
        (["--data.foreground", "2"], "data.foreground (=2.0) must be from 0 to 1"),
        (["--data.channels", "2"], "so 1 channel; 2 needed here"),
        (["--train.parallel", "fsdp"], "train.parallel (='fsdp') needs volumes of one size"),
        (["--data.mask_values", "[0,2]"], "the value 1 is neither among data.mask_values"),
        (["--data.val_fraction", "0.5"], "has test volumes of its own"),
    ],
    ids=["foreground", "spacing", "part", "channels", "fsdp", "values", "held-out"],
)
def test_what_does_not_fit_own_volumes_is_named(arguments, quoted, tmp_path, capsys):
    root = volume_sets.volumes_folder(tmp_path / "volumes", count=2)
    assert main([*OWN, str(root), "--out", str(tmp_path / "run"), *arguments]) == 2
    assert quoted in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field", ["foreground=0.5", "spacing=[1,1,1]", "image_depth=8", "value_range=zscore"])
def test_fields_of_volumes_are_refused_elsewhere(field, tmp_path, capsys):
    name, value = field.split("=")
    assert main(["train", f"--data.{name}", value, "--out", str(tmp_path / "run")]) == 2
    assert f"data.{name} (=" in capsys.readouterr().err


def test_predictions_never_overwrite_what_is_read(own, capsys):
    images = str(own / "volumes/val/images")
    assert main(["predict", str(own / "run"), images, "--masks", images]) == 2
    assert "is an image that is read here; name another folder" in capsys.readouterr().err
    assert main(["predict", str(own / "run"), images, "--out", "pictures"]) == 2
    assert "--out is for networks" in capsys.readouterr().err
