"""What training costs is counted by theory, and counting it changes nothing."""

import pytest
import torch
from torch import nn

from normfree.models.config import ModelConfig
from normfree.recipes import load_recipe
from normfree.runs import start
from normfree.runs.cost import Cost, count_network, sam_part

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
