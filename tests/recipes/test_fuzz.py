"""Whatever is in a recipe: a recipe that can be written and read back, or one clear line."""

import itertools
import random
import re

import pytest
import yaml
from hostile_values import FIELDS, HOSTILE, edits, fuzz, misspelt, of_field
from hypothesis import assume, given
from hypothesis import strategies as st
from selection import share

from normfree import UsageError
from normfree.recipes import Recipe, dump_recipe, list_recipes, load_recipe
from normfree.recipes.recipe import recipe_text

SECTIONS = sorted({path.split(".")[0] for path in FIELDS})
SHIPPED = [yaml.safe_load(recipe_text(name)) for name in list_recipes()]


def outcome(load) -> Recipe | None:
    """A recipe, or None for an error that is one line of sensible length; anything else is a failure."""
    try:
        return load()
    except UsageError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    assert 5 < len(message) < 900
    assert message.isprintable()
    return None


def survives(recipe: Recipe, path) -> None:
    """Written and read back, it is the same."""
    dumped = dump_recipe(recipe)
    path.write_text(dumped)
    assert load_recipe(str(path)) == recipe, dumped


@st.composite
def contents(draw, wrong: float) -> dict:
    """A shipped recipe, or none, with values drawn for some fields; ``wrong`` of them hostile."""
    base = draw(st.sampled_from([{}, *SHIPPED]))
    content = {section: dict(fields) for section, fields in base.items()}
    for path in draw(st.lists(st.sampled_from(list(FIELDS)), min_size=1, max_size=3, unique=True)):
        section, name = path.split(".")
        bad = draw(st.integers(0, 99)) < 100 * wrong
        content.setdefault(section, {})[name] = draw(HOSTILE if bad else of_field(path))
    return content


@pytest.mark.scaled
@pytest.mark.parametrize(("cases", "wrong"), [(250, 0.0), (400, 0.3)])
def test_a_recipe_or_one_clear_line(tmp_path, cases, wrong):
    seen = []

    @fuzz(cases)
    @given(content=contents(wrong))
    def check(content):
        recipe = outcome(lambda: Recipe.from_dict(content, "here"))
        seen.append(recipe is not None)
        if recipe is not None:
            survives(recipe, tmp_path / "r.yaml")

    check()
    assert min(seen.count(True), seen.count(False)) >= share(cases) // 12  # both happen often


@pytest.mark.scaled
@fuzz(150)
@given(content=contents(wrong=0.4))
def test_a_file_says_the_same_as_its_contents(tmp_path, content):
    try:
        text = yaml.safe_dump(content)
        read = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):  # what no file can hold
        assume(False)
    (tmp_path / "r.yaml").write_text(text)
    recipe = outcome(lambda: load_recipe(str(tmp_path / "r.yaml")))
    assert recipe == outcome(lambda: Recipe.from_dict(read, "here"))


@pytest.mark.scaled
@fuzz(150)
@given(section=st.sampled_from([None, *SECTIONS]), content=HOSTILE)
def test_hostile_sections(tmp_path, section, content):
    recipe = outcome(lambda: Recipe.from_dict(content if section is None else {section: content}, "here"))
    if recipe is not None:
        survives(recipe, tmp_path / "r.yaml")


@pytest.mark.scaled
@fuzz(150)
@given(section=st.sampled_from([None, *SECTIONS]), key=st.text(max_size=60) | HOSTILE, value=HOSTILE)
def test_hostile_keys(section, key, value):
    try:
        content = {key: value}
    except TypeError:
        assume(False)
    names = {path.removeprefix(f"{section}.") for path in FIELDS} if section else set(SECTIONS)
    assume(key not in names)
    assert outcome(lambda: Recipe.from_dict({section: content} if section else content, "here")) is None


@pytest.mark.scaled
@fuzz(150)
@given(path=st.sampled_from(list(FIELDS)), value=HOSTILE)
def test_hostile_overrides(path, value):
    outcome(lambda: load_recipe("digits", {path: value}))


