"""Runs with networks of torchvision and timm: trained, converted or not, and loaded again."""

import csv
import inspect

import pytest
import timm
import torch
import yaml
from tiny_studies import SET
from torch import nn

from normfree import UsageError, studies
from normfree.cli import main
from normfree.nn import WSConv2d, batch_norms
from normfree.optim import param_groups
from normfree.recipes import load_recipe
from normfree.runs import load, train

SHORT = {
    **{"train.steps": 2, "train.batch_size": 4, "train.log_every": 1, "train.device": "cpu", "optim.warmup_epochs": 0},
    **{"data.image_size": 32, "data.test_size": 32, "optim.ema_decay": None},
}
NETWORK = {"model.name": "timm:test_resnet"}


def run(photos_folder, out, **fields):
    source = {"data.source": f"imagefolder:{photos_folder}"}
    return train("folder", SHORT | NETWORK | source | fields, out=out, progress=False)


@pytest.fixture(scope="module")
def rebuilt(photos_folder, tmp_path_factory):
    """A finished run with a rebuilt network, and a batch of images."""
    return run(photos_folder, tmp_path_factory.mktemp("rebuilt") / "run", **{"model.convert": "rebuild"})


def same(a, b) -> bool:
    """Up to the rounding of another memory layout."""
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())


def test_a_rebuilt_network_is_loaded_with_its_constants(rebuilt):
    trained, x = load(rebuilt.folder), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert same(trained.model(x), rebuilt.trainer.model.eval()(x))
        assert len(trained.recipe.model.constants) > 5
        trained.recipe.model.constants = dict.fromkeys(trained.recipe.model.constants, 1.0)
        other = trained.task.build_network(trained.recipe, trained.classes)
        other.load_state_dict(trained.model.state_dict())
        assert not same(other.eval()(x), trained.model(x))
    assert any(isinstance(m, WSConv2d) for m in trained.model.modules())


def test_its_classifier_is_not_clipped(rebuilt):
    groups = {group["name"]: group for group in param_groups(rebuilt.trainer.model, clipping=0.01)}
    assert groups["classifier"]["params"][0] is rebuilt.trainer.model.fc.weight
    assert groups["classifier"]["clipping"] is None
    assert "skip_gain" in groups


@pytest.mark.parametrize("convert", [None, "identity"])
def test_controls_are_loaded(photos_folder, tmp_path, convert):
    finished = run(photos_folder, tmp_path / "run", **{"model.convert": convert})
    trained, x = load(tmp_path / "run"), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert same(trained.model(x), finished.trainer.model.eval()(x))
    assert bool(batch_norms(trained.model)) == (convert is None)
    assert trained.recipe.model.constants == {}


def test_the_verbs_take_its_folder(rebuilt, photos_folder, tmp_path, capsys):
    folder, file = str(rebuilt.folder), str(tmp_path / "net.pt2")
    photo = str(next(p for p in photos_folder.rglob("*") if p.is_file()))
    printed = {}
    for verb, *arguments in (["eval", folder], ["predict", folder, photo], ["export", folder, "--out", file]):
        assert main([verb, *arguments]) == 0
        printed[verb] = capsys.readouterr().out
    assert "timm:test_resnet on" in printed["eval"]
    assert main(["predict", file, photo]) == 0
    assert capsys.readouterr().out == printed["predict"]
    assert main(["convert", folder, str(tmp_path / "x.safetensors"), "--to", "timm"]) == 2
    assert "timm:test_resnet; convert takes normfree's networks" in capsys.readouterr().err


def test_a_run_goes_on_with_its_constants(photos_folder, tmp_path):
    run(photos_folder, tmp_path / "run", **{"model.convert": "rebuild"})
    before = load(tmp_path / "run").recipe.model.constants
    more = train(resume=tmp_path / "run", overrides={"train.steps": 3}, progress=False)
    assert more.trainer.state.step == 3
    assert load(tmp_path / "run").recipe.model.constants == before


