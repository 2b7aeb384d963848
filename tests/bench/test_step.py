"""What is timed is a whole training step, of ours and of others' networks."""

import pytest
import torch
import torchvision
from torch import nn

from normfree import RunFailed, UsageError, create_model
from normfree.bench import image_batch, step_memory, training_step
from normfree.bench.step import DECAY, LR, Measuring


def small():
    options = dict(widths=(16, 16, 16), depths=(1, 1, 1), skip_gain=0.5, stochdepth_rate=0.0, drop_rate=0.0)
    return create_model("nf_resnet26_small", num_classes=8, **options)


def test_a_step_is_nesterovs_of_the_cross_entropy():
    model = small()
    batch = image_batch(3, 16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    training_step(model, batch, clipping=None)()
    decayed = 0
    for name, p in model.named_parameters():
        plain = before[name] - 1.9 * LR * grads[name]
        with_decay = plain - 1.9 * LR * DECAY * before[name]
        close = [torch.allclose(p, x, rtol=1e-6, atol=1e-9) for x in (plain, with_decay)]
        assert any(close), name
        decayed += close[1] and not torch.equal(plain, with_decay)
    assert decayed


def test_clipping_is_that_of_the_networks_roles():
    """With a threshold of nearly nothing, only the classifier's weight moves as far as it would."""
    batch, moved = image_batch(3, 16), {}
    for clipping in (None, 1e-8):
        torch.manual_seed(1)
        model = small()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        training_step(model, batch, clipping=clipping)()
        moved[clipping] = {name: (p - before[name]).norm().item() for name, p in model.named_parameters()}
    same = {name for name, far in moved[None].items() if moved[1e-8][name] > 0.5 * far > 0}
    assert same == {"head.fc.weight"}


def test_networks_without_roles_train_too():
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    before = [p.detach().clone() for p in model.parameters()]
    training_step(model, image_batch(2, 32))()
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) > 0.9 * len(before)
    assert model.training


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_grows_by_images(channels_last):
    model = small().train()
    kept, most = zip(
        *(step_memory(model, image_batch(n, 32, channels_last=channels_last)) for n in (1, 3, 5)), strict=True
    )
    assert kept[2] - kept[1] == kept[1] - kept[0] > 32 * 32 * 3
    assert all(a >= b for a, b in zip(most, kept, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_images_and_labels_are_such_as_the_network_takes():
    batch = image_batch(5, 8, channels=2, classes=3)
    assert batch.images.shape == (5, 2, 8, 8)
    assert batch.labels.tolist() == [0, 1, 2, 0, 1]
    usual = image_batch(1002, 1)
    assert usual.images.shape == (1002, 3, 1, 1)
    assert usual.labels[998:].tolist() == [998, 999, 0, 1]  # the models here tell 1000 classes apart


def fails(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
    ],
)
def test_where_memory_ends(error):
    with pytest.raises(RunFailed, match=r"^memory is too small for x on batch 4 of 8 px; lower --batch or --size$"):
        Measuring("x", 4, 8)(fails)(error)


def test_a_failure_names_the_network():
    said = r"^x cannot train on batch 4 of 8 px: ValueError: of two lines$"
    measuring = Measuring("x", 4, 8)
    with pytest.raises(RunFailed, match=said), measuring:
        fails(ValueError("of\ntwo lines"))
    with pytest.raises(RunFailed, match=said):  # again, as a decorator
        measuring(fails)(ValueError("of\ntwo lines"))


@pytest.mark.parametrize("error", [UsageError("says enough"), KeyboardInterrupt("says enough")])
def test_what_is_no_failure_of_the_network_goes_on(error):
    with pytest.raises(type(error), match=r"^says enough$"):
        Measuring("x", 4, 8)(fails)(error)
