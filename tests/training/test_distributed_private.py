"""Private training by one, two and three processes: the same draws, the noise once, the same parameters."""

import pytest
from worlds import Plan, close, run, saved

PRIVATE = dict(epsilon=1e4, noise_multiplier=0.7, max_norm=0.5)
CASES = {
    "plain": (dict(), dict()),
    "views, accumulated": (dict(micro_batch=4), dict(augmentations=2)),
    "small batch": (dict(batch_size=2, eval_every=1), dict()),  # some processes, or all, have no image
    "measured": (dict(micro_batch="auto"), dict()),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("private")
    plans, results = {}, {}
    for world in (1, 2, 3):
        some = {
            name: Plan(str(scratch / f"{name} {world}"), train, dict(clipping=None), private=PRIVATE | private)
            for name, (train, private) in CASES.items()
        }
        plans |= {(name, world): plan for name, plan in some.items()}
        results |= {(name, world): result for name, result in run(some, world, scratch).items()}
    return plans, results


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_worlds_agree(told, name, world):
    plans, results = told
    (alone,), together = results[name, 1], results[name, world]
    steps = zip(*(result["seen"] for result in together), strict=True)
    assert [[i for part in step for i in part] for step in steps] == alone["seen"]
    for result in together:
        assert result["error"] is None
        close({"p": result["parameters"]}, {"p": alone["parameters"]}, 1e-12)
    close(saved(plans[name, world])[0], saved(plans[name, 1])[0], 1e-12)
    assert saved(plans[name, world])[1]["spent"] == saved(plans[name, 1])[1]["spent"]


def test_small_batches_are_empty_for_some(told):
    _, results = told
    assert any(not seen for seen in results["small batch", 1][0]["seen"])
