"""Several processes at the edges: each process's own ascent of SAM; a fault in one of them is everyone's."""

import math

import pytest
import selection
import torch
from worlds import Plan, run, saved

# Each micro-batch of each process moves by its own ascent gradient: (processes, images of their micro-batches, those of
# a single process that sees the same pieces). A batch has twelve images.
PIECES = {
    "halves": (2, None, 6),
    "thirds": (3, None, 4),
    "quarters": (2, 3, 3),
    "sixths": (3, 2, 2),
    "uneven": (2, 4, None),  # 4 and 2 in each process: no single process has these pieces
}
PARALLEL = ["ddp", "fsdp"]
FAULTS = {  # in process 1 at step 4, after three good ones
    "gradient": dict(bad_gradient=(1, 3)),
    "loss": dict(bad_loss=(1, 3)),
    "images": dict(poison=(1, 3)),
}
SAID = {
    "gradient": "a gradient is not finite; parameters are as before the step",
    "loss": "the loss is inf",
    "images": "the loss is nan",
}
# by (name, world); sharding by three processes takes seconds, on two cores
FULL = {("thirds fsdp", 3), ("bfloat16 fsdp", 3), ("quarters fsdp", 2), ("gradient fsdp", 3), ("loss fsdp", 2)}
FULL |= {("gradient sam fsdp", 2), ("images sam fsdp", 2), ("quarters ddp", 2)}


def case(*values, name: str, world: int):
    """Values of parameters; the plan that they are about is known by this name."""
    return pytest.param(*values, marks=[pytest.mark.full] if (name, world) in FULL else [])


def plans_of_sam(plan) -> None:
    base = dict(batch_size=12, steps=4)
    sam = dict(sam_rho=0.05, sam_fraction=0.5)
    for pieces, (world, micro_batch, alone) in PIECES.items():
        plan(f"{pieces} alone", 1, {**base, "micro_batch": alone}, sam)
        for parallel in PARALLEL:
            plan(f"{pieces} {parallel}", world, {**base, "micro_batch": micro_batch, "parallel": parallel}, sam)
    mixed = dict(mixup=0.2, cutmix=1.0)
    plan("mixed alone", 1, {**base, "micro_batch": 6}, sam, mixed)
    plan("mixed ddp", 2, base, sam, mixed)
    plan("whole", 1, base, sam)
    plan("without", 1, {**base, "micro_batch": 6})
    for parallel in PARALLEL:
        for world in (2, 3):
            half = dict(base, precision="bfloat16", parallel=parallel, micro_batch=3)
            plan(f"bfloat16 {parallel}", world, half, sam, {}, torch.float32)
            plan(f"no images {parallel}", world, dict(batch_size=2, steps=4, parallel=parallel), sam)


def plans_of_faults(plan) -> None:
    kept = dict(save_every=3, eval_every=100)
    for parallel in PARALLEL:
        for fault, where in FAULTS.items():
            plan(f"{fault} {parallel}", 2, {**kept, "parallel": parallel}, **where)
            plan(f"{fault} sam {parallel}", 2, {**kept, "parallel": parallel}, dict(sam_rho=0.05), **where)
        plan(f"gradient {parallel}", 3, {**kept, "parallel": parallel}, **FAULTS["gradient"])
        left_out = {**kept, "parallel": parallel, "steps": 6, "skip_nonfinite": 1}
        plan(f"left out {parallel}", 2, left_out, bad_gradient=(1, 3))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the processes of every plan tell, and the plan, by (name, world)."""
    scratch = tmp_path_factory.mktemp("worlds")
    plans: dict[int, dict[str, Plan]] = {1: {}, 2: {}, 3: {}}

    def plan(name: str, world: int, *args, **options) -> None:
        if selection.whole() or (name, world) not in FULL:
            plans[world][name] = Plan(str(scratch / f"{name} {world}"), *args, **options)

    plans_of_sam(plan)
    plans_of_faults(plan)
    return {
        (name, world): (some[name], results)
        for world, some in plans.items()
        for name, results in run(some, world, scratch).items()
    }


def distance(a, b) -> float:
    """Of the tensors of two states, relative, by norm."""
    worst = 0.0
    for kind, tensors in a.items():
        assert tensors.keys() == b[kind].keys()
        for name, tensor in tensors.items():
            worst = max(worst, ((tensor - b[kind][name]).norm() / max(tensor.norm(), 1e-3)).item())
    return worst


def identical(a, b) -> bool:
    return all(
        a[kind].keys() == b[kind].keys() and all(torch.equal(a[kind][name], b[kind][name]) for name in a[kind])
        for kind in ("weights", "ema", "momentum")
    )


@pytest.mark.parametrize(
    ("pieces", "parallel"),
    [
        case(pieces, parallel, name=f"{pieces} {parallel}", world=world)
        for pieces, (world, _, alone) in PIECES.items()
        if alone is not None
        for parallel in PARALLEL
    ],
)
def test_sam_of_several_processes_is_that_of_one_with_the_same_pieces(told, pieces, parallel):
    """With clipping and averages. float64: sums in another order."""
    _, (alone,) = told[f"{pieces} alone", 1]
    _, results = told[f"{pieces} {parallel}", PIECES[pieces][0]]
    for result in results:
        assert result["error"] is None
        assert distance(alone["state"], result["state"]) < 1e-12
        assert result["clipped"] == alone["clipped"]
    assert max(alone["clipped"]) > 0


def test_sam_depends_on_the_pieces(told):
    """What is documented, and what the test above would not see: the ascent is each piece's own."""
    (_, (whole,)), (_, (halves,)) = told["whole", 1], told["halves alone", 1]
    _, (without,) = told["without", 1]
    assert distance(whole["state"], halves["state"]) > 1e-3
    assert distance(without["state"], halves["state"]) > 1e-3


