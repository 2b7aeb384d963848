"""One grammar for what a text names, and what each verb makes of it."""

import argparse
import re
from pathlib import Path

import image_files
import pytest
import torch
import yaml
from safetensors.torch import save_file
from small_models import shake
from tiny_runs import FLAGS, OPTIONS, network

import normfree as library
from normfree.errors import UsageError
from normfree.export import Preprocessing, to_onnx
from normfree.recipes import describe, load_recipe
from normfree.runs.initialize import adopt
from normfree.runs.load import load_trained
from normfree.runs.named import Kind, kind_of
from normfree.training import read_weights, save_weights
from normfree.weights import to_timm

NAME = "timm_test_nfnet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def everyones(folder):
    """A checkpoint of somebody's training script, of timm's smallest network and three classes."""
    torch.manual_seed(0)
    model = shake(library.create_model(NAME, num_classes=3)).eval()
    state = {f"module.{name}": value for name, value in to_timm(model).items()}
    torch.save(dict(state_dict=state, args=argparse.Namespace(lr=0.1), epoch=9), "everyones.pth.tar")
    return model


@pytest.fixture
def exported(folder):
    torch.manual_seed(0)
    model = library.create_model(NAME, num_classes=3, widths=(16, 16, 16, 16)).eval()
    to_onnx(model, "x.onnx", preprocessing=Preprocessing.of(model, 64), classes=("0", "1", "2"))
    return model


def test_what_a_text_names(everyones, trained):
    save_file(to_timm(everyones), "timms.safetensors")
    Path("x.onnx").touch()
    named = {
        trained: Kind.RUN,
        trained / "checkpoints" / "last" / "ema.safetensors": Kind.CHECKPOINT,
        "everyones.pth.tar": Kind.WEIGHTS,
        "timms.safetensors": Kind.WEIGHTS,
        "x.onnx": Kind.EXPORTED,
        "pretrained:nfnet_f0": Kind.PUBLISHED,
        "torchvision.models:resnet18": Kind.FUNCTION,
        "timm:create_model": Kind.FUNCTION,
        "nfnet_f0": Kind.MODEL,
    }
    assert {str(text): kind_of(str(text)) for text in named} == {str(text): kind for text, kind in named.items()}
    for missing in ("nowhere.pth", "a/nowhere"):
        with pytest.raises(UsageError, match=f"{missing} does not exist; give a run folder"):
            kind_of(missing)


def test_every_verb_reads_everyones_checkpoints(normfree, everyones, folder):
    root, file = image_files.folder(folder / "photos", tuple("012"), 1, 1), "everyones.pth.tar"
    predicted = normfree("predict", file, root / "val" / "0", "--json")
    assert predicted.code == 0, predicted.err
    evaluated = normfree("eval", file, "--data", f"imagefolder:{root}", "--size", 32)
    assert evaluated.code == 0, evaluated.err
    assert f"{file}: {NAME} on" in evaluated.out
    assert normfree("spp", file, "--size", 32, "--batch", 1, "--out", "spp").code == 0
    assert normfree("convert", file, "x.safetensors", "--to", "normfree", "--quiet").code == 0
    assert torch.equal(read_weights(Path("x.safetensors"))[0]["head.fc.bias"], everyones.head.fc.bias)


