"""What training costs is counted by theory, and counting it changes nothing."""

import pytest
import torch
from torch import nn

from normfree import UsageError
from normfree.models.config import ModelConfig
from normfree.recipes import load_recipe
from normfree.runs import start
from normfree.runs.cost import Cost, count_classifier, count_network, sam_part

CLASSES = [str(i) for i in range(10)]


def test_operations_of_a_small_network_by_hand():
    """A 3x3 stem of 4 channels at 8 px, one bottleneck of width 4, its projection, the classifier."""
    options = {"depths": [1], "widths": [16], "stem": "3x3", "ratio": 0.25}
    recipe = load_recipe("digits", {"model.options": options})
    params, macs = count_network(recipe, CLASSES)
    pixels = 8 * 8
    stem, branch, shortcut = pixels * 9 * 4, pixels * (4 * 4 + 9 * 4 * 4 + 4 * 16), pixels * 4 * 16
    assert macs == stem + branch + shortcut + 16 * 10
    assert params == sum(p.numel() for p in recipe.model.build(num_classes=10, in_chans=1).parameters())
    assert Cost(7, 64, params, macs).operations == 2 * 3 * 7 * 64 * macs


def test_sharpness_aware_minimization_sees_a_part_twice():
    plain, sam = load_recipe("digits"), load_recipe("digits", {"optim.sam_rho": 0.05, "optim.sam_fraction": 0.25})
    assert (sam_part(plain), sam_part(sam)) == (0.0, 0.25)
    assert Cost(1, 4, 1, 100, sam_part(sam)).operations == 1.25 * Cost(1, 4, 1, 100).operations


def test_counting_draws_no_random_numbers():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    count_network(load_recipe("digits"), CLASSES)
    assert torch.equal(torch.get_rng_state(), before)


def test_detectors_are_not_counted():
    assert count_network(load_recipe("demo_detection"), ["a", "b"])[1] is None


def test_a_run_says_its_operations(tmp_path, capsys):
    start.train("digits", {"train.steps": 1}, out=tmp_path / "run", progress=False)
    macs = count_network(load_recipe("digits"), CLASSES)[1]
    assert f"1 step of 64 on cpu, {6 * 64 * macs:.3g} operations; into " in capsys.readouterr().err


def test_a_network_that_needs_real_numbers_is_trained_all_the_same(tmp_path, capsys, monkeypatch):
    build = ModelConfig.build

    def built(self, **options):
        model = build(self, **options)
        assert isinstance(model.head.fc, nn.Linear)
        model.head.fc.weight.detach().sum().item()  # not possible on the meta device
        return model

    monkeypatch.setattr(ModelConfig, "build", built)
    with pytest.raises(RuntimeError):
        count_network(load_recipe("digits"), CLASSES)
    start.train("digits", {"train.steps": 1}, out=tmp_path / "run", progress=False)
    assert "1 step of 64 on cpu; into " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("nfnet_f0", {"depths": [1, 3, 2, 1], "widths": [32, 48, 64, 64], "group_width": 8}, None),
        ("nf_resnet50", {"depths": [1, 4, 2], "widths": [16, 32, 48]}, 50),
        ("nf_regnet_b0", {"depths": [3, 1, 2, 2], "widths": [16, 24, 32, 48]}, 64),
        ("bn_resnet50", {"depths": [2, 1, 3, 1], "widths": [16, 32, 48, 64], "stem": "3x3"}, 64),
        ("nf_cifarnet", {"depths": [3, 1, 2], "widths": [8, 16, 16]}, 64),
        ("nf_efficientnet_b0", {"widths": [8, 16, 24, 32, 40, 48, 56], "depths": [1, 2, 3, 1, 2, 4, 1]}, None),
    ],
)
def test_a_classifier_is_counted_from_two_blocks_of_each_stage(name, options, size):
    fields = {"model.name": name, "model.options": options, "data.image_size": size, "data.channels": 3}
    recipe = load_recipe("digits", fields | {"data.mean": [0.5] * 3, "data.std": [1.0] * 3})
    assert count_classifier(recipe, CLASSES) == count_network(recipe, CLASSES)
    recipe.model.drop_rate, recipe.model.stochdepth_rate = 0.5, 0.25
    assert count_classifier(recipe, CLASSES) == count_network(recipe, CLASSES)


@pytest.mark.parametrize(
    "fields",
    [
        {"model.name": "nfnet_f00"},
        {"model.options": {"depths": [1, 2]}},
        {"model.options": {"drop_rate": 0.5}},
        {"model.options": {"num_classes": 4}},
        {"model.options": {"test_size": 64}},
        {"model.options": {"depths": [1, 0, 1]}},
    ],
)
def test_what_cannot_be_built_is_not_counted_either(fields):
    recipe = load_recipe("digits", fields)
    assert count_classifier(recipe, CLASSES) is None
    with pytest.raises(UsageError):
        count_network(recipe, CLASSES)


def test_other_networks_are_not_counted_from_parts():
    assert count_classifier(load_recipe("demo_segmentation"), CLASSES) is None
