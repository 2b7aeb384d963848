"""Which cases run: a sample by default, all of them or the rest when asked, and none that would start too late.

``@pytest.mark.full`` leaves a test, or one of its parameters, out of the default run. ``@pytest.mark.sample(0.1)``
keeps a tenth of a test's cases, always the same ones, chosen by a hash of their names; with ``by=("kind",)`` at least
one for each value of the parameter ``kind``. ``@pytest.mark.scaled`` runs in both: with :func:`share` of its examples
by default, with all of them in the rest. Nothing is ever lost: what is left out here runs with ``--cases all`` and
``--cases rest``, and a test that is named on the command line (``FILE::TEST``) always runs.
"""

import hashlib
import math
import time
from collections import defaultdict

import pytest

CHOICES = ("sample", "all", "rest")
SHARE = 0.2  # of the examples that a test draws itself
_whole = False


def options(parser: pytest.Parser) -> None:
    group = parser.getgroup("normfree")
    group.addoption(
        "--cases", choices=CHOICES, default="sample", help="a sample of the cases (default), all of them, or the rest"
    )
    group.addoption(
        "--budget", type=float, metavar="SECONDS", help="start no test after so many seconds, and count those left"
    )


def whole() -> bool:
    """Whether this run holds what is marked ``full``: fixtures prepare it only then."""
    return _whole


def share(examples: int, part: float = SHARE) -> int:
    """So many of a test's examples, the first ones of a seeded row, are drawn in this run."""
    return examples if _whole else max(math.ceil(part * examples), min(examples, 3))


def _order(item: pytest.Item) -> str:
    return hashlib.sha256(item.nodeid.encode()).hexdigest()


def sampled(items: list[pytest.Item]) -> set[str]:
    """Names of the cases of a default run."""
    groups, chosen = defaultdict(list), set()
    for item in items:
        if item.get_closest_marker("full"):
            continue
        marker = item.get_closest_marker("sample")
        if marker is None:
            chosen.add(item.nodeid)
            continue
        params = item.callspec.params
        key = tuple(repr(params[name]) for name in marker.kwargs.get("by", ()))
        groups[item.nodeid.partition("[")[0], marker.args[0], key].append(item)
    for (_, fraction, _), group in groups.items():
        some = sorted(group, key=_order)[: math.ceil(fraction * len(group))]
        chosen |= {item.nodeid for item in some}
    return chosen


class Selection:
    """pytest's plugin in each process; the first one sums up."""

    def __init__(self, config: pytest.Config):
        global _whole
        named = any("::" in argument for argument in config.args)
        self.config, self.cases = config, "all" if named else config.getoption("cases")
        _whole = self.cases != "sample"
        self.began, self.budget = time.monotonic(), config.getoption("budget")
        self.counts = dict(left_out=0, too_late=0)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.cases == "all":
            return
        chosen = sampled(items)
        if self.cases == "rest":
            scaled = {item.nodeid for item in items if item.get_closest_marker("scaled")}
            chosen = {item.nodeid for item in items} - (chosen - scaled)
        gone = [item for item in items if item.nodeid not in chosen]
        items[:] = [item for item in items if item.nodeid in chosen]
        self.counts["left_out"] = len(gone)
        self.config.hook.pytest_deselected(items=gone)

    @pytest.hookimpl(tryfirst=True)  # before fixtures are made
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.budget is not None and time.monotonic() - self.began > self.budget:
            self.counts["too_late"] += 1
            pytest.skip("the time budget is over")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput |= self.counts

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node) -> None:
        found = getattr(node, "workeroutput", None) or {}
        self.counts["left_out"] = max(self.counts["left_out"], found.get("left_out", 0))  # each collects the same
        self.counts["too_late"] += found.get("too_late", 0)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        left_out, too_late = self.counts["left_out"], self.counts["too_late"]
        if left_out and self.cases == "sample":
            terminalreporter.write_line(f"a sample: {left_out} further cases are left to --cases rest")
        elif left_out:
            terminalreporter.write_line(f"the rest: {left_out} cases of the default run were not run again")
        if too_late:
            terminalreporter.write_line(
                f"{too_late} cases were not run: {self.budget:.0f} s were over (counted as skipped)"
            )