def test_a_raw_state_of_ours_is_known_by_its_tensors(normfree, folder):
    """What `torch.save(model.state_dict())` leaves."""
    torch.manual_seed(0)
    model = shake(library.create_model("nf_resnet26_small", num_classes=2))
    torch.save(model.state_dict(), "a.pt")
    result = normfree("convert", "a.pt", "b.safetensors", "--to", "normfree", "--quiet")
    assert "a.pt: the tensors are those of nf_resnet26_small" in result.out, result.err
    again = load_trained("b.safetensors").model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_exported_files(normfree, exported):
    """`eval` measures them as the network; other verbs say what would be right."""
    root = image_files.folder(Path("photos"), tuple("012"), 2, 2)
    evaluated = normfree("eval", "x.onnx", "--data", f"imagefolder:{root}", "--json")
    assert evaluated.code == 0, evaluated.err
    assert normfree("eval", "x.onnx", "--data", f"imagefolder:{root}", "--size", 32).code == 2
    save_file(dict(exported.state_dict()), "x.safetensors")
    for arguments in (
        ["spp", "x.onnx"],
        ["export", "x.onnx", "--out", "y.onnx"],
        ["convert", "x.onnx", "y.safetensors", "--to", "normfree"],
        ["train", *FLAGS, "--init", "x.onnx"],
        ["bench", "step", "x.onnx"],
    ):
        result = normfree(*arguments)
        assert result.code == 2
        assert re.search(r"x.onnx is an exported file.*give the run or the checkpoint", result.error), arguments
    assert "x.onnx is no run folder" in normfree("report", "x.onnx").error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nfnet_f0", "is a model's name, not a trained network; pretrained:nfnet_f0 names its published weights"),
        ("nf_resnet50", "is a model's name, not a trained network; no weights of it are published"),
        ("NFNet_F0", "did you mean pretrained:nfnet_f0"),
        ("a.b:c", "does not exist; give a run folder"),
        ("pretrained:nfnet_f9", "no weights of nfnet_f9 are published; did you mean nfnet_f0"),
    ],
)
def test_what_is_not_trained(normfree, folder, text, said):
    for arguments in (["train", *FLAGS, "--init", text], ["eval", text]):
        result = normfree(*arguments)
        assert result.code == 2
        assert said in result.error


def test_init_builds_the_network_of_the_weights(normfree, everyones):
    root = image_files.folder(Path("photos"), ("cat", "dog"), 2, 1)
    flags = ["--quiet", "--train.device", "cpu", "--train.steps", 1, "--train.batch_size", 2]
    flags += ["--data", f"imagefolder:{root}", "--data.image_size", 64, "--data.test_size", 64, "--out", "run"]
    result = normfree("train", *flags, "--init", "everyones.pth.tar")
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    assert lines[0] == f"the network is that of everyones.pth.tar: {NAME}; --model NAME builds another"
    assert lines[1].startswith("4 training images, median side 10 px: fine-tuning takes 1 step of 2")
    assert lines[2] == "weights from everyones.pth.tar, with a new classifier (2 classes instead of 3)"
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert (recipe["model"]["name"], recipe["model"]["options"]) == (NAME, {})
    other = normfree("train", *flags[:-1], "other", "--init", "everyones.pth.tar", "--model", "nf_resnet26_small")
    assert "NFResNet (family 'nf_resnet') has no counterpart in timm" in other.error


def test_digits_to_photos(normfree, trained, folder):
    """Other channels and other classes; the network is the run's, and another stem can be asked for."""
    root = image_files.folder(Path("photos"), ("cat", "dog"), 2, 1)
    flags = ["--quiet", "--train.device", "cpu", "--train.steps", 1, "--data", f"imagefolder:{root}", "--out", "run"]
    result = normfree("train", *flags, "--train.batch_size", 2, "--init", trained)
    assert result.code == 0, result.err
    said = result.err.splitlines()[:3]
    assert said[0].startswith(f"the network is that of {trained}: nf_resnet26_small with options depths=[1, 1, 1]")
    assert "stem" not in said[0]
    adapted = (
        "with the first convolution adapted to 3 channels instead of 1, with a new classifier (2 classes instead of "
    )
    assert said[2].endswith(f"{adapted}10)")
    again = normfree("train", *flags[:-1], "other", "--init", trained, "--model.options.stem", "7x7")
    assert "with a new stem (7x7 instead of 3x3), with a new classifier (2 classes instead of 10)" in again.err


def test_the_function_of_the_weights_is_built(folder):
    """Options that no tensor shows, such as the activation, are the run's; regularization is the recipe's."""
    recipe = load_recipe("digits", {"model.options": {**OPTIONS, "activation": "silu"}})
    model = recipe.model.build(num_classes=10, in_chans=1)
    save_weights(folder / "a.safetensors", model.state_dict(), describe(recipe, list("0123456789")))
    other = load_recipe("demo_segmentation", {"model.drop_rate": 0.1})
    said = adopt(other, "a.safetensors")
    assert "activation=silu" in said
    assert other.model.options == dict(
        depths=[1, 1, 1], widths=[16, 16, 32], activation="silu", stem="7x7-nopool", output_stride=8
    )
    assert other.model.drop_rate == 0.1
    assert adopt(other, "a.safetensors") is None
    save_file({k: v.contiguous() for k, v in network().state_dict().items()}, "raw.safetensors")
    fitting = load_recipe("digits", {"model.options": OPTIONS})
    assert adopt(fitting, "raw.safetensors") is None
