"""Which samples count, and in which order sides run; nothing here depends on how long anything takes."""

import time

import pytest

from normfree.bench import alternate, machine
from normfree.bench.timing import Samples


def test_sides_alternate_after_the_warm_up():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = alternate(sides, 3, warmup=2)
    assert "".join(calls) == "aabb" + "ab" * 3
    assert list(found) == ["a", "b"]
    assert all(len(some.seconds) + some.disturbed == 3 for some in found.values())


def test_rounds_can_be_watched():
    seen = []
    alternate({"": lambda: None}, 3, progress=lambda rounds: seen.extend(rounds) or range(3))
    assert seen == [0, 1, 2]


def test_samples_that_got_less_of_the_processor_are_left_out(monkeypatch):
    clock, work = iter([0, 1.0, 0, 5.0, 0, 1.2]), iter([0, 1.0, 0, 1.5, 0, 1.2])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(work))
    (found,) = alternate({"": lambda: None}, 3, warmup=0).values()
    assert found.seconds == (1.0, 1.2)  # of the second, two thirds belonged to others
    assert found.disturbed == 1


def test_median_and_spread():
    samples = Samples((3.0, 1.0, 2.0, 10.0))
    assert samples.median == 2.5
    assert samples.spread == (1.0, 10.0)


@pytest.mark.parametrize("word", ["torch 2.", "normfree ", "thread", "compiled kernels"])
def test_the_machine_is_named(word):
    assert word in machine()
    assert "\n" not in machine()
