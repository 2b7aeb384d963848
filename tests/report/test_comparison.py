"""The page about several runs, of files that the tests write."""

import json

import pytest
from report.pages import Page, eval_line, train_line

from normfree.report import About, Compared, Missing, read_run, write_comparison


@pytest.fixture
def compared(tmp_path):
    """A run among others, of lines and fields."""

    def make(name, fields, lines, **about):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text("model: {}\n")
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "environment.json").write_text("{}")
        return Compared(read_run(folder), name, fields, About(**about))

    return make


def lines(*scores, **more):
    found = [train_line(step, **more) for step in range(1, 5)]
    return found + [eval_line(2 * n, score) for n, score in enumerate(scores, 1)]


END = dict(kind="end", step=4, state="finished", reason="")


def page_of(*runs):
    return Page(write_comparison(runs, made="a version"))


def rows(page):
    """The table as text: the heading and each run's cells."""
    return [line.strip() for line in page.sections["scores"].split("\n") if line.strip()]


def test_only_fields_that_differ_are_in_the_table(compared):
    one = compared("one", {"optim.lr": "0.1", "optim.momentum": "0.9"}, [*lines(0.5, 0.7), END])
    two = compared("two", {"optim.lr": "0.4", "optim.momentum": "0.9"}, [*lines(0.8, 0.6), END])
    text = rows(page_of(one, two))
    assert "optim.lr" in text
    assert "optim.momentum" not in text
    first, second = text.index("one"), text.index("two")
    nbsp = "\N{NARROW NO-BREAK SPACE}%"
    assert text[first : first + 6] == ["one", "0.1", "finished", "4", f"70.00{nbsp}", f"70.00{nbsp}"]
    assert text[second : second + 6] == ["two", "0.4", "finished", "4", f"60.00{nbsp}", f"80.00{nbsp}"]


def test_entries_that_one_run_lacks_and_runs_without_a_recipe(compared):
    one = compared("one", {"optim.lr_factors.gain": "0.3", "optim.lr": "1"}, lines(0.5))
    two = compared("two", {"optim.lr": "1"}, lines(0.5))
    three = compared("three", Missing("recipe.yaml is broken"), lines(0.5))
    text = rows(page_of(one, two, three))
    assert "optim.lr" not in text
    assert text[text.index("two") + 1] == "\N{EN DASH}"
    assert text[-1].endswith("Without a recipe that can be read: three.")
    same = page_of(compared("a", {"optim.lr": "1"}, lines(0.5)), compared("b", {"optim.lr": "1"}, lines(0.5)))
    assert "The recipes have no field that differs." in same.sections["scores"]


def test_curves_lie_over_one_another_with_the_numbers_of_the_files(compared):
    page = page_of(*(compared(name, {}, lines(score, score)) for name, score in (("one", 0.5), ("two", 0.7))))
    charts = page.data("chart")
    assert all([one["name"] for one in chart["series"]] == ["one", "two"] for chart in charts)
    assert [[2, 0.5], [4, 0.5]] in [chart["series"][0]["points"] for chart in charts]
    assert [[2, 0.7], [4, 0.7]] in [chart["series"][1]["points"] for chart in charts]
    assert len({one["color"] for one in charts[0]["series"]}) == 2
    assert {chart["unit"] for chart in charts} == {"step"}


def test_averaged_weights_are_taken_where_they_are(compared):
    page = page_of(
        compared("one", {}, [train_line(1), eval_line(2, 0.5, ema_top1=0.9, ema_loss=1.0)]),
        compared("two", {}, [train_line(1), eval_line(2, 0.7)]),
    )
    tops = [chart for chart in page.data("chart") if chart["fraction"]]
    assert [one["points"] for one in tops[0]["series"]] == [[[2, 0.9]], [[2, 0.7]]]
    assert "Scores are of averaged weights where a run has them." in page.sections["scores"]


def test_other_numbers_of_steps_in_an_epoch_are_compared_by_epochs(compared):
    small = [eval_line(10 * n, 0.5) | dict(epoch=n) for n in (1, 2)]
    large = [eval_line(2 * n, 0.6) | dict(epoch=n) for n in (1, 2)]
    page = page_of(compared("small", {}, small), compared("large", {}, large))
    for chart in page.data("chart"):
        assert chart["unit"] == "epoch"
        assert [[x for x, _ in one["points"]] for one in chart["series"]] == [[1, 2], [1, 2]]


def test_more_runs_than_colours_and_one_that_logged_nothing(compared):
    runs = [compared(f"run{n}", {"train.seed": str(n)}, lines(0.5)) for n in range(10)]
    page = page_of(*runs, compared("none", {}, []))
    looks = {tuple(sorted(one.items())) for one in page.all("i")}
    assert len(looks) >= 11
    assert "not begun" in page.sections["scores"]


def test_it_loads_nothing(compared):
    page = page_of(compared("<b>", {"optim.lr": "<i>"}, lines(0.5)), compared("two", {"optim.lr": "1"}, lines(0.5)))
    assert not [name for name, _ in page.elements if name in ("img", "link", "iframe", "b>")]
    assert "<i>" in page.sections["scores"]
    assert "default-src 'none'" in page.all("meta")[1]["content"]
