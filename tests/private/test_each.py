"""Gradients of single examples by torch.func, and clipping each by itself."""

import pytest
import torch
import torch.nn.functional as F
from example_gradients import examples, network, one_by_one
from torch import nn

import normfree
from normfree import UsageError
from normfree.functional import unitwise_norm
from normfree.optim import agc_, param_groups
from normfree.private import agc_each_, per_example_gradients

COUNT = 5


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_cifarnet", "fixup_resnet50", "gn_resnet50"])
def test_they_are_those_of_one_example_after_the_other(name):
    model = network(name)
    x, labels = examples(COUNT)
    expected = one_by_one(model, x, labels)
    chunks = list(per_example_gradients(model, F.cross_entropy, x, labels, chunk=2))
    assert [len(next(iter(chunk.values()))) for chunk in chunks] == [2, 2, 1]
    for index, gradients in enumerate(expected):
        for key, gradient in gradients.items():
            found = chunks[index // 2][key][index % 2]
            assert (found - gradient).norm() <= 1e-9 * max(gradient.norm(), 1e-3), key  # other sums; may cancel


def test_a_chunk_has_as_many_as_memory_allows():
    model = nn.Linear(3, 2, bias=False)  # 24 bytes
    x, y = torch.randn(7, 3), torch.randn(7, 2)

    def sizes(**options):
        return [len(chunk["weight"]) for chunk in per_example_gradients(model, F.mse_loss, x, y, **options)]

    assert sizes(max_bytes=24 * 3 + 23) == [3, 3, 1]
    assert sizes(max_bytes=1) == [1] * 7
    assert sizes() == [7]


def test_frozen_parameters_and_buffers_take_part():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    (gradients,) = per_example_gradients(model, F.mse_loss, torch.randn(2, 3), torch.randn(2, 2))
    assert gradients.keys() == {"1.weight", "1.bias"}


def clipped_mean(model, x, labels, **options):
    """Each example's gradient by agc_, one after the other."""
    groups = param_groups(model, **options)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    clipped = units = 0
    for gradients in one_by_one(model, x, labels):
        for name, p in model.named_parameters():
            p.grad = gradients[name].clone()
        statistics = agc_(groups)
        clipped, units = clipped + statistics.total_fraction * sum(statistics.units.values()), units
        units += sum(statistics.units.values())
        for name, p in model.named_parameters():
            sums[name] += p.grad / len(x)
    model.zero_grad()
    return sums, clipped / units


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize(("kind", "clipping"), [("unit", 0.02), ("layer", 0.02), ("norm", None)])
def test_each_example_is_clipped_by_itself(kind, clipping, chunk):
    model = network("nfnet_f0")
    x, labels = examples(COUNT)
    options = dict(unclipped=["stem.*"])
    if clipping is None:  # shorter than the gradients of two examples
        clipping = sum(lengths(model, x, labels, **options)[-3:-1]) / 2
    expected, fraction = clipped_mean(model, x, labels, clipping=clipping, clipping_kind=kind, **options)
    assert 0.05 < fraction < 0.95
    found = agc_each_(model, F.cross_entropy, x, labels, clipping, kind=kind, chunk=chunk, **options)
    assert found == pytest.approx(fraction, abs=1e-12)
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).norm() <= 1e-9 * max(expected[name].norm(), 1e-6), name


def lengths(model, x, labels, **options):
    """The norms of the examples' gradients over all parameters that are clipped, from the shortest on."""
    clipped = {
        id(p) for group in param_groups(model, clipping=1.0, **options) if group["clipping"] for p in group["params"]
    }
    names = [name for name, p in model.named_parameters() if id(p) in clipped]
    return sorted(sum(g[name].square().sum().item() for name in names) ** 0.5 for g in one_by_one(model, x, labels))


@pytest.mark.parametrize("kind", ["unit", "layer", "norm"])
def test_a_parameter_without_dimensions(kind):
    """Its gradient for each example is -2 x: 1, 2 and 4 long, at most 1 after clipping."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(-1.0))

        def forward(self, x):
            return self.scale * x

    model, x = Scaled(), torch.tensor([[0.5], [1.0], [2.0]])
    clipped = agc_each_(
        model, lambda y, t: (y - t).sum() * -2, x, torch.zeros(3, 1), 1.0, kind=kind, roles={"scale": "gain"}
    )
    assert clipped == pytest.approx(2 / 3)
    assert model.scale.grad.item() == pytest.approx(-1.0)


def test_no_example_moves_a_unit_by_more_than_its_bound():
    """A gradient a million times as large; the classifier is not clipped, by its role."""
    model = network("nf_resnet50")
    x, labels = examples(COUNT)

    def loss(output, label):
        return F.cross_entropy(output, label) * (1 + 1e6 * (label == labels[0]).to(output.dtype)).squeeze()

    agc_each_(model, loss, x, labels, 0.01)
    for name, p in model.named_parameters():
        if name != "head.fc.weight":
            assert (unitwise_norm(p.grad) <= 0.01 * unitwise_norm(p).clamp(min=1e-3) * (1 + 1e-9)).all(), name


def test_gradients_are_added_to_those_that_are_there():
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    roles = {"weight": "weight"}
    agc_each_(model, F.mse_loss, x, y, 0.1, roles=roles)
    once = model.weight.grad.clone()
    agc_each_(model, F.mse_loss, x, y, 0.1, roles=roles)
    assert torch.allclose(model.weight.grad, 2 * once)


def test_what_is_refused():
    model = nn.Linear(3, 2)
    with pytest.raises(UsageError, match=r"^4 inputs have 3 targets; each needs one"):
        next(per_example_gradients(model, F.mse_loss, torch.randn(4, 3), torch.randn(3, 2)))
    with pytest.raises(UsageError, match=r"^chunk \(=0\) must be an integer of at least 1"):
        next(per_example_gradients(model, F.mse_loss, torch.randn(4, 3), torch.randn(4, 2), chunk=0))
    batch_norm = normfree.create_model("bn_resnet50", num_classes=10)
    with pytest.raises(UsageError, match=r"^stages\.0\.0\.bn0 \(BatchNorm2d\) mixes examples"):
        next(per_example_gradients(batch_norm, F.cross_entropy, *examples(2, torch.float32)))
    with pytest.raises(UsageError, match=r"^there are no examples"):
        agc_each_(model, F.mse_loss, torch.randn(0, 3), torch.randn(0, 2), 0.1, roles={"weight": "weight"})
    with pytest.raises(UsageError, match=r"^clipping_kind \(='row'\) must be one of unit, layer, norm"):
        agc_each_(model, F.mse_loss, torch.randn(1, 3), torch.randn(1, 2), 0.1, kind="row", roles={"weight": "weight"})
