"""The gradient noise scale: unbiased, and what it is where it is known."""

import math

import pytest
import torch
import torch.nn.functional as F
from example_gradients import examples, network, one_by_one
from torch import nn

from normfree import UsageError
from normfree.private import NoiseScale, Spread, noise_scale


def in_batches(x, labels, size):
    for part, of_part in zip(x.split(size), labels.split(size), strict=True):
        yield (part,), lambda output, of_part=of_part: F.cross_entropy(output, of_part)


@pytest.mark.parametrize("size", [8, 3])
def test_it_is_the_sample_covariance(size):
    """tr(Sigma) is the unbiased sample variance, summed over parameters; the examples count, not the batches."""
    model = network("nf_resnet50")
    x, labels = examples(8)
    each = one_by_one(model, x, labels)
    model.head.fc.bias.grad = torch.ones(10, dtype=torch.float64)
    found = noise_scale(model, in_batches(x, labels, size))
    assert found.examples == 8
    assert torch.equal(model.head.fc.bias.grad, torch.ones(10, dtype=torch.float64))  # as it was before
    assert model.head.fc.weight.grad is None
    for name, spread in found.parameters.items():
        rows = torch.stack([one[name].flatten() for one in each])
        trace = rows.var(0).sum().item()
        assert spread.trace == pytest.approx(trace, rel=1e-9), name
        assert spread.square == pytest.approx(rows.mean(0).square().sum().item() - trace / 8, rel=1e-9), name
    assert found.whole.trace == pytest.approx(sum(one.trace for one in found.parameters.values()))
    assert found.scale == found.whole.trace / found.whole.square


def test_it_is_unbiased_and_what_it_must_be_where_it_is_known():
    """Gradients -y with mean -2 (in each of 3 dimensions) and variance 1: tr = 3, |G|^2 = 12."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Linear(1, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    found = []
    for _ in range(400):
        y = 2 + torch.randn(5, 3, dtype=torch.float64, generator=generator)
        loss = lambda output, y=y: (output - y).square().sum(1).mean() / 2  # noqa: E731
        found.append(noise_scale(model, [((torch.ones(5, 1, dtype=torch.float64),), loss)]).whole)
    traces = torch.tensor([one.trace for one in found])
    squares = torch.tensor([one.square for one in found])
    for values, expected in ((traces, 3.0), (squares, 12.0)):
        assert (values.mean() - expected).abs() < 4 * values.std() / math.sqrt(len(values))  # four standard errors


def test_no_gradient_in_the_noise():
    assert Spread(trace=1.0, square=-0.1).scale == math.inf
    assert NoiseScale(100, Spread(1.0, 0.1), {}).certain
    assert not NoiseScale(100, Spread(200.0, 1.0), {}).certain


def test_one_example_has_no_spread():
    with pytest.raises(UsageError, match=r"^a noise scale needs at least two examples, and there is one"):
        noise_scale(nn.Linear(3, 1), [((torch.randn(1, 3),), lambda output: output.mean())])
    with pytest.raises(UsageError, match=r"and there are none"):
        noise_scale(nn.Linear(3, 1), [])
