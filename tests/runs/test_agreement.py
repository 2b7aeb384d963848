"""Processes of a run that were not started alike are named by all of them; those that lose one say so."""

import disagreeing
import pytest
import selection

from normfree import RunFailed, UsageError
from normfree.recipes import load_recipe
from normfree.runs.agreement import compare_processes, on_all, settings
from normfree.training import Replicas

ADVICE = "; start all processes of a run by the same command, with the same files and versions"
# what both processes say, after "process 1 has "
NAMED = {
    "seed": "train.seed 1 where process 0 has 0",
    "momentum": "optim.momentum 0.8 where process 0 has 0.9",
    "several fields": "model.drop_rate 0.5 where process 0 has 0.2, process 1 has optim.clipping null where process 0",
    "precision": 'train.precision "bfloat16" where process 0 has "float32"',
    "threads": "the number of threads (--train.threads) 2 where process 0 has 1",
    "other class": 'classes ["dog", "zebra"] where process 0 has ["cat", "dog"]',
    "one image more": "the number of training images 13 where process 0 has 12",
    "another image": 'the hash of names and labels of training images "',
    "another folder": '--out "',
    "goes on": '--resume "the run of --out" where process 0 has null',
    "torch": 'torch "2.0.1" where process 0 has "',
    "python": 'python "3.9.0" where process 0 has "',
    "normfree": 'normfree "0.0.1" where process 0 has "',
}


FULL = {"momentum", "several fields", "precision", "one image more", "another folder", "python", "normfree", "fails"}


def marked(ways) -> list:
    return [pytest.param(way, marks=[pytest.mark.full] if way in FULL else []) for way in ways]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder, and what each of the two processes says in each way."""
    folder = tmp_path_factory.mktemp("pair")
    ways = [way for way in disagreeing.WAYS if selection.whole() or way not in FULL]
    return folder, disagreeing.start(folder, ways)


@pytest.mark.parametrize("way", marked(NAMED))
def test_what_differs_is_named_by_both_before_anything_is_written(pair, way):
    folder, said = pair
    for told in said:
        code, (line,) = told[way]
        assert code == 2
        assert line.startswith(f"normfree: process 1 has {NAMED[way]}")
        assert line.endswith(ADVICE)
    assert said[0][way] == said[1][way]
    assert not (folder / way).exists()


def test_images_that_one_process_does_not_see_are_named_by_both(pair):
    folder, said = pair
    for told in said:
        code, (line,) = told["no images"]
        assert code == 2
        assert line.startswith("normfree: process 1: ")
        assert f"{folder}/nowhere" in line


def test_processes_on_other_devices_do_not_wait_for_each_other(pair):
    for told in pair[1]:
        code, (line,) = told["backend"]
        assert code == 2
        assert line == "normfree: process 1 computes on a GPU where process 0 does on a CPU (--train.device)"


def test_processes_that_were_started_alike_train(pair):
    folder, said = pair
    assert [told["alike"][0] for told in said] == [0, 0]
    assert (folder / "alike" / "checkpoints" / "step-00000003").is_dir()


@pytest.mark.parametrize("way", marked(["fails", "dies"]))
def test_a_process_that_loses_the_other_says_what_is_kept(pair, way):
    """In the fourth step of the other, which raises there or is killed."""
    folder, (said, other) = pair
    code, lines = said[way]
    assert code == 1
    assert lines[-1] == (
        "normfree: another process of this run has ended before its time; its own lines say why, unless it was killed; "
        f"the checkpoint of step 3 is kept in {folder}/{way}/checkpoints/last"
    )
    assert not any("Traceback" in line or "gloo" in line for line in lines)
    if way == "fails":
        assert other[way][0] == 1
        assert "unexpected ZeroDivisionError: planted" in other[way][1][-1]
    else:
        assert way not in other


class Told(Replicas):
    """A process of several that is told what the others have."""

    def gather(self, value):
        return list(self.control)


def test_the_few_that_differ_from_the_most_are_named():
    many = [dict(a=1, b=2)] * 3 + [dict(a=1, b=3)] + [dict(a=1, b=2)] * 4
    with pytest.raises(UsageError) as refused:
        compare_processes(Told(0, 8, 0, many), {})
    assert str(refused.value) == f"process 3 has b 3 where process 0 has 2{ADVICE}"
    odd = [dict(b=3), dict(b=2), dict(b=2)]
    with pytest.raises(UsageError, match="process 0 has b 3 where process 1 has 2;"):
        compare_processes(Told(0, 3, 0, odd), {})


def test_a_field_that_only_one_version_knows_is_named():
    with pytest.raises(UsageError, match="process 1 has c 3 where process 0 has null;"):
        compare_processes(Told(0, 2, 0, [dict(b=2), dict(b=2, c=3)]), {})


def test_more_differences_than_fit_are_counted():
    with pytest.raises(UsageError, match=r"process 1 has 7 1 where process 0 has 0, and 3 more;") as refused:
        compare_processes(Told(0, 2, 0, [{str(n): k for n in range(11)} for k in (0, 1)]), {})
    assert len(str(refused.value)) < 500


def test_one_process_agrees_with_itself():
    compare_processes(Replicas(), settings(load_recipe("digits")))


@pytest.mark.parametrize("kind", [UsageError, RunFailed])
def test_an_error_of_one_is_everyones(kind):
    with pytest.raises(kind, match="process 1: no such folder"):
        on_all(Told(0, 2, 0, [None, kind("no such folder")]), lambda: 3)
    assert on_all(Replicas(), lambda: 3) == 3

    def fails():
        raise kind("no such folder")

    with pytest.raises(kind, match=r"^no such folder"):
        on_all(Replicas(), fails)
