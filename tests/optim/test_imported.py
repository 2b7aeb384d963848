"""Optimizers of other packages by the name of their class: built when asked for, refused when a file asks."""

import sys
import types

import pytest
import torch
from tiny_runs import network

from normfree import UsageError
from normfree.optim import OptimConfig
from normfree.recipes import dump_recipe, load_recipe
from normfree.runs.resume import resumed_recipe
from normfree.studies.cells import Cell


class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


class NoDecay(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))


def test_it_is_made_over_the_groups_with_its_options():
    optim = OptimConfig(name="torch.optim:NAdam", weight_decay=0.1, options=dict(betas=[0.5, 0.6], eps=0.25))
    made = optim.build(network())
    assert type(made) is torch.optim.NAdam
    assert (made.defaults["betas"], made.defaults["eps"]) == ((0.5, 0.6), 0.25)
    assert {group["name"]: group["weight_decay"] for group in made.param_groups}["weight"] == 0.1
    assert {group["lr"] for group in made.param_groups} == {0.0}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:Thing", r"optim.name \(='nowhere_at_all:Thing'\) cannot be imported: No module named"),
        ("torch.optim:Adamm", r"optim.name \(='torch.optim:Adamm'\) cannot be imported: module 'torch.optim' has no"),
        (":Adam", r"optim.name \(=':Adam'\) cannot be imported"),
        ("os:system", r"optim.name \(='os:system'\) must be a torch.optim.Optimizer; it is <built-in function system>"),
        ("torch.optim:LBFGS", r"optim.name \(='torch.optim:LBFGS'\) needs a closure in each step"),
        (f"{__name__}:NeedsClosure", "needs a closure in each step"),
        (f"{__name__}:NoDecay", r"optim.weight_decay \(=2e-05\) must be 0: .*:NoDecay has none"),
    ],
)
def test_what_is_no_optimizer_to_train_with_is_refused(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(**globals()))
    optim = OptimConfig(name=name)  # nothing is imported yet
    with pytest.raises(UsageError, match=message):
        optim.build(network())


def test_options_that_it_does_not_have_are_refused():
    with pytest.raises(UsageError, match=r"cannot be made with options \(=\{'beta': 1\}\): .*unexpected keyword"):
        OptimConfig(name="torch.optim:NAdam", options=dict(beta=1)).build(network())


def test_a_file_alone_does_not_import(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {name: nf_resnet26_small}\noptim: {name: 'torch.optim:NAdam'}\n")
    with pytest.raises(UsageError, match=r"optim.name \(='torch.optim:NAdam'\) is a class to import, which runs its"):
        load_recipe(str(path))
    assert load_recipe(str(path), {"optim.name": "torch.optim:NAdam"}).optim.name == "torch.optim:NAdam"
    assert load_recipe(str(path), {"optim.name": "adam"}).optim.name == "adam"
    with pytest.raises(UsageError, match=r"is a class to import, .* a study cannot name it"):
        Cell("a", "digits", {}, 0, {"optim.name": "torch.optim:NAdam"}).recipe()


def test_going_on_with_a_run_asks_again(tmp_path):
    recipe = load_recipe("digits", {"optim.name": "torch.optim:NAdam", "optim.lr": 0.01})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    (tmp_path / "metrics.jsonl").write_text("")
    assert load_recipe(str(tmp_path / "recipe.yaml")).optim == recipe.optim  # reading a run imports nothing
    with pytest.raises(UsageError, match=r"if you trust it, say so with --optim.name torch.optim:NAdam"):
        resumed_recipe(str(tmp_path), {})
    assert resumed_recipe(str(tmp_path), {"optim.name": "torch.optim:NAdam"})[1] == recipe
