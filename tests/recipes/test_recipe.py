"""Recipes: those that come with normfree are sound; overrides."""

import dataclasses

import pytest
import torch
import yaml
from torch import nn

from normfree.nn import BATCH_NORM
from normfree.recipes import (
    Recipe,
    describe_type,
    dump_recipe,
    field_help,
    field_paths,
    list_recipes,
    load_recipe,
    recipe_header,
)
from normfree.recipes.recipe import recipe_text
from normfree.tasks import task_of

LABELS = ("Source:", "Command:", "Cost:", "Expected:")


def value_at(recipe: Recipe, path: str):
    for name in path.split("."):
        recipe = getattr(recipe, name)
    return recipe


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_is_sound(name, write):
    recipe = load_recipe(name)
    with torch.device("meta"):
        build = recipe.model.build_unet if recipe.model.is_unet else recipe.model.build
        if recipe.model.is_library:
            model = task_of(recipe).build_network(recipe, list("0123456789"))
        else:
            model = build(num_classes=10, in_chans=recipe.data.channels)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    groups = [group["name"] for group in recipe.optim.build(model).param_groups]
    normalized = any(isinstance(module, (*BATCH_NORM, nn.InstanceNorm3d)) for module in model.modules())
    without_scalar = normalized or "efficientnet" in name  # with SkipInit, EfficientNets do not train
    assert {"weight", "classifier", "gain", "bias"} <= set(groups)
    assert ("skip_gain" in groups) == (not without_scalar)
    assert recipe.optim.peak_lr(recipe.train.batch_size) > 0
    assert load_recipe(write(dump_recipe(recipe))) == recipe
    recipe.data.decides = ()  # as in a run: there all fields are given
    assert Recipe.from_dict(dataclasses.asdict(recipe), "here") == recipe


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_says_what_it_is(name):
    title, *rest = recipe_header(name)
    assert len(title) > 20
    assert not title.startswith(LABELS)
    labelled = [line for line in rest if line.startswith(LABELS)]
    assert [line.split(" ")[0] for line in labelled] == list(LABELS)
    assert all(len(line.partition(": ")[2]) > 5 for line in labelled)
    command = next(line for line in labelled if line.startswith("Command:"))
    assert "normfree train" in command
    if "--recipe" in command:
        assert f"--recipe {name}" in command


def test_default_recipe_and_its_file():
    assert load_recipe() == load_recipe("digits")
    assert "digits" in list_recipes() == sorted(list_recipes())
    assert yaml.safe_load(recipe_text("digits"))["optim"]["clipping"] == load_recipe().optim.clipping


def test_what_is_left_out_has_its_default(write):
    assert load_recipe(write("")) == load_recipe(write("{}")) == Recipe()
    recipe = load_recipe(write("optim: {lr: 0.25}\n"))
    assert recipe.optim.lr == 0.25
    recipe.optim.lr = Recipe().optim.lr
    assert recipe == Recipe()


@pytest.mark.parametrize("section", ["model", "data", "task", "optim", "train"])
def test_an_empty_section_is_its_default(write, section):
    """What is left when every line of a section is commented out."""
    assert load_recipe(write(f"{section}:\n")) == Recipe()


def test_every_field_is_explained():
    paths, meanings = field_paths(), field_help()
    assert list(paths) == list(meanings)
    assert all(len(text) > 5 for text in meanings.values())
    assert all(describe_type(item.type) for item in paths.values())


OVERRIDES = [
    ("optim.lr", 0.2),
    ("optim.lr", 2),
    ("optim.clipping", None),
    ("train.steps", 5),
    ("data.mean", [0.5]),
    ("data.mean", (0.5,)),
    ("data.crop", "none"),
    ("model.options", {"depths": [1, 1, 1]}),
    ("model.options.activation", "silu"),
    ("train.channels_last", True),
]


@pytest.mark.parametrize(("path", "value"), OVERRIDES)
def test_overrides(path, value, write):
    recipe, plain = load_recipe("digits", {path: value}), load_recipe("digits")
    got = recipe.model.options["activation"] if path == "model.options.activation" else value_at(recipe, path)
    assert got == (tuple(value) if path == "data.mean" else value)
    fixed = {p for p in field_paths() if not path.startswith(p)}
    assert all(value_at(recipe, p) == value_at(plain, p) for p in fixed)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_options_are_merged_with_the_recipes(write):
    mine = write("model: {options: {depths: [1, 1], widths: [8, 8]}}")
    merged = dict(depths=[2, 2], widths=[8, 8], activation="silu")
    assert load_recipe(mine, {"model.options": dict(depths=[2, 2], activation="silu")}).model.options == merged
    by_path = load_recipe(mine, {"model.options.depths": [2, 2], "model.options.activation": "silu"})
    assert by_path.model.options == merged


@pytest.mark.parametrize("change", [{"model.options": dict(depths=None)}, {"model.options.depths": None}])
def test_null_takes_an_option_out(write, change):
    mine = write("model: {options: {depths: [1, 1], widths: [8, 8]}}")
    assert load_recipe(mine, change).model.options == dict(widths=[8, 8])
    assert load_recipe(write("model: {}"), change).model.options == {}
    assert load_recipe("digits", {"optim.clipping": None}).optim.clipping is None  # a field is not an option


def test_a_key_of_a_mapping_of_values_may_have_dots(write):
    mine = write("optim: {clipping_parts: {stem: false, stages.0: 0.02}}")
    changes = {"optim.clipping_parts.stages.1": True, "optim.clipping_parts.stages.0": None, "optim.lr_factors.gain": 2}
    recipe = load_recipe(mine, changes)
    assert recipe.optim.clipping_parts == {"stem": False, "stages.1": True}
    assert recipe.optim.lr_factors == {"gain": 2.0}
    assert load_recipe(write(dump_recipe(recipe))) == recipe