def test_a_new_run_by_the_recipe_of_another_finds_its_own_constants(rebuilt, tmp_path):
    train(str(rebuilt.folder / "recipe.yaml"), {"train.seed": 5}, out=tmp_path / "two", progress=False)
    first, second = (load(folder).recipe.model.constants for folder in (rebuilt.folder, tmp_path / "two"))
    assert first.keys() == second.keys()
    assert first != second  # other weights were measured


def test_a_kept_network_starts_with_trained_outputs(photos_folder, tmp_path, monkeypatch):
    """Trained weights would be downloaded; here they are drawn."""

    def trained(name, pretrained=False, **options):
        model = create(name, **options)
        torch.manual_seed(1)
        for module in model.modules() if pretrained else ():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        return made.append((pretrained, model)) or model

    made, create = list[tuple[bool, nn.Module]](), timm.create_model
    trained.__signature__ = inspect.signature(create)
    monkeypatch.setattr(timm, "create_model", trained)
    options = {"model.options": {"pretrained": True}, "model.convert": "keep", "optim.lr": 1e-9}
    finished = run(photos_folder, tmp_path / "run", **options)
    original = next(model for pretrained, model in made if pretrained)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(finished.trainer.model.eval()(x), original.eval()(x), rtol=1e-3, atol=1e-4)
    assert not batch_norms(finished.trainer.model)
    made.clear()
    with torch.no_grad():
        assert same(load(tmp_path / "run").model(x), finished.trainer.model(x))
    assert {pretrained for pretrained, _ in made} == {False}  # nothing is downloaded for a network that is loaded


def test_messages(photos_folder, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"model.convert \(=rebuild\): .*has no normalization"):
        run(photos_folder, tmp_path / "a", **{"model.name": "torchvision:squeezenet1_1", "model.convert": "rebuild"})
    with pytest.raises(UsageError, match="is for the classes or numbers of whole images only"):
        train("demo_segmentation", {"model.name": "timm:test_resnet"}, out=tmp_path / "b", progress=False)
    with pytest.raises(UsageError, match="activation_checkpointing must be null for timm:test_resnet"):
        run(photos_folder, tmp_path / "c", **{"train.activation_checkpointing": "all"})


def test_settings_of_a_recipe_for_another_network_are_left_out():
    said = []
    recipe = load_recipe("digits", NETWORK, said.append)
    assert (recipe.model.drop_rate, recipe.model.stochdepth_rate, recipe.model.options) == (None, None, {})
    assert any("model.drop_rate of the recipe (=0.2) is for nf_resnet26_small" in line for line in said)
    recipe = load_recipe("cifar10_resnet18", {"model.name": "nf_resnet26_small"}, said.append)
    assert (recipe.model.convert, recipe.model.options) == (None, {})
    assert any("model.convert of the recipe (=rebuild) is for torchvision:resnet18" in line for line in said)


def test_the_recipes_differ_in_their_normalization_alone():
    ours, twin = load_recipe("cifar10_resnet18"), load_recipe("cifar10_resnet18_bn")
    assert (ours.model.convert, twin.model.convert) == ("rebuild", None)
    assert (ours.optim.clipping, twin.optim.clipping) == (0.02, None)
    twin.model.convert, twin.optim.clipping = ours.model.convert, ours.optim.clipping
    assert ours == twin


def test_a_study_compares_them(tmp_path):
    fields = {name: value for name, value in SET.items() if not name.startswith("model.")}
    axes = {"normalization": {"BatchNorm": {"model.convert": None}, "rebuilt": {"model.convert": "rebuild"}}}
    content = dict(base="digits", set=fields | NETWORK, axes=axes, seeds=1)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    outcome = studies.run(studies.load_study(str(tmp_path / "study.yaml")), tmp_path / "out", say=lambda line: None)
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished", "finished"], outcome
    batch_norm, rebuilt = (load(tmp_path / "out" / row["run"]).model for row in rows)
    assert batch_norms(batch_norm)
    assert not batch_norms(rebuilt)
