"""micro_batch auto: the largest pieces that fit; the update is that of the whole batch; nothing else changes."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_runs import network, trainer

from normfree import UsageError
from normfree.training import Replicas, find_checkpoint, memory
from normfree.training.checkpoints import read_state
from normfree.training.memory import Allocated, largest_micro_batch, no_memory

CPU = torch.device("cpu")


def takes(per_image: int):
    """A pass that takes so many bytes per image at its most, and 1 MB beside."""

    def run(size):
        fixed = torch.empty(10**6, dtype=torch.uint8)
        for _ in range(3):  # freed in between
            images = torch.zeros(size * per_image // 2, dtype=torch.uint8)
            both = (images, images + 1, fixed)
            del images, both

    return run


@pytest.mark.parametrize(
    ("free", "count", "expected"),
    [
        (10**10, 64, 64),  # all at once
        (60_000_000, 64, 32),  # two equal pieces
        (20_000_000, 65, 13),  # 16 would fit, 5 times 13 is as few pieces
        (1, 64, 1),
    ],
)
def test_pieces_fit_and_are_equal(monkeypatch, free, count, expected):
    monkeypatch.setattr(memory, "_free", lambda device: free)
    size = largest_micro_batch(count, takes(10**6), CPU, Replicas())
    assert size == expected
    assert size == 1 or 10**6 * (size + 1) <= free * memory._MARGIN


def test_views_of_what_was_there_before_are_not_counted():
    before = torch.zeros(10, 100)
    with Allocated() as allocated:
        views = before.t(), before.select(0, 3), before.view(-1)
        assert allocated.now == 0
        views[0].contiguous()
        assert allocated.most == 4000


def test_living_tensors_are_counted_once_and_while_they_live():
    with Allocated() as allocated:
        x = torch.zeros(1000)
        view = x.view(10, 100)
        y = view + 1
        assert allocated.now == 8000
        x.add_(1)
        del y
        assert allocated.now == 4000
        z = torch.zeros(10)
        assert (allocated.now, allocated.most) == (4040, 8000)
    assert z.sum() == 0


def test_reserved_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 10**9)
    assert largest_micro_batch(64, takes(10**7), CPU, Replicas(), reserved=7 * 10**8) < 64


def test_an_empty_share_measures_nothing():
    def run(size):
        raise AssertionError("there are no images")

    assert largest_micro_batch(0, run, CPU, Replicas()) == 1
    assert largest_micro_batch(1, run, CPU, Replicas()) == 1


def test_free_memory_is_a_number_of_bytes(monkeypatch):
    free = memory._free(CPU)
    assert 2**20 < free < 2**50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory._free(CPU) < free / 2


def weights(run):
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_auto_trains_as_the_number_it_finds(tmp_path, monkeypatch, capsys):
    """The measurement leaves random state, gradients and momentum as they were."""
    monkeypatch.setattr(memory, "_free", lambda device: 300_000)
    automatic = trainer(tmp_path / "auto", train=dict(micro_batch="auto"))
    automatic.fit()
    found = automatic.step.micro_batch
    assert 1 <= found < 16
    assert f"micro-batches of {found} images fit into memory" in capsys.readouterr().err
    by_number = trainer(tmp_path / "number", train=dict(micro_batch=found))
    by_number.fit()
    for name, value in weights(automatic).items():
        assert torch.equal(value, weights(by_number)[name]), name


def test_a_resumed_run_keeps_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free", lambda device: 300_000)
    first = trainer(tmp_path, train=dict(micro_batch="auto", steps=2))
    first.fit()
    checkpoint = find_checkpoint(tmp_path / "checkpoints")[0]
    assert read_state(checkpoint)["micro_batch"] == first.step.micro_batch
    monkeypatch.setattr(memory, "_free", lambda device: 10**12)
    again = trainer(tmp_path / "again", train=dict(micro_batch="auto", steps=2))
    again.resume(checkpoint)
    assert again.step.micro_batch == first.step.micro_batch


def test_sam_needs_a_number(tmp_path):
    with pytest.raises(UsageError, match=r"train\.micro_batch \(='auto'\) must be a number"):
        trainer(tmp_path, model=network(), train=dict(micro_batch="auto"), optim=dict(sam_rho=0.05))


def test_freed_memory_is_kept():
    """In a process of its own: what is freed and taken again costs no page faults, and 16 MB each are 4,096 of them.

    Left to itself, glibc keeps it or not by how pieces happen to lie; the variable makes it give back each time.
    """
    program = """
import resource, sys, torch
from normfree.training.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use(): [torch.zeros(4 << 20) for _ in range(8)]
use(), use(), use()
before = faults(); use()
print(kept, faults() - before)
"""
    found, gives_back = {}, os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    for word in ("keep", "leave"):
        command = [sys.executable, "-c", program, word]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=gives_back).stdout
        kept, faults = out.split()
        found[word] = int(faults)
        if word == "keep" and kept == "False":
            pytest.skip("the C library is not glibc")
    assert found["keep"] < 100 < 30_000 < found["leave"]


def test_the_end_of_memory_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # more than any machine has
    assert no_memory(caught.value)
    assert no_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not no_memory(RuntimeError("shapes do not fit"))
    assert not no_memory(ValueError("not enough memory of it"))
