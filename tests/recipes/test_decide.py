"""What follows from the images: pure rules; what is given stays, and the rest follows from it."""

import itertools

import pytest

from normfree import UsageError
from normfree.recipes import Recipe, dump_recipe, list_recipes, load_recipe
from normfree.recipes.decide import CLOSED_BY, FIELDS, Facts, decide, in_words, open_fields

COUNTS, SIDES = (1, 10, 50, 300, 4_000, 20_000, 1_000_000), (8, 28, 64, 96, 224, 4_000)


@pytest.mark.parametrize("pretrained", [False, True])
def test_every_set_of_images_gets_a_recipe_that_is_accepted(pretrained):
    for images, side, grey in itertools.product(COUNTS, SIDES, (False, True)):
        content = {}
        for path, value in decide(Facts(images, side, grey, pretrained), {}).items():
            section, name = path.split(".")
            content.setdefault(section, {})[name] = value
        recipe = Recipe.from_dict(content, "decided")
        assert recipe.train.steps >= 500
        assert recipe.optim.warmup_steps < recipe.train.steps / 5


def test_more_images_get_more_steps_and_fewer_passes():
    found = [decide(Facts(images, 64), {}) for images in (100, 1_000, 10_000, 100_000)]
    passes = [f["train.steps"] * f["train.batch_size"] / n for f, n in zip(found, (1e2, 1e3, 1e4, 1e5), strict=True)]
    assert passes == sorted(passes, reverse=True)
    seen = [f["train.steps"] * f["train.batch_size"] for f in found]
    assert seen == sorted(seen)


def test_trained_weights_need_fewer_steps_at_a_lower_rate():
    scratch, tuned = (decide(Facts(300, 64, pretrained=pretrained), {}) for pretrained in (False, True))
    assert tuned["train.steps"] < scratch["train.steps"]
    assert tuned["optim.lr"] < scratch["optim.lr"]


def test_small_grey_images_are_characters_that_are_not_mirrored():
    assert not decide(Facts(1_000, 28, grey=True), {})["data.flip"]
    assert decide(Facts(1_000, 28), {})["data.flip"]
    assert decide(Facts(1_000, 512, grey=True), {})["data.flip"]


@pytest.mark.parametrize("path", FIELDS)
def test_what_is_given_is_not_decided(path):
    given = {path: decide(Facts(300, 64), {})[path]}
    assert set(decide(Facts(300, 64), given)) == set(FIELDS) - {path}


def test_the_rest_follows_from_what_is_given():
    free = decide(Facts(1_000, 64), {})
    of_epochs = decide(Facts(1_000, 64), {"train.steps": None, "train.epochs": 2.0})
    assert of_epochs["optim.warmup_steps"] < free["optim.warmup_steps"]
    assert of_epochs["optim.ema_decay"] < free["optim.ema_decay"]
    large = decide(Facts(1_000, 64), {"train.batch_size": 64})
    assert large["optim.lr"] == 2 * free["optim.lr"]  # by the square root of the batch, which is four times as large
    assert decide(Facts(1_000, 64), {"data.image_size": 80})["data.test_size"] == 80


def test_what_the_recipe_or_its_closer_gives_is_not_open():
    assert set(load_recipe("folder").data.decides) == {*FIELDS, "data.val_fraction"}
    for path, closers in CLOSED_BY.items():
        for closer in closers:
            assert path not in load_recipe("folder", {closer: 8}).data.decides
    assert "optim.lr" not in load_recipe("folder", {"optim.lr": 0.3}).data.decides
    other = load_recipe("folder", {"model.name": "nf_resnet50"}).data
    assert other.image_size is None
    assert "data.image_size" not in other.decides


def test_only_recipes_for_own_data_have_open_fields():
    found = {name: load_recipe(name).data.decides for name in list_recipes()}
    assert [name for name, decides in found.items() if decides] == ["folder", "volumes"]
    assert found["volumes"] == ("data.val_fraction",)


def test_open_fields_stay_open_when_a_recipe_is_written(tmp_path):
    path = tmp_path / "mine.yaml"
    recipe = load_recipe("folder", {"optim.lr": 0.3})
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    assert "optim.warmup_steps" in recipe.data.decides


def test_a_field_without_a_rule_is_refused():
    with pytest.raises(UsageError, match=r"data.decides: 'train.step' .*train.steps"):
        open_fields(["train.step"], {})
    with pytest.raises(UsageError, match=r"data.decides: 'model.name'"):
        load_recipe("folder", {"data.decides": ["model.name"]})


def test_photos_are_cropped_as_in_the_papers_and_small_images_are_shifted():
    assert decide(Facts(300, 500), {})["data.crop"] == "distorted"
    assert decide(Facts(300, 64), {})["data.crop"] == "shift"


def test_the_user_is_told_of_images_that_take_long_to_decode():
    for side, lines in ((640, 1), (3_000, 2)):
        facts = Facts(300, side)
        values = decide(facts, {})
        assert len(in_words(facts, values, list(values))) == lines