@pytest.mark.parametrize("parallel", PARALLEL)
def test_uneven_pieces_agree_in_all_processes(told, parallel):
    _, (first, *others) = told[f"uneven {parallel}", 2]
    assert all(identical(first["state"], other["state"]) for other in others)
    assert distance(first["state"], told["uneven ddp", 2][1][0]["state"]) < 1e-12


def test_sam_with_mixed_images(told):
    (_, (alone,)), (_, results) = told["mixed alone", 1], told["mixed ddp", 2]
    assert all(distance(alone["state"], result["state"]) < 1e-12 for result in results)
    assert distance(alone["state"], told["halves alone", 1][1][0]["state"]) > 1e-3


@pytest.mark.parametrize(
    ("name", "world"),
    [
        case(f"{what} {parallel}", world, name=f"{what} {parallel}", world=world)
        for what in ("bfloat16", "no images")
        for parallel in PARALLEL
        for world in (2, 3)
    ],
)
def test_processes_end_with_the_same_finite_network(told, name, world):
    """In bfloat16 with micro-batches; and in batches of two images, of which a third process has none."""
    _, (first, *others) = told[name, world]
    for key, value in first["parameters"].items():
        assert value.isfinite().all(), key
        assert all(torch.equal(value, other["parameters"][key]) for other in others), key
    assert all(identical(first["state"], other["state"]) for other in others)
    assert all(result["error"] is None and result["summary"].steps == 4 for result in (first, *others))
    assert math.isfinite(first["summary"].last["loss"])


def test_a_process_without_images_changes_nothing(told):
    (_, two), (_, three) = told["no images ddp", 2], told["no images ddp", 3]
    assert distance(two[0]["state"], three[0]["state"]) < 1e-12
    assert distance(two[0]["state"], told["no images fsdp", 3][1][0]["state"]) < 1e-12


@pytest.mark.parametrize(
    ("fault", "world", "parallel"),
    [
        case(fault, world, parallel, name=f"{fault} {parallel}", world=world)
        for fault, world in [*((fault, 2) for fault in FAULTS), ("gradient", 3)]
        for parallel in PARALLEL
    ],
)
def test_a_fault_in_one_process_stops_all_of_them(told, fault, world, parallel):
    stopped_untouched(*told[f"{fault} {parallel}", world], SAID[fault])


@pytest.mark.parametrize(
    ("fault", "parallel"),
    [case(fault, parallel, name=f"{fault} sam {parallel}", world=2) for fault in FAULTS for parallel in PARALLEL],
)
def test_a_fault_in_one_process_under_sam(told, fault, parallel):
    """The ascent meets it first: a gradient that is not finite moves the weights to where the loss is not."""
    said = "the loss is nan" if fault == "gradient" else SAID[fault]
    stopped_untouched(*told[f"{fault} sam {parallel}", 2], said)


def stopped_untouched(plan: Plan, results, said: str) -> None:
    """At step 4; in memory is what was saved after step 3, bit for bit, in every process."""
    files, state = saved(plan)
    assert state["step"] == 3
    assert "the checkpoint of step 3 is kept in " in results[0]["error"]
    for result in results:
        assert result["summary"] is None
        assert "training stopped in step 4 at learning rate " in result["error"]
        assert said in result["error"]
        assert len(result["clipped"]) == 3
        assert identical(result["state"], files)
        assert identical(result["state"], results[0]["state"])


@pytest.mark.parametrize("parallel", PARALLEL)
def test_all_processes_leave_the_same_step_out(told, parallel):
    _, results = told[f"left out {parallel}", 2]
    for result in results:
        assert result["error"] is None
        assert result["clipped"][3] is None
        assert [clipped is None for clipped in result["clipped"]].count(True) == 1
        assert result["summary"].steps == 6
        assert all(value.isfinite().all() for value in result["parameters"].values())
        assert identical(result["state"], results[0]["state"])
    assert distance(results[0]["state"], told["left out ddp", 2][1][0]["state"]) < 1e-12
