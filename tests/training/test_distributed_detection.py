"""Detection in several processes is that of one: losses draw from each sample's seed, average precision is joined."""

import pytest
from worlds import Plan, run, saved

CASES = {
    "plain": dict(batch_size=4),
    "small batch": dict(batch_size=1),  # the second process has no image
    "sharded": dict(batch_size=4, parallel="fsdp"),
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Two steps and an evaluation of each case, by one and by two processes."""
    scratch, told, plans = tmp_path_factory.mktemp("worlds"), {}, {}
    for world in (1, 2):
        few = dict(steps=2, eval_every=100)
        plans[world] = {
            name: Plan(
                str(scratch / f"{name} {world}"), train | few, dict(warmup_epochs=0.0), images=(9, 5), task="detection"
            )
            for name, train in CASES.items()
        }
        told[world] = run(plans[world], world, scratch)
    return plans, told


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(worlds, case):
    plans, told = worlds
    (alone,) = told[1][case]
    assert alone["error"] is None
    for result in told[2][case]:
        assert result["error"] is None
        assert result["clipped"] == alone["clipped"]
        for name, parameter in alone["parameters"].items():
            # float64 sums in another order
            difference = (result["parameters"][name] - parameter).norm()
            assert difference <= 1e-9 * max(parameter.norm(), 1e-3), name
    ours, theirs = (saved(plans[world][case])[1]["metrics"] for world in (2, 1))
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert ours["images"] == 5
