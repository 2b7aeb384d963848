"""`normfree report RUN RUN ...`: the runs' recipes and names."""

import json

import pytest

from normfree.recipes import dump_recipe, load_recipe


@pytest.fixture
def run_of(tmp_path):
    """A run folder of two evaluations, without a training."""

    def make(name, **overrides):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("digits", overrides)))
        lines = [dict(kind="eval", step=step, epoch=step / 22, top1=0.5, loss=1.0, images=360) for step in (22, 44)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def test_the_page_names_what_differs(normfree, run_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = run_of("one/run", **{"optim.lr": 0.25, "model.options": {"alpha": 0.3}})
    two = run_of("two/run", **{"optim.lr": 0.5})
    result = normfree("report", one, two)
    assert result.code == 0
    assert result.out.startswith("report comparison.html (")
    page = (tmp_path / "comparison.html").read_text()
    for text in ("optim.lr", "model.options.alpha", "0.25", "one/run", "two/run"):
        assert f">{text}<" in page
    assert ">optim.momentum<" not in page
    assert normfree("report", one, two, "--out", tmp_path / "other.html").code == 0
    assert (tmp_path / "other.html").stat().st_size == (tmp_path / "comparison.html").stat().st_size


def test_what_is_refused(normfree, run_of, tmp_path):
    one, two = run_of("one"), run_of("two")
    for arguments, told in (
        ((one, one), f"{one} is given twice"),
        ((one, tmp_path / "none"), f"{tmp_path}/none is no run folder"),
        ((one, two, "--no-examples"), "--no-examples is for the report of one run"),
        ((one, two, "--examples", "3"), "--examples is for the report of one run"),
        ((one, two, "--out", one / "recipe.yaml"), f"--out {one}/recipe.yaml is a file of the run in {one}"),
    ):
        result = normfree("report", *arguments)
        assert result.code == 2
        assert result.error.startswith(told)
