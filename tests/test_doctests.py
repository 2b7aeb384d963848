"""The examples in docstrings run as they stand, and every public function has one."""

import doctest
import importlib
import inspect
import os
import pickle
import pkgutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import normfree
from normfree import (
    bench,
    convert,
    data,
    errors,
    export,
    files,
    functional,
    gain,
    internals,
    kernels,
    measured,
    models,
    optim,
    private,
    spp,
    studies,
    training,
    weights,
    words,
)

ROOMS = [normfree.nn, models, optim, kernels, weights, bench, convert, data, export, private, spp, training]
ALSO = [studies]  # of which not every function has an example
MODULES = [functional, gain, measured, errors, files, internals, words]
# in the examples of to_archive and to_onnx
SHOWN = {f"normfree.export.{name}" for name in ("open_archive", "open_onnx", "operators", "weight_arithmetic")}
# what a reader of an example knows, beside the module that it stands in
KNOWN = dict(torch=torch, nn=nn, F=F, np=np, normfree=normfree, os=os, pickle=pickle, tempfile=tempfile, Path=Path)
KNOWN |= dict(Image=Image, build_model=models.build_model, param_groups=optim.param_groups)


def in_room(room):
    for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
        if not info.name.rpartition(".")[2].startswith("_cpu") and not info.name.endswith("triton_step"):
            yield importlib.import_module(info.name)


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in [*MODULES, *(module for room in [*ROOMS, *ALSO] for module in in_room(room))]:
        for test in finder.find(module, globs=KNOWN | vars(module)):
            if test.examples:
                yield test


EXAMPLES = sorted(examples(), key=lambda test: test.name)


@pytest.mark.parametrize("test", EXAMPLES, ids=[test.name.removeprefix("normfree.") for test in EXAMPLES])
def test_an_example_gives_what_it_says(test):
    torch.manual_seed(0)
    output: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=output.append)
    assert not failed, "".join(output)


def public_functions():
    for module in MODULES:
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value
    for room in ROOMS:
        for name in room.__all__:
            value = getattr(room, name)
            if inspect.isfunction(value):
                yield f"{room.__name__}.{name}", value


def test_every_public_function_has_an_example():
    functions = dict(public_functions())
    assert len(functions) > 60
    without = {name for name, value in functions.items() if ">>>" not in (value.__doc__ or "")}
    assert without == SHOWN


def test_a_wrong_example_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