@pytest.mark.scaled
@fuzz(400)
@given(data=st.data(), path=st.sampled_from(list(FIELDS)))
def test_one_wrong_letter_and_the_right_name_is_told(data, path):
    section, name = path.split(".")
    wrong = data.draw(misspelt(name))
    others = [field.split(".")[1] for field in FIELDS if field.startswith(f"{section}.")]
    assume(wrong not in others)
    with pytest.raises(UsageError, match="is unknown; did you mean ") as caught:
        Recipe.from_dict({section: {wrong: 1}}, "here")
    told = re.findall(rf"\b{section}\.(\w+)", str(caught.value).split("did you mean")[1])
    nearest = min(edits(wrong, other) for other in others)
    assert nearest in [edits(wrong, other) for other in told], str(caught.value)
    with pytest.raises(UsageError, match=re.escape(str(caught.value).removeprefix("here: "))):
        load_recipe("digits", {f"{section}.{wrong}": 1})


@pytest.mark.scaled
@fuzz(100)
@given(data=st.data(), section=st.sampled_from(SECTIONS))
def test_one_wrong_letter_in_a_section(data, section):
    wrong = data.draw(misspelt(section))
    assume(wrong not in SECTIONS)
    with pytest.raises(UsageError, match=rf"is unknown; did you mean .*\b{section}\b"):
        Recipe.from_dict({wrong: {}}, "here")


PAIRS = list(itertools.pairwise("abcdefghijkl"))
HOSTILE_FILES = {
    "a billion": "a: &a [x]\n" + "".join(f"{b}: &{b} [{'*' + a}{(', *' + a) * 8}]\n" for a, b in PAIRS),
    "itself": "model: &a {options: {b: [*a]}}",
    "nested": "optim: {lr: " + "[" * 3000,
    "digits": "optim: {lr: 0x" + "f" * 5000 + "}",
    "no boolean": "optim: {lr: !!bool x}",
    "no integer": "optim: {lr: !!int ''}",
    "no date": "optim: {lr: !!timestamp x}",
    "no number": "optim: {lr: !!float x}",
    "bytes": "optim: {lr: !!binary aGVsbG8=}",
    "set": "optim: !!set {lr}",
    "merged": "optim: {<<: [1, 2]}",
    "keys": "optim: {? [1, 2] : 3}",
    "two": "optim: {}\n---\nmodel: {}\n",
    "null byte": "optim: {}\0",
    "object": "optim: !!python/object/apply:os.system ['true']",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_hostile_files(tmp_path, kind):
    (tmp_path / "r.yaml").write_text(HOSTILE_FILES[kind])
    assert outcome(lambda: load_recipe(str(tmp_path / "r.yaml"))) is None


def test_hostile_bytes(tmp_path):
    draw = random.Random(0)
    for _ in range(50):
        (tmp_path / "r.yaml").write_bytes(draw.randbytes(draw.randint(1, 40)))
        assert outcome(lambda: load_recipe(str(tmp_path / "r.yaml"))) in (None, Recipe())


@pytest.mark.parametrize("name", ["a\0.yaml", "x" * 300 + ".yaml", "\ud800.yaml", "x" * 5000, "é\n", "/", "", "."])
def test_hostile_names(name):
    assert outcome(lambda: load_recipe(name)) is None


@pytest.mark.scaled
def test_mutated_text(tmp_path):
    draw, seen = random.Random(1), []
    for _ in range(share(200)):
        text = list(recipe_text(draw.choice(list_recipes())))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            text[at : at + draw.choice([0, 1, 1, 5])] = draw.choice(
                [*":{}[]-&*!|>'\"%@`\t\n #,?=", "\0", "0x_", "2020-99-99"]
            )
        (tmp_path / "r.yaml").write_text("".join(text))
        recipe = outcome(lambda: load_recipe(str(tmp_path / "r.yaml")))
        seen.append(recipe is not None)
        if recipe is not None:
            survives(recipe, tmp_path / "r.yaml")
    assert min(seen.count(True), seen.count(False)) >= share(200) // 10  # both happen often
