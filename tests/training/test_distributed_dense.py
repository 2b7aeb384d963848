"""Segmentation and depth in several processes: the updates and the scores of one, each image counted once."""

import pytest
import selection
import torch
import torch.distributed.fsdp
from torch import nn
from worlds import Plan, run, saved

from normfree.training import Replicas, distributed

TASKS = ("segmentation", "depth")
WORLDS = (2, 3)
FULL = ("fsdp", 3)  # takes seconds, on two cores
STEPS = dict(steps=4, batch_size=6, eval_every=1)
# the threshold of the depth's loss is that of a process's images, so one process takes these together
ALONE = {"segmentation": {2: {}, 3: {}}, "depth": {2: dict(micro_batch=3), 3: dict(micro_batch=2)}}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """(plans, what the processes tell) by (task, parallel, world); of one process by (task, "alone", world)."""
    scratch = tmp_path_factory.mktemp("worlds")
    plans, told = {}, {}

    def plan(task: str, how: str, world: int, **more) -> None:
        folder = scratch / f"{task} {how} {world}"
        plans[task, how, world] = Plan(str(folder), dict(STEPS, **more), images=(24, 7), task=task)

    for task in TASKS:
        for world in WORLDS:
            plan(task, "alone", world, **ALONE[task][world])
            for parallel in ("ddp", "fsdp"):
                if selection.whole() or (parallel, world) != FULL:
                    plan(task, parallel, world, parallel=parallel)
    for world in (1, *WORLDS):
        some = {key: p for key, p in plans.items() if (key[1] == "alone") == (world == 1) and world in (1, key[2])}
        told |= run(some, world, scratch)
    return plans, told


def close(a, b, limit):
    """Per tensor, by norm: single entries may cancel."""
    assert a.keys() == b.keys()
    for key, tensor in a.items():
        assert (tensor - b[key]).norm() <= limit * max(tensor.norm(), 1e-3), key


@pytest.mark.parametrize(
    ("parallel", "world"), [("ddp", 2), ("ddp", 3), ("fsdp", 2), pytest.param(*FULL, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("task", TASKS)
def test_worlds_agree(worlds, task, parallel, world):
    plans, told = worlds
    (alone,), results = told[task, "alone", world], told[task, parallel, world]
    expected = saved(plans[task, "alone", world])
    together = [[i for part in step for i in part] for step in zip(*(r["seen"] for r in results), strict=True)]
    assert together == alone["seen"]
    for result in results:
        assert result["error"] is None
        assert result["clipped"] == alone["clipped"]
        close(result["parameters"], alone["parameters"], 1e-12)  # float64, summed in another order
    files, state = saved(plans[task, parallel, world])
    for name, tensors in files.items():
        close(tensors, expected[0][name], 1e-12)
    measured, single = results[0]["summary"].last, alone["summary"].last
    assert measured["images"] == single["images"] == 7  # 7 = 3 + 4 = 2 + 2 + 3
    differ = ("loss", "ema_loss") if task == "depth" else ()  # its threshold is that of the batch
    for name, value in single.items():
        if name not in differ:
            assert measured[name] == pytest.approx(value, rel=1e-9), name
    assert state["metrics"].keys() == expected[1]["metrics"].keys()


def test_shares_are_of_blocks(monkeypatch):
    """Of a network within a network, too: the rest of it is one piece."""
    pieces = []
    monkeypatch.setattr(distributed, "init_device_mesh", lambda kind, shape: None)
    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", lambda module, **options: pieces.append(module))
    inner = nn.Module()
    inner.stages = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1)))
    outer = nn.Module()
    outer.backbone, outer.head = inner, nn.Linear(1, 1)
    Replicas(0, 2).shard(outer, torch.device("cpu"))
    assert pieces == [*inner.stages[0], *inner.stages[1], outer]
