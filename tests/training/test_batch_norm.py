"""Networks with BatchNorm: what it sees is said, and never chosen by the memory that is free."""

import pytest
import torch
from tiny_runs import network, trainer
from torch import nn

import normfree
from normfree import UsageError
from normfree.nn import batch_norms
from normfree.optim import OptimConfig
from normfree.training import TrainConfig
from normfree.training.batch_norm import seen_by_batch_norm

WITH, WITHOUT = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), nn.Conv2d(1, 2, 1)


def said(model=WITH, processes=1, sam_rho=None, **train) -> str | None:
    return seen_by_batch_norm(model, TrainConfig(batch_size=64, **train), OptimConfig(sam_rho=sam_rho), processes)


def test_whole_batches_and_other_networks_are_not_worth_a_word():
    assert said() is None
    assert said(micro_batch=64) is None
    assert said(WITHOUT, micro_batch=8, processes=4, sam_rho=0.05) is None
    assert batch_norms(network()) == []


@pytest.mark.parametrize(
    ("options", "images"), [(dict(micro_batch=8), 8), (dict(processes=3), 22), (dict(processes=4, micro_batch=50), 16)]
)
def test_what_it_sees_is_said(options, images):
    assert said(**options) == f"BatchNorm normalizes over {images} images at a time, not over the batch of 64"


@pytest.mark.parametrize("options", [dict(sam_rho=0.05), dict(activation_checkpointing="all")])
def test_statistics_that_are_updated_twice_are_said(options):
    assert "running statistics are updated twice in each step" in said(**options)


def test_memory_does_not_decide():
    with pytest.raises(
        UsageError, match=r"micro_batch \(='auto'\) must be a number for a network with BatchNorm \(1\)"
    ):
        said(micro_batch="auto")
    assert said(WITHOUT, micro_batch="auto") is None


def test_a_run_says_it(tmp_path, capsys):
    torch.manual_seed(0)
    model = normfree.create_model("bn_resnet50", num_classes=10, in_chans=1, depths=(1, 1), widths=(8, 16), stem="3x3")
    trainer(tmp_path / "run", model=model, train=dict(micro_batch=4, steps=1), optim=dict(clipping=None)).fit()
    assert "BatchNorm normalizes over 4 images at a time, not over the batch of 16" in capsys.readouterr().err
