"""A run killed at any event in its folder goes on by the same command, and ends as the one that nothing stopped.

`normfree train ... --out RUN --resume`, from the first file of its start to the last picture of its end.
"""

import pytest
import selection
from killed_runs import Kind, Runs

# with --cases rest or all, more than 400 kills: every event of the first kind, every second one of the next two
KINDS = {
    "alone": Kind(),
    "decoding": Kind(workers=2),
    "two": Kind(world=2),
    "two, the other one": Kind(world=2, rank=1),
}


@pytest.fixture(
    scope="module", params=[pytest.param(n, marks=pytest.mark.full) if n == "decoding" else n for n in KINDS]
)
def runs(request, server, photos_folder, tmp_path_factory) -> Runs:
    return Runs(KINDS[request.param], server, tmp_path_factory.mktemp("runs"), photos_folder)


@pytest.mark.slow
@pytest.mark.scaled
def test_a_kill_at_any_event(runs):
    events = len(runs.events)
    assert events > (60 if runs.kind.rank == 0 else 6)  # another process writes nothing
    every = 1 if runs.kind in (KINDS["alone"], KINDS["two, the other one"]) else 2
    for at in range(0, events, every) if selection.whole() else range(events // 4, events, events // 2):
        runs.killed(at)


@pytest.mark.slow
@pytest.mark.scaled
def test_a_kill_of_a_report_leaves_no_half_page(server, photos_folder, tmp_path):
    out = Runs(Kind(), server, tmp_path, photos_folder).scratch / "whole"
    job = dict(argv=["report", str(out)], folder=str(out), world=1, rank=0, log=str(tmp_path / "log"))
    events = server(**job, at=None)["events"]
    page = out / "report.html"
    whole = page.stat().st_size
    for at in range(len(events)) if selection.whole() else (0, len(events) - 1):
        page.unlink(missing_ok=True)
        assert server(**job, at=at)["codes"] == [-9], events[at]
        assert not page.exists()
        assert server(**job, at=None)["codes"] == [0]
        assert page.stat().st_size == pytest.approx(whole, rel=0.01)
