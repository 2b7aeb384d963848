"""Sharpness-Aware Minimization: the textbook's two passes, the part of the batch, weights that come back."""

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import network
from torch import nn

from normfree import UsageError
from normfree.data import Batch
from normfree.optim import SAM, OptimConfig
from normfree.training import TrainStep


def batch(size=10, dtype=torch.float64):
    return Batch(torch.randn(size, 1, 8, 8, dtype=dtype), torch.randint(10, (size,)), torch.arange(size))


def loss(model, images, labels):
    return F.cross_entropy(model(images), labels)


class CrossEntropy:
    def loss(self, output, batch):
        return F.cross_entropy(output, batch.labels)

    def correct(self, output, batch):
        return (output.argmax(1) == batch.labels).sum()


def textbook(model, ascent, descent, rho):
    """Gradients of Foret et al., algorithm 1, written down plainly."""
    model.zero_grad()
    loss(model, ascent.images, ascent.labels).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
    steps = [rho * p.grad / norm for p in model.parameters()]
    with torch.no_grad():
        for p, step in zip(model.parameters(), steps, strict=True):
            p += step
    model.zero_grad()
    loss(model, descent.images, descent.labels).backward()
    with torch.no_grad():
        for p, step in zip(model.parameters(), steps, strict=True):
            p -= step
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("fraction", [1.0, 0.2])
def test_the_textbooks_gradients(fraction):
    torch.manual_seed(0)
    model, data = network().double(), batch()
    sam = SAM(model.parameters(), rho=0.05, fraction=fraction)
    ascent = next(data.pieces(sam.part(10).stop))
    assert len(ascent) == 10 * fraction
    expected = textbook(model, ascent, data, 0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with sam.moved(loss(model, ascent.images, ascent.labels)) as norm:
        moved = torch.sqrt(sum(((p - before[n]) ** 2).sum() for n, p in model.named_parameters()))
        assert moved.item() == pytest.approx(0.05, rel=1e-9)
        assert all(p.grad is None for p in model.parameters())
        loss(model, data.images, data.labels).backward()
    assert norm > 0
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])  # the weights are what they were, to the bit
        assert (p.grad - expected[name]).norm() <= 1e-10 * expected[name].norm()


def test_weights_come_back_when_the_descent_fails():
    torch.manual_seed(0)
    model, data = network(), batch(dtype=torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt), SAM(model.parameters()).moved(loss(model, data.images, data.labels)):
        raise KeyboardInterrupt
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("micro_batch", [None, 5, 3])
def test_micro_batches_play_replicas(micro_batch):
    """Each moves by the gradient of its own first fifth; the descent gradients are averaged."""
    torch.manual_seed(0)
    model, data = network().double(), batch()
    expected = {}
    for piece in data.pieces(micro_batch or 10):
        grads = textbook(model, next(piece.pieces(max(1, round(0.2 * len(piece))))), piece, 0.05)
        for name, grad in grads.items():
            expected[name] = expected.get(name, 0) + grad * len(piece) / 10
    model.zero_grad()
    optimizer = OptimConfig(clipping=None, momentum=0.9, weight_decay=0.0).build(model.train())
    step = TrainStep(model, CrossEntropy(), optimizer, sam=SAM(model.parameters()), micro_batch=micro_batch)
    step(data, 0.0)
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).norm() <= 1e-10 * expected[name].norm()


def test_an_ascent_on_the_next_micro_batch():
    """Four, four and two images: each piece moves by the gradient of the one behind it, the last one by the first's."""
    torch.manual_seed(0)
    model, data = network().double(), batch()
    pieces, expected = list(data.pieces(4)), {}
    for piece, other in zip(pieces, [*pieces[1:], pieces[0]], strict=True):
        grads = textbook(model, next(other.pieces(max(1, round(0.2 * len(other))))), piece, 0.05)
        for name, grad in grads.items():
            expected[name] = expected.get(name, 0) + grad * len(piece) / 10
    model.zero_grad()
    optim = OptimConfig(clipping=None, momentum=0.9, weight_decay=0.0, sam_rho=0.05, sam_ascent="next")
    optimizer = optim.build(model.train())
    step = TrainStep(model, CrossEntropy(), optimizer, sam=optim.build_sam(model), micro_batch=4)
    step(data, 0.0)
    for name, p in model.named_parameters():
        assert (p.grad - expected[name]).norm() <= 1e-10 * expected[name].norm()
    for micro_batch in (None, 10):
        with pytest.raises(UsageError, match=r"optim.sam_ascent \(='next'\) needs train.micro_batch"):
            TrainStep(model, CrossEntropy(), optim.build(model), sam=optim.build_sam(model), micro_batch=micro_batch)(
                data, 0.0
            )


def test_a_flat_loss_moves_nothing():
    p = torch.nn.Parameter(torch.ones(3))
    with SAM([p]).moved((p * 0).sum()) as norm:
        assert torch.equal(p, torch.ones(3))
    assert norm == 0


def test_part_of_the_batch():
    sam = SAM([torch.nn.Parameter(torch.ones(1))], fraction=0.2)
    assert [sam.part(n).stop for n in (1, 2, 5, 10, 32, 4096)] == [1, 1, 1, 2, 6, 819]


@pytest.mark.parametrize(
    ("options", "named"), [(dict(rho=0), "rho"), (dict(fraction=0), "fraction"), (dict(fraction=1.5), "fraction")]
)
def test_refusals(options, named):
    with pytest.raises(UsageError, match=named):
        SAM([], **options)


@pytest.mark.parametrize("what", ["network", "optimizer", "groups"])
def test_what_is_not_parameters_is_refused(what):
    model = nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"SAM takes parameters, SAM\(model.parameters\(\)\), not a network"):
        SAM(dict(network=model, optimizer=sgd, groups=sgd.param_groups)[what])


def test_norms_of_half_types_are_float32():
    """Norm 1000 * sqrt(10000) = 1e5, beyond float16: a move of 0 would be plain training without a word."""
    p = nn.Parameter(torch.zeros(10000, dtype=torch.float16))
    with SAM([p], rho=1.0).moved((p * 1000).sum(dtype=torch.float32)) as norm:
        assert norm.item() == pytest.approx(1e5, rel=1e-3)  # a sum of 10000 in float32
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.01), rtol=2e-3, atol=0)  # float16
    assert not p.any()
