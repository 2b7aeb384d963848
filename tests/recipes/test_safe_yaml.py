"""YAML is measured before it is built; what recipes may use of it gives what PyYAML gives."""

import hostile_bombs
import pytest
import yaml

from normfree import UsageError
from normfree.recipes import safe_yaml
from normfree.recipes.safe_yaml import load_yaml

USUAL = """
base: &base {lr: 0.1, betas: &betas [0.9, 0.99], warmup: 1_000, when: 2020-02-03}
one: {<<: *base, lr: 0.2}
both: {<<: [*base, {momentum: 0.9}], betas: *betas}
pairs: !!pairs [a: 1, a: 2]
set: !!set {a, b}
sixties: 1:30:00
keys: {1: a, 2.5: b, null: c, true: d, 123456789012345678: e}
"""


def test_anchors_and_merges_are_as_in_yaml():
    assert load_yaml(USUAL, "here") == yaml.safe_load(USUAL)


@pytest.mark.parametrize("name", ["lists", "mappings", "pairs", "ordered", "merged", "merged in tens", "wide merges"])
def test_what_grows_is_refused_before_it_is_built(monkeypatch, name):
    monkeypatch.setattr(safe_yaml._Loader, "construct_document", lambda loader, node: pytest.fail("it is built"))
    with pytest.raises(UsageError, match=r"^here holds more than 100,000 values$"):
        load_yaml(hostile_bombs.YAML[name], "here")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a merge of itself", "a value that contains itself"),
        ("a list of itself", "a value that contains itself"),
        ("digits", "a number of more than 1,000 digits"),
        ("a number of sixties", "a number of more than 1,000 digits"),
        ("numbers that collide", "a key of more than 18 digits"),
    ],
)
def test_what_is_refused_is_said(name, said):
    with pytest.raises(UsageError, match=rf"^here holds {said}$"):
        load_yaml(hostile_bombs.YAML[name], "here")


def test_a_document_of_as_many_values_as_there_may_be(monkeypatch):
    monkeypatch.setattr(safe_yaml, "MAX_RECIPE_VALUES", 9)
    text = "a: &a [1, 2]\nb: *a\n"  # the mapping, two keys, and twice a list of two
    assert load_yaml(text, "here") == dict(a=[1, 2], b=[1, 2])
    monkeypatch.setattr(safe_yaml, "MAX_RECIPE_VALUES", 8)
    with pytest.raises(UsageError, match="more than 8 values"):
        load_yaml(text, "here")


def test_a_text_without_end(monkeypatch):
    monkeypatch.setattr(safe_yaml, "MAX_RECIPE_LENGTH", 10)
    assert load_yaml("a: 1234567", "here") == dict(a=1234567)
    with pytest.raises(UsageError, match="here has more than 10 letters"):
        load_yaml("a: 12345678", "here")
