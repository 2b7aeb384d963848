"""The check of single gradients before they are relied on: it passes what is right, and finds what mixes examples."""

import pytest
import torch
import torch.nn.functional as F
from example_gradients import FAMILIES, examples, network
from torch import nn

from normfree import UsageError
from normfree.private import verify


def check(model, loss=F.cross_entropy, views=1, dtype=torch.float32):
    x, labels = examples(2 * views, dtype)
    rows = [slice(0, 2 * views), slice(0, views), slice(views, 2 * views)]
    pairs = [([x[r]], lambda output, r=r: loss(output, labels[r])) for r in rows]
    state = torch.get_rng_state()
    verify(model, pairs[0], pairs[1:], views=views)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes(name):
    model = network(name, torch.float32)
    model.head.dropout.p = 0.5
    before = [module.training for module in model.modules()]
    check(model, views=2 if name == "nfnet_f0" else 1)
    assert [module.training for module in model.modules()] == before
    assert all(p.grad is None for p in model.parameters())


class Mixing(nn.Module):
    """Subtracts the mean over the batch, without a parameter that could give it away."""

    def forward(self, x):
        return x - x.mean(0)


class Deceiving(nn.Module):
    """A weight that is used in a way the tape does not see: through a detached copy of the batch's statistics."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(10))

    def forward(self, x):
        return x * self.factor * x.detach().std()


@pytest.mark.parametrize("module", [Mixing(), Deceiving()])
def test_what_mixes_examples_is_found(module):
    model = nn.Sequential(network("nf_resnet50", torch.float32), module)
    with pytest.raises(UsageError, match=r"^the gradient of a single example has norm .* mixes examples"):
        check(model)


def test_a_loss_that_is_a_sum_is_found():
    with pytest.raises(UsageError, match="the network or the loss mixes examples"):
        check(network("nf_resnet50", torch.float32), lambda out, labels: F.cross_entropy(out, labels, reduction="sum"))
