"""What record is given by mistake, or by several threads at once."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import normfree
from normfree import UsageError
from normfree.spp import record


def test_one_recording_at_a_time():
    """Threads that record one model wait for each other: numbers, mode and hooks are as if there were one."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().train()
    expected = record(model, (2, 3, 32, 32)).to_dict()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: record(model, (2, 3, 32, 32)).to_dict(), range(8)))
    assert results == [expected] * 8
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("batch", [(3, 32, 32), torch.zeros(3, 32, 32), (3,)], ids=["shape", "image", "vector"])
@pytest.mark.parametrize(
    "make", [torchvision.models.resnet18, lambda: normfree.create_model("nf_resnet50", depths=(1, 1), widths=(16, 32))]
)
def test_a_batch_dimension_is_missing(make, batch):
    shape = tuple(getattr(batch, "shape", batch))
    model = make()
    said = re.escape(f"(of shape {shape}) has no batch dimension; give {(4, *shape)}, for example")
    with pytest.raises(UsageError, match=said):
        record(model, batch)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_sequences_have_a_batch_dimension():
    """Three dimensions are right where convolutions have one."""
    model = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), Added(nn.Conv1d(8, 8, 3, padding=1)))
    assert len(record(model, (4, 3, 16)).rows) == 1


class Added(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


@pytest.mark.parametrize(
    ("model", "batch", "said"),
    [
        (None, (1, 3, 8, 8), "not None"),
        (nn.Conv2d(3, 3, 1), {"x": torch.zeros(500)}, "does not fit Conv2d.forward"),
        (nn.Conv2d(3, 3, 1), (True, 3, 8, 8), "must be a tensor or a shape"),
        (nn.Conv2d(3, 3, 1), torch.zeros(0, 3, 8, 8), "has no values"),
        (nn.Conv2d(3, 3, 1, device="meta"), (1, 3, 8, 8), "meta device"),
        (nn.BatchNorm2d(3), (1, 3, 1, 1), "batch_stats=False"),
    ],
)
def test_what_cannot_be_recorded_is_said_in_one_line(model, batch, said):
    with pytest.raises(UsageError, match=said) as raised:
        record(model, batch)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_sizes_may_be_of_any_integer_type():
    model = nn.Sequential(torchvision.models.resnet18())
    assert record(model, np.array([2, 3, 32, 32])).avg_var == record(model, (2, 3, 32, 32)).avg_var
