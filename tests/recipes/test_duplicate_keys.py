"""A key that a recipe has twice is named with both of its lines."""

import pytest

from normfree import UsageError
from normfree.recipes import list_recipes, load_recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim:\n  lr: 0.1\n  clipping: 0.01\n  lr: 1.0\n", "'lr' twice, in lines 2 and 4"),
        ("train:\n  epochs: 3\nmodel:\n  name: nf_resnet50\ntrain:\n  epochs: 4\n", "'train' twice, in lines 1 and 5"),
        ('optim:\n  lr: 0.1\n  "lr": 0.1\n', "'lr' twice, in lines 2 and 3"),
        ("model:\n  options: {alpha: 0.2, depths: [1], alpha: 0.2}\n", "'alpha' twice, in line 2"),
        ("data: &a\n  workers: 0\n  flip: true\n  workers: 0\n", "'workers' twice, in lines 2 and 4"),
        ("model:\n  options:\n    a: [{b: 1, c: 2, b: 3}]\n", "'b' twice, in line 3"),
    ],
)
def test_a_key_twice(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_recipe(str(tmp_path / "a.yaml"))
    assert str(caught.value) == f"recipe {tmp_path}/a.yaml has {said}; leave one of them out"


def test_one_key_in_several_mappings_is_none_twice(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "model:\n  options: {a: &x {b: 1}, c: *x, d: {b: 1}}\n  name: nf_resnet50\ndata: {flip: true}\n"
    )
    with pytest.raises(UsageError, match="option"):  # which the network does not have, said where it is built
        load_recipe(str(tmp_path / "a.yaml")).model.build(num_classes=2, in_chans=3)


def test_the_recipes_here_have_none():
    for name in list_recipes():
        load_recipe(name)
