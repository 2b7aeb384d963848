"""How many processes decode images follows the cores, unless it is said."""

import os

import pytest
import torch

from normfree.data import DataConfig, Loader, Source, digits
from normfree.data.sources import FolderSplit
from normfree.data.workers import workers_for
from normfree.recipes import Recipe, list_recipes, load_recipe
from normfree.tasks import task_of


def files(count: int) -> Source:
    split = FolderSplit([(f"{i}.png", 0) for i in range(count)], 3)
    return Source(split, split, ["a"])


@pytest.mark.parametrize(
    ("cores", "processes", "images", "expected"),
    [(4, 1, 1000, 4), (64, 1, 1000, 8), (64, 16, 1000, 4), (2, 2, 1000, 0), (1, 1, 1000, 0), (8, 1, 99, 0)],
)
def test_one_for_each_core(monkeypatch, cores, processes, images, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert workers_for(files(images)) == expected


def test_none_where_nothing_is_decoded(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert workers_for(digits()) == 0


def test_a_task_has_them(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    recipe = Recipe(data=DataConfig(image_size=8, test_size=8))
    assert task_of(recipe).from_recipe(recipe, files(200)).train.loader.num_workers == 3
    assert recipe.data.workers is None  # the run may go on on another machine
    recipe.data.workers = 1
    assert task_of(recipe).from_recipe(recipe, files(200)).train.loader.num_workers == 1


def test_a_loader_by_itself_has_none():
    assert Loader(digits().train, lambda image, generator: torch.zeros(1), 4, workers=None).loader.num_workers == 0


def test_no_recipe_names_a_number():
    assert {load_recipe(name).data.workers for name in list_recipes()} == {None}
