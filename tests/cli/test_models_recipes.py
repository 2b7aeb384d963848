"""The tables of networks and recipes."""

import pytest

from normfree.models import list_models, model_info
from normfree.recipes import list_recipes, recipe_header
from normfree.recipes.recipe import recipe_text


def rows(text: str) -> dict[str, list[str]]:
    """Model -> its columns."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()[0] in list_models()}


def test_every_model_is_listed_with_its_numbers(normfree):
    result = normfree("models")
    assert (result.code, result.err) == (0, "")
    table = rows(result.out)
    assert list(table) == list_models()
    for name, columns in table.items():
        info = model_info(name)
        params, macs, unit, train, test, drop_rate, stochdepth_rate = columns
        assert int(params.replace(",", "")) == info.params
        assert float(macs) == pytest.approx(info.macs / 1e9, abs=0.0005)  # three digits are shown
        assert unit == ("B*" if info.macs_executed != info.macs else "B")
        assert (int(train), int(test)) == (info.train_size, info.test_size)
        assert (float(drop_rate), float(stochdepth_rate)) == (info.drop_rate, info.stochdepth_rate)


def test_the_table_is_aligned(normfree):
    lines = normfree("models").out.splitlines()
    table = [line for line in lines if line.split()[0] in list_models()]
    assert len({len(line) for line in table} | {len(lines[0])}) == 1
    assert len(lines[0]) <= 120


@pytest.mark.parametrize("pattern", ["nfnet_f?", "*regnet*", "nf_resnet50", "nf_resnet26_small"])
def test_a_pattern(normfree, pattern):
    result = normfree("models", pattern)
    assert list(rows(result.out)) == list_models(pattern)
    footnote = any(model_info(name).macs_executed != model_info(name).macs for name in list_models(pattern))
    assert ("macs_executed" in result.out) == footnote


def test_recipes_are_listed(normfree):
    result = normfree("recipes")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for name in list_recipes():
        (line,) = [line for line in lines if line.split(" ")[0] == name]
        assert line.endswith(recipe_header(name)[0])


@pytest.mark.parametrize("name", ["digits", list_recipes()[-1]])
def test_a_recipe_is_printed_whole(normfree, name):
    result = normfree("recipes", name)
    assert (result.code, result.err) == (0, "")
    assert result.out == recipe_text(name).rstrip() + "\n"
