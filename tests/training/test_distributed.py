"""Several processes compute what one does: the same images in the same order, the same clipping, the same weights."""

import itertools

import pytest
import selection
import torch
from worlds import Plan, close, run, saved

from normfree.data import Share

# float64: sums in another order; float32: ten steps of its rounding
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Every plan below by one, two and three processes: (plans, what the processes tell) by (name, world)."""
    scratch = tmp_path_factory.mktemp("worlds")
    plans: dict[int, dict[str, Plan]] = {1: {}, 2: {}, 3: {}}

    def plan(name: str, world: int, *args, folder: str | None = None, **options) -> None:
        plans[world][name] = Plan(str(scratch / (folder or f"{name} {world}")), *args, **options)

    for name, (dtype, *sections) in CASES.items():
        for world in plans:
            if selection.whole() or (name, world) not in FULL:
                plan(name, world, *sections, dtype, network=NETWORKS.get(name, {}))
    kept = dict(save_every=3, keep_every=3, eval_every=100)
    plan("kept", 1, kept)
    plan("not a number", 2, kept, poison=(1, 3))
    for world in (1, 2):
        plan("unreadable", world, unreadable=(1, 2, 3, 4, 5))
    for parallel in ("ddp", "fsdp"):
        options = dict(save_every=5, eval_every=100, parallel=parallel)
        plan(f"uncut {parallel}", 1, options)
        for world in (1, 3):  # it dies in two processes after five steps, and goes on in so many
            plan(f"cut {parallel} {world}", 2, options, poison=(1, 5))
            plan(f"resumed {parallel}", world, options, resume=True, folder=f"cut {parallel} {world} 2")
    told = {}
    first = {name: plan for name, plan in plans[1].items() if not plan.resume}
    for world, some in ((1, first), (2, plans[2]), (3, plans[3]), (1, plans[1].keys() - first.keys())):
        some = some if isinstance(some, dict) else {name: plans[1][name] for name in some}
        told |= {(name, world): results for name, results in run(some, world, scratch).items()}
    return plans, told


CASES = {
    "plain": (torch.float64, {}, {}, {}),
    "float32": (torch.float32, {}, {}, {}),
    "accumulated": (torch.float64, dict(micro_batch=2), {}, {}),
    "measured": (torch.float64, dict(micro_batch="auto"), {}, {}),
    "sharded, measured": (torch.float64, dict(parallel="fsdp", micro_batch="auto"), {}, {}),
    "small batch": (torch.float64, dict(batch_size=2, eval_every=1), {}, {}),  # a third process has no image
    "sharded": (torch.float64, dict(parallel="fsdp"), {}, {}),
    "sharded, accumulated": (torch.float64, dict(parallel="fsdp", micro_batch=2), {}, {}),
    # 3, 3 and 4 images: 1, 1, 2 pieces
    "sharded, ragged": (torch.float64, dict(parallel="fsdp", micro_batch=3), {}, {}),
    "sharded, float32": (torch.float32, dict(parallel="fsdp"), {}, {}),
    "sharded, small batch": (torch.float64, dict(parallel="fsdp", batch_size=2, eval_every=1), {}, {}),
    "mixed": (torch.float64, {}, {}, dict(mixup=0.2, cutmix=1.0)),
    "sharded, lars by norm": (
        *(torch.float64, dict(parallel="fsdp")),
        dict(name="lars", lr=1.0, options=dict(trust_coefficient=0.02), clipping=1.0, clipping_kind="norm"),
        {},
    ),
    "muon": (torch.float64, {}, dict(name="muon", lr=0.05), {}),
    "sharded, muon": (torch.float64, dict(parallel="fsdp"), dict(name="muon", lr=0.05), {}),
    "sharded, rmsprop by layer": (
        *(torch.float64, dict(parallel="fsdp")),
        dict(name="rmsprop", lr=0.005, clipping_kind="layer", clipping_parts={"classifier": True}),
        {},
    ),
    "decoupled, accumulated": (torch.float64, dict(micro_batch=2), {}, {}),
    "sharded, soft": (torch.float64, dict(parallel="fsdp"), dict(weight_pull=0.3), {}),
}
NETWORKS = {
    "decoupled, accumulated": dict(weight_scheme="decoupled"),
    "sharded, soft": dict(weight_scheme="soft"),
}


# sharding by three processes takes seconds, on two cores
FULL = {(case, 3) for case in CASES if "sharded" in case} - {("sharded, ragged", 3), ("sharded, small batch", 3)}
FULL |= {("sharded, measured", 2), ("sharded, float32", 2), ("sharded, ragged", 2)}
BOTH = [
    pytest.param(case, world, marks=[pytest.mark.full] if (case, world) in FULL else [])
    for case in CASES
    for world in (2, 3)
]


@pytest.mark.parametrize(("case", "world"), BOTH)
def test_worlds_agree(worlds, case, world):
    plans, told = worlds
    limit = CLOSE[CASES[case][0]]
    (alone,), (files, state) = told[case, 1], saved(plans[1][case])
    results = told[case, world]
    together = [[i for part in step for i in part] for step in zip(*(r["seen"] for r in results), strict=True)]
    assert together == alone["seen"]  # each batch in the order of one process, nothing lost or doubled
    for result in results:
        assert result["clipped"] == alone["clipped"]
        close({"p": result["parameters"]}, {"p": alone["parameters"]}, limit)
        assert result["summary"].last["images"] == alone["summary"].last["images"] == 20
    others, other_state = saved(plans[world][case])
    close(others, files, limit)
    assert (other_state["step"], other_state["epoch"], other_state["batch"]) == (10, state["epoch"], state["batch"])
    assert other_state["metrics"]["ema_top1"] == state["metrics"]["ema_top1"]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("world", [1, 3])
def test_saved_at_two_resumed_at_one_and_at_three(worlds, parallel, world):
    plans, told = worlds
    assert "checkpoint of step 5 is kept" in told[f"cut {parallel} {world}", 2][0]["error"]
    assert told[f"resumed {parallel}", world][0]["summary"].steps == 10
    close(saved(plans[world][f"resumed {parallel}"])[0], saved(plans[1][f"uncut {parallel}"])[0], 1e-12)


def test_a_number_that_is_not_finite_stops_all_processes_before_the_update(worlds):
    """In one process's images at step 4."""
    plans, told = worlds
    expected = saved(plans[1]["kept"], "step-00000003")[0]
    for result in told["not a number", 2]:
        assert "training stopped in step 4" in result["error"]
        assert "process 1 is that of the images" in result["error"]
        close({"p": result["parameters"]}, {"p": expected["weights"]}, 1e-12)
    files, state = saved(plans[2]["not a number"])
    assert state["step"] == 3
    close(files, expected, 1e-12)


def test_unreadable_images_are_everyones(worlds):
    _, told = worlds
    (alone,), pair = told["unreadable", 1], told["unreadable", 2]
    assert sorted(map(str, pair[0]["summary"].unreadable)) == sorted(map(str, alone["summary"].unreadable))
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
