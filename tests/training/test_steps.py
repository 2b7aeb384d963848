"""How many steps a run has."""

from fractions import Fraction

import pytest

from normfree.recipes import list_recipes, load_recipe
from normfree.recipes.recipe import recipe_text

IMAGENET = 1_281_167


def planned(recipe, images: int) -> int:
    """Steps of a recipe on so many images."""
    train = recipe.train
    exact = Fraction(images, train.batch_size) if train.across_epochs else images // train.batch_size
    return train.total_steps(exact)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("nf_resnet50", 112_602),
        ("nfnet_f0", 112_602),
        ("nfnet_f6_sam", 112_602),
        ("nf_regnet_b0", 450_410),
        ("nf_resnet50_batch1024", 18_767),
        ("nf_resnet50_batch8", 2_402_188),
        ("nf_resnet50_batch4", 4_804_376),
    ],
)
def test_the_papers_runs_have_the_released_number_of_steps(name, steps):
    recipe = load_recipe(name)
    assert planned(recipe, IMAGENET) == steps
    assert f"{steps:,} steps of {recipe.train.batch_size} images" in recipe_text(name)


def test_the_warm_up_has_a_fraction_of_a_step():
    recipe = load_recipe("nfnet_f0")
    given = dict(batch_size=4096, total_steps=112_602, steps_per_epoch=float(Fraction(IMAGENET, 4096)))
    warmup = 5 * IMAGENET / 4096  # 1563.93
    for step in (1, 1000, 1563):
        assert recipe.optim.lr_at(step, **given) == pytest.approx(1.6 * step / warmup, rel=1e-12)
    assert 1.599 < recipe.optim.lr_at(1564, **given) < 1.6


def test_every_recipe_by_epochs_that_is_a_papers_cuts_batches_across_them():
    own = {"digits", "folder", "demo_segmentation", "demo_depth", "demo_detection"}
    published = {
        "cifar10",
        "cifar10_fast",
        "cifar10_resnet18",
        "fashion_mnist",
        "tiny_imagenet",
        "tiny_imagenet_nfnet",
        "camvid",
        "bccd",
    }
    own |= published | {f"{name}_bn" for name in published} | {"pretrain_tiny_imagenet"}
    own |= {"fashion_mnist_private", "cifar10_private"}
    own |= {"volumes", "demo_volumes", "demo_volumes_bn", "demo_volumes_in", "camvid_unet", "camvid_unet_bn"}
    by_epochs = {name for name in list_recipes() if load_recipe(name).train.steps is None}
    assert {name for name in by_epochs if load_recipe(name).train.across_epochs} == by_epochs - own


def test_a_run_from_before_has_the_steps_that_it_had():
    """Its recipe.yaml knows nothing of the field."""
    recipe = load_recipe("nf_resnet50", {"train.across_epochs": False})
    assert planned(recipe, IMAGENET) == 90 * 1251
    assert load_recipe("digits").train.across_epochs is False
    assert planned(load_recipe("digits"), 1437) == 40 * 22


@pytest.mark.parametrize(("images", "batch", "epochs"), [(10, 3, 3), (30, 4, 2), (7, 49, 7), (1, 1000, 0.5)])
def test_no_step_is_lost_to_rounding(images, batch, epochs):
    recipe = load_recipe("nf_resnet50", {"train.epochs": epochs, "train.batch_size": batch})
    assert planned(recipe, images) == max(1, int(images * epochs) // batch)
