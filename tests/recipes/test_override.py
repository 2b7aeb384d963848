"""What follows from a field that is overridden: options of another model, lengths, exact micro-batches."""

import pytest

from normfree import UsageError
from normfree.recipes import load_recipe


@pytest.fixture
def small(tmp_path) -> str:
    """A recipe whose options are for its network."""
    path = tmp_path / "small.yaml"
    path.write_text("model: {name: nf_resnet26_small, options: {stem: 7x7}}\ndata: {source: digits}\n")
    return str(path)


def loaded(*arguments, **options):
    said = []
    return load_recipe(*arguments, say=said.append, **options), said


@pytest.mark.parametrize("model", ["nfnet_f0", "nf_regnet_b0", "timm_nf_resnet50", "nf_resnet50", "bn_resnet50"])
def test_options_are_for_the_recipes_own_model(model, small):
    recipe, said = loaded(small, {"model.name": model})
    assert recipe.model.options == {}
    assert said == [
        f"model.options of the recipe (stem: '7x7') are for nf_resnet26_small; {model} is built without them"
    ]


def test_numbers_of_another_variant_are_left_out_and_what_the_task_needs_is_kept():
    recipe, said = loaded("demo_segmentation", {"model.name": "nf_resnet50"})
    assert recipe.model.options == dict(output_stride=8, skip_gain=1.0)
    assert "stem: '7x7-nopool', widths: [32, 64, 128], depths: [1, 2, 2]" in said[0]
    assert loaded("nf_resnet50_segmentation", {"model.name": "nfnet_f0"})[0].model.options == dict(output_stride=16)


def test_typed_options_stay_and_are_checked(small):
    recipe, _ = loaded(small, {"model.name": "nf_resnet50", "model.options": dict(stem="3x3")})
    assert recipe.model.options == dict(stem="3x3")
    recipe, _ = loaded(small, {"model.options.stem": "9x9", "model.name": "nfnet_f0"})
    with pytest.raises(UsageError, match=r"model.options.stem \(='9x9'\) must be one of 4x 3x3, "):
        recipe.model.build(num_classes=2, in_chans=3)


def test_options_of_an_optimizer_are_left_out_with_its_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {name: nf_resnet26_small}\noptim: {name: rmsprop, options: {decay: 0.95, eps: 0.01}}\n")
    recipe, said = loaded(str(path), {"optim.name": "lars", "optim.options.trust_coefficient": 0.02})
    assert (recipe.optim.name, recipe.optim.options) == ("lars", dict(trust_coefficient=0.02))
    assert said == ["optim.options of the recipe (decay: 0.95, eps: 0.01) are for rmsprop; lars is made without them"]
    recipe, said = loaded(str(path), {"optim.name": "rmsprop", "optim.options.decay": 0.9})
    assert (recipe.optim.options, said) == (dict(decay=0.9, eps=0.01), [])
    assert loaded(str(path), {"optim.name": "sgd"})[0].optim.options == {}


def test_the_rule_of_the_learning_rate_is_for_sgd():
    with pytest.raises(UsageError, match=r"optim.lr must be given with optim.name \(=rmsprop\)"):
        load_recipe("folder", {"optim.name": "rmsprop"})
    assert load_recipe("folder", {"optim.name": "rmsprop", "optim.lr": 0.01}).optim.lr == 0.01


def test_the_same_model_keeps_them(small):
    assert loaded(small, {"model.name": "nf_resnet26_small"}) == (load_recipe(small), [])
    assert loaded("folder", {"model.name": load_recipe("folder").model.name}) == (load_recipe("folder"), [])


def test_an_unknown_model_is_said_where_it_is_built():
    recipe, said = loaded("folder", {"model.name": "nfnet_f99"})
    assert said == []
    with pytest.raises(UsageError, match="nfnet_f99"):
        recipe.model.build(num_classes=2, in_chans=3)


def test_epochs_take_the_place_of_steps():
    recipe, said = loaded("finetune_nf_resnet50", {"train.epochs": 3, "optim.warmup_epochs": 0.5})
    assert (recipe.train.steps, recipe.train.epochs) == (None, 3)
    assert (recipe.optim.warmup_steps, recipe.optim.warmup_epochs) == (None, 0.5)
    assert said[0] == "train.epochs (=3) takes the place of train.steps (=15000)"
    both = load_recipe("finetune_nf_resnet50", {"train.epochs": 3, "train.steps": 7})
    assert both.train.steps == 7


@pytest.mark.parametrize("model", ["bn_resnet50", "bn_resnet50_v1", "bn_nfnet_f0"])
def test_an_exact_micro_batch_is_not_for_batch_norm(model):
    with pytest.raises(UsageError, match=rf"micro_batch \(=128\) of the recipe is exact .*; {model} would normalize"):
        load_recipe("nf_resnet50", {"model.name": model})
    assert load_recipe("nf_resnet50", {"model.name": model, "train.micro_batch": 64}).train.micro_batch == 64
    assert load_recipe("nf_resnet50", {"model.name": model, "train.micro_batch": None}).train.micro_batch is None


def test_a_network_without_norms_may():
    assert load_recipe("nf_resnet50", {"model.name": "plain_resnet50"}).train.micro_batch == 128


def test_a_file_that_says_both_means_both(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {name: bn_resnet50}\ntrain: {batch_size: 64, micro_batch: 8}\n")
    assert load_recipe(str(mine)).train.micro_batch == 8
