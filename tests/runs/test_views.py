"""How test images are looked at: by family, stored in the run, the same in every verb, and as before for old runs."""

import json

import image_files
import pytest
import yaml

from normfree.cli import main
from normfree.export import open_onnx
from normfree.models import list_models
from normfree.models.registry import default_cfg
from normfree.models.registry import test_crop as crop_of
from normfree.recipes import load_recipe
from normfree.runs import deployable
from normfree.runs.inspected import open_inspected
from normfree.runs.load import load_trained
from normfree.training.weights_file import read_weights, save_weights

TINY = {
    "nf_resnet50": "{depths: [1, 1, 1, 1], widths: [8, 8, 8, 8]}",
    "nfnet_f0": "{depths: [1, 1, 1, 1], widths: [16, 16, 16, 16], group_width: 8, stem: null}",
    "bn_resnet50": "{depths: [1, 1, 1, 1], widths: [8, 8, 8, 8]}",
}
SIZES = ["--data.image_size", "16", "--data.test_size", "16", "--train.epochs", "1", "--train.batch_size", "4"]


def train(folder, model: str, *flags: str) -> str:
    root, run = image_files.folder(folder / "photos", train=2, val=1), str(folder / f"run-{model}{len(flags)}")
    flags = ("--model", model, "--model.options", TINY[model], *SIZES, "--out", run, "--quiet", *flags)
    assert main(["train", "--data", f"imagefolder:{root}", *flags]) == 0
    return run


def test_families_of_all_models():
    for name in list_models():
        squash = name.startswith(("nfnet", "timm_dm_nfnet"))
        assert crop_of(default_cfg(name)) == ("squash" if squash else "centre"), name


@pytest.mark.parametrize(
    ("model", "view"), [("nf_resnet50", "centre"), ("nfnet_f0", "squash"), ("bn_resnet50", "centre")]
)
def test_the_networks_view_is_stored_and_used_by_every_verb(tmp_path, capsys, model, view):
    run = train(tmp_path, model)
    assert load_recipe(f"{run}/recipe.yaml").data.test_crop == view
    trained = load_trained(run)
    assert (trained.recipe.data.test_crop, trained.transform.crop) == (view, view)
    assert open_inspected(run, {}, 0).test_crop == view
    assert open_inspected(model, {}, 0).test_crop == view
    assert deployable.open_deployable(run).preprocessing.resize == view


def test_an_exported_file_says_it_and_predicts_the_same(tmp_path, capsys):
    run = train(tmp_path, "nf_resnet50")
    exported = str(tmp_path / "net.onnx")
    assert main(["export", run, "--out", exported]) == 0
    assert open_onnx(exported).description.preprocessing.resize == "centre"
    wide = str(image_files.write(tmp_path / "wide.png", image_files.pixels(40, 90)))
    said = []
    for network in (run, exported):
        capsys.readouterr()
        assert main(["predict", network, wide, "--json"]) == 0
        classes = json.loads(capsys.readouterr().out)["classes"]
        said.append({entry["name"]: entry["probability"] for entry in classes})
    assert said[0] == pytest.approx(said[1], abs=1e-5)  # both are float32


def test_the_view_can_be_chosen(tmp_path):
    run = train(tmp_path, "nf_resnet50", "--data.test_crop", "squash")
    assert load_trained(run).transform.crop == "squash"


def test_runs_of_earlier_versions_keep_the_squash(tmp_path):
    run = train(tmp_path, "nf_resnet50")
    recipe = yaml.safe_load((tmp_path / "run-nf_resnet500" / "recipe.yaml").read_text())
    del recipe["data"]["test_crop"]
    (tmp_path / "run-nf_resnet500" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert load_recipe(f"{run}/recipe.yaml").data.test_crop == "squash"
    weights, description = read_weights(tmp_path / "run-nf_resnet500" / "checkpoints" / "last" / "weights.safetensors")
    old = tmp_path / "old.safetensors"
    save_weights(old, weights, {**description, "recipe": recipe})
    trained = load_trained(str(old))
    assert trained.transform.crop == "squash"


def test_other_tasks_have_no_such_view(tmp_path, capsys):
    flags = [
        "--recipe",
        "demo_segmentation",
        "--data",
        "scenes:4",
        "--data.test_crop",
        "centre",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(["train", *flags]) == 2
    assert "data.test_crop (='centre') is for classification" in capsys.readouterr().err
