"""Several processes compute what one does: the same images in the same order, the same clipping, the same weights."""

import itertools

import pytest
import torch
from worlds import Plan, run, saved

from normfree.data import Share

# float64: sums in another order; float32: ten steps of its rounding
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


def close(a, b, limit):
    """Per tensor, by norm: single entries may cancel."""
    for name, tensors in a.items():
        assert tensors.keys() == b[name].keys()
        for key, tensor in tensors.items():
            assert (tensor - b[name][key]).norm() <= limit * max(tensor.norm(), 1e-3), (name, key)


CASES = {
    "plain": (torch.float64, {}, {}, {}),
    "float32": (torch.float32, {}, {}, {}),
    "accumulated": (torch.float64, dict(micro_batch=2), {}, {}),
    "small batch": (torch.float64, dict(batch_size=2, eval_every=1), {}, {}),  # a third process has no image
    "sharded": (torch.float64, dict(parallel="fsdp"), {}, {}),
    "sharded, accumulated": (torch.float64, dict(parallel="fsdp", micro_batch=2), {}, {}),
    "sharded, float32": (torch.float32, dict(parallel="fsdp"), {}, {}),
    "sharded, small batch": (torch.float64, dict(parallel="fsdp", batch_size=2, eval_every=1), {}, {}),
    "mixed": (torch.float64, {}, {}, dict(mixup=0.2, cutmix=1.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_worlds_agree(scratch, case):
    dtype, train, optim, data = CASES[case]
    plans = {w: Plan(str(scratch / f"{case}{w}"), train, optim, data, dtype) for w in (1, 2, 3)}
    results = {world: run(plan, world, scratch) for world, plan in plans.items()}
    alone, (files, state) = results[1][0], saved(plans[1])
    for world in (2, 3):
        together = [
            [i for part in step for i in part] for step in zip(*(r["seen"] for r in results[world]), strict=True)
        ]
        assert together == alone["seen"]  # each batch in the order of one process, nothing lost or doubled
        for result in results[world]:
            assert result["clipped"] == alone["clipped"]
            close({"p": result["parameters"]}, {"p": alone["parameters"]}, CLOSE[dtype])
            assert result["summary"].last["images"] == alone["summary"].last["images"] == 20
        others, other_state = saved(plans[world])
        close(others, files, CLOSE[dtype])
        assert (other_state["step"], other_state["epoch"], other_state["batch"]) == (10, state["epoch"], state["batch"])
        assert other_state["metrics"]["ema_top1"] == state["metrics"]["ema_top1"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_saved_at_two_resumed_at_one_and_at_three(scratch, parallel):
    whole = Plan(str(scratch / f"whole {parallel}"))
    run(whole, 1, scratch)
    for world in (1, 3):
        options = dict(steps=10, save_every=5, eval_every=100, parallel=parallel)
        first = Plan(str(scratch / f"{parallel} to {world}"), options)
        cut = Plan(first.folder, dict(first.train), poison=(1, 5))  # it dies after five steps
        assert "checkpoint of step 5 is kept" in run(cut, 2, scratch)[0]["error"]
        results = run(Plan(first.folder, first.train, resume=True), world, scratch)
        assert results[0]["summary"].steps == 10
        close(saved(first)[0], saved(whole)[0], 1e-12)


def test_a_number_that_is_not_finite_stops_all_processes_before_the_update(scratch):
    """In one process's images at step 4."""
    options = dict(save_every=3, keep_every=3, eval_every=100)
    clean = Plan(str(scratch / "clean"), options)
    run(clean, 1, scratch)
    expected = saved(clean, "step-00000003")[0]
    results = run(Plan(str(scratch / "nan"), options, poison=(1, 3)), 2, scratch)
    for result in results:
        assert "training stopped in step 4" in result["error"]
        assert "process 1 is that of the images" in result["error"]
        close({"p": result["parameters"]}, {"p": expected["weights"]}, 1e-12)
    files, state = saved(Plan(str(scratch / "nan")))
    assert state["step"] == 3
    close(files, expected, 1e-12)


def test_unreadable_images_are_everyones(scratch):
    plans = [Plan(str(scratch / f"broken{w}"), unreadable=(1, 2, 3, 4, 5)) for w in (1, 2)]
    (alone,), pair = run(plans[0], 1, scratch), run(plans[1], 2, scratch)
    assert sorted(pair[0]["summary"].unreadable) == sorted(alone["summary"].unreadable)
    assert len(alone["summary"].unreadable) == 5
    for result in pair:
        close({"p": result["parameters"]}, {"p": alone["parameters"]}, 1e-12)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares(world):
    for begin, end in itertools.product((0, 3), (3, 4, 12, 20)):
        parts = [
            list(range(begin, end))[slice(s.start - begin, s.stop - begin)]
            for s in (Share(r, world).of(begin, end) for r in range(world))
        ]
        assert [i for part in parts for i in part] == list(range(begin, end))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
