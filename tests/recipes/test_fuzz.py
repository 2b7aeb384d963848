"""Whatever is in a recipe file: a recipe that can be written and read back, or one clear line."""

import random

import yaml

from normfree import UsageError
from normfree.recipes import Recipe, dump_recipe, field_paths, list_recipes, load_recipe
from normfree.recipes.recipe import recipe_text

SECTIONS = ["model", "data", "task", "optim", "train"]
FIELDS = list(field_paths())
VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    10**30,
    0.0,
    -0.5,
    0.1,
    1.5,
    1e-30,
    1e30,
    float("inf"),
    "",
    "x",
    "null",
    "1e-3",
    "3",
]
VALUES += ["a: b", "[", "é\n", [], [1], [0.5, 0.5, 0.5], ["x", None], [[1]], {}, {"a": 1}, {"lr": {"b": None}}, {1: 2}]


def mutated(draw: random.Random) -> dict:
    """A shipped recipe with one to three mistakes, or with values that are right by luck."""
    content = yaml.safe_load(recipe_text(draw.choice(list_recipes())))
    for _ in range(draw.randint(1, 3)):
        section, name = draw.choice(FIELDS).split(".", 1)
        kind = draw.random()
        if kind < 0.1:
            content[draw.choice([*SECTIONS, "optm", "", 3, None])] = draw.choice(VALUES)
        elif kind < 0.2:
            content.pop(section, None)
        elif not isinstance(content.get(section, {}), dict):
            continue
        elif kind < 0.3:
            content.setdefault(section, {})[draw.choice(["lrr", "", 3, None, True, "name.x"])] = draw.choice(VALUES)
        else:
            content.setdefault(section, {})[name] = draw.choice(VALUES)
    return content


def outcome(path, text: str) -> str:
    """Load a file; a recipe must survive being written and read, an error must be one line."""
    path.write_text(text)
    try:
        recipe = load_recipe(str(path))
    except UsageError as error:
        message = str(error)
        recipe = None
    if recipe is None:
        assert len(message.splitlines()) == 1, text
        return "refused"
    dumped = dump_recipe(recipe)
    path.write_text(dumped)
    assert load_recipe(str(path)) == recipe, text
    assert Recipe.from_dict(yaml.safe_load(dumped), "here") == recipe, text
    return "loaded"


def test_mutated_fields(tmp_path):
    draw, seen = random.Random(0), []
    for _ in range(200):
        seen.append(outcome(tmp_path / "r.yaml", yaml.safe_dump(mutated(draw), allow_unicode=True)))
    assert min(seen.count("loaded"), seen.count("refused")) >= 20  # both happen often


def test_mutated_text(tmp_path):
    draw, seen = random.Random(1), []
    for _ in range(200):
        text = list(recipe_text(draw.choice(list_recipes())))
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            text[at : at + draw.choice([0, 1, 1, 5])] = draw.choice(
                [*":{}[]-&*!|>'\"%@`\t\n #,?=", "\0", "0x_", "2020-99-99"]
            )
        seen.append(outcome(tmp_path / "r.yaml", "".join(text)))
    assert min(seen.count("loaded"), seen.count("refused")) >= 20
