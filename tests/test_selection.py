"""The default run is a sample with every kind in it, the rest is the rest, the closing lines say what did not run."""

import re

import pytest
import selection

pytest_plugins = ["pytester"]
TESTS = """
import pytest

@pytest.mark.sample(0.25, by=("kind",))
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("kind", ["a", "b", "c"])
def test_many(kind, number):
    pass

@pytest.mark.full
def test_long():
    pass

@pytest.mark.parametrize("name", ["short", pytest.param("long", marks=pytest.mark.full)])
def test_one_long(name):
    pass

def test_plain():
    pass

@pytest.mark.scaled
def test_examples():
    from selection import share
    print("drawn", share(100), share(12), share(3))
"""


@pytest.fixture
def run(pytester, monkeypatch):
    monkeypatch.setattr(selection, "_whole", selection._whole)  # each run inside sets it
    pytester.makepyfile(test_it=TESTS)
    pytester.makeini("[pytest]\nmarkers =\n    full\n    sample\n    scaled")

    def run(*arguments):
        class Plugin:
            pytest_addoption = staticmethod(selection.options)

            @staticmethod
            def pytest_configure(config):
                config.pluginmanager.register(selection.Selection(config))

        result = pytester.inline_run(*arguments, "-p", "no:cacheprovider", plugins=[Plugin()])
        passed, skipped, failed = result.listoutcomes()
        assert not failed
        return {report.nodeid.partition("::")[2] for report in passed}, len(skipped)

    return run


def test_sample_and_rest_are_all(run):
    (some, _), (rest, _), (whole, _) = (run("--cases", cases) for cases in ("sample", "rest", "all"))
    assert len(whole) == 65
    assert some | rest == whole
    assert some & rest == {"test_examples"}  # of which the rest draws more
    assert {"test_long", "test_one_long[long]"} <= rest
    assert {"test_plain", "test_one_long[short]"} <= some
    for kind in "abc":
        assert len([name for name in some if name.startswith(f"test_many[{kind}-")]) == 5
    assert run()[0] == some  # the default, and the same every time


def test_a_named_test_runs(run):
    assert run("test_it.py::test_long")[0] == {"test_long"}


def test_after_the_budget_nothing_starts(run):
    passed, skipped = run("--budget", "-1")
    assert not passed
    assert skipped == 18


def test_examples_are_a_share_of_themselves(run, capsys):
    for cases, drawn in (("sample", "20 3 3"), ("rest", "100 12 3"), ("all", "100 12 3")):
        run("--cases", cases, "-s", "-k", "examples")
        assert f"drawn {drawn}\n" in capsys.readouterr().out


def test_the_closing_lines_are_true(run, capsys):
    run("--budget", "-1")
    said = capsys.readouterr().out
    assert "a sample: 47 further cases are left to --cases rest" in said
    assert "18 cases were not run: -1 s were over" in said
    run("--cases", "rest")
    assert "the rest: 17 cases of the default run were not run again" in capsys.readouterr().out
    run("--cases", "all")
    assert not re.search("sample:|the rest:|not run", capsys.readouterr().out)
