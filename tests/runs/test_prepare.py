"""What is decided when a run is made: the size of a batch, and the learning rate for it."""

import pytest

from normfree.recipes import load_recipe
from normfree.runs.prepare import fit_batch


def test_a_batch_is_no_larger_than_the_images_and_the_rate_follows():
    recipe = load_recipe("nfnet_f0")
    (said,) = fit_batch(recipe, 302)
    assert recipe.train.batch_size == 302
    assert recipe.optim.peak_lr(302) == pytest.approx(0.1 * 302 / 256)
    assert said == (
        "train.batch_size (=4096) is more than the 302 training images: batches of 302, and a peak learning rate of "
        "0.118 instead of 1.6"
    )


def test_a_rate_that_does_not_scale_by_itself_follows_too():
    recipe = load_recipe("nf_resnet50")
    assert "is more than the 1 training image: batches of 1" in fit_batch(recipe, 1)[0]
    assert recipe.optim.peak_lr(1) == pytest.approx(0.4 / 1024)


def test_a_batch_that_fits_stays():
    recipe = load_recipe("demo_segmentation")
    batch, rate = recipe.train.batch_size, recipe.optim.lr
    assert fit_batch(recipe, batch) == []
    assert (recipe.train.batch_size, recipe.optim.peak_lr(batch)) == (batch, rate) == (8, 0.1)


@pytest.mark.parametrize("name", ["demo_segmentation", "demo_depth", "demo_detection", "cifar10_fast", "fashion_mnist"])
def test_recipes_for_own_images_scale_their_rate_with_the_batch(name):
    recipe = load_recipe(name)
    batch = recipe.train.batch_size
    assert recipe.optim.peak_lr(batch) == recipe.optim.lr
    assert recipe.optim.peak_lr(2 * batch) == 2 * recipe.optim.lr
