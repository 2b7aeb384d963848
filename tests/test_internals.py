"""A torch that has renamed something private: normfree is imported, what needs it says so by name."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import normfree
from normfree import UsageError, internals
from normfree.data import processes
from normfree.internals import Missing, private
from normfree.kernels import library
from normfree.nn import Activation, recompute
from normfree.optim import AGC, foreach
from normfree.spp import trace
from normfree.training import device, memory

ROOT = Path(normfree.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
# Attributes that are read when they are needed, and whose error names them; by convention private, in use everywhere.
AT_USE = {"_foreach_norm", "_foreach_mul_", "_foreach_add_", "_foreach_copy_", "_foreach_lerp_"}
NAMES = sorted(
    {
        node.args[0].value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "private"
    }
)


def again(module, hidden: str, monkeypatch):
    """A module as it is imported where torch lacks one name; the module itself stays as it is."""
    monkeypatch.setattr(internals, "private", lambda name: Missing(name) if name == hidden else private(name))
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, made)  # dataclasses look there
    spec.loader.exec_module(made)
    return made


def test_the_names_are_there():
    assert len(NAMES) >= 7
    for name in NAMES:
        assert not isinstance(private(name), Missing), name


def test_nothing_else_private_is_imported_or_read_from_torch():
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                parts = name.split(".") if re.fullmatch(r"[\w.]+", name) else [""]
                if parts[0] in ("torch", "nn", "aten", "F", "dist") and "ops" not in parts:
                    private_parts = [p for p in parts if p.startswith("_") and not p.startswith("__")]
                    found += [f"{path.name}:{node.lineno} {name}"] * bool(set(private_parts) - AT_USE)
    assert found == []


def test_everything_is_imported_without_any_of_them():
    program = f"""
import importlib, pkgutil, sys, torch
import torch.utils._python_dispatch, timm, torchvision, torch.distributed.tensor  # theirs are not asked
for name in {NAMES!r}:
    holder = torch
    *path, last = name.split(".")[1:]
    for part in path:
        holder = getattr(holder, part)
    delattr(holder, last)
import normfree
for module in pkgutil.walk_packages(normfree.__path__, "normfree."):
    if module.name not in ("normfree.__main__", "normfree.kernels.triton_step") and "._cpu" not in module.name:
        importlib.import_module(module.name)
print(normfree.kernels.why_off())
"""
    environment = os.environ | dict(NORMFREE_KERNELS="1")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"torch {torch.__version__} has no torch.")


@pytest.mark.parametrize(
    "name", [name for name in NAMES if not re.search("saved_tensors|Mode|worker|foreach|_supported", name)]
)
def test_kernels_are_off_and_say_why(name, monkeypatch):
    monkeypatch.setenv("NORMFREE_KERNELS", "1")
    without = again(library, name, monkeypatch)
    assert without.why_off() == f"torch {torch.__version__} has no {name}"
    assert not without.available()
    assert not without.eager()


@pytest.mark.parametrize("name", [name for name in NAMES if "_supported" in name])
def test_a_processor_that_is_not_known_computes_in_float32(name, monkeypatch):
    without = again(device, name, monkeypatch)
    other = "_has_amx" if "bf16" in name else "_has_bfloat16"
    monkeypatch.setattr(without, other, lambda: False)
    assert without.computes_bfloat16(torch.device("cpu")) is False
    monkeypatch.setattr(without, other, lambda: True)
    assert without.computes_bfloat16(torch.device("cpu")) is True


@pytest.mark.parametrize("name", [name for name in NAMES if "foreach" in name])
def test_a_step_over_a_list_names_what_it_lacks(name, monkeypatch):
    without = again(foreach, name, monkeypatch)
    with pytest.raises(UsageError, match=f"has no {name}, which this needs"):
        getattr(without, name.removeprefix("torch._"))([torch.ones(1)], 2.0)


@pytest.mark.parametrize("name", [name for name in NAMES if "saved_tensors" in name])
def test_activations_are_kept_and_a_warning_says_so(name, monkeypatch):
    without = again(recompute, name, monkeypatch)
    act, x = Activation("gelu"), torch.randn(3, requires_grad=True)
    with pytest.warns(UserWarning, match=f"kept for the backward pass.*has no {name}"):
        (out,) = without.activated(act, x, torch.exp)
    (again_out,) = without.activated(act, x, torch.exp)  # said once
    assert torch.equal(out, act(x).exp())
    assert torch.equal(again_out, out)


def test_what_watches_operations_names_what_it_lacks(monkeypatch):
    name = "torch.utils._python_dispatch.TorchDispatchMode"
    with pytest.raises(UsageError, match=f"has no {name}, which this needs"):
        again(memory, name, monkeypatch).Allocated()
    tracer = again(trace, name, monkeypatch).Tracer
    with pytest.raises(UsageError, match=f"has no {name}, which this needs"):
        tracer(nn.Identity(), lambda frame, moments: None)


def test_deaths_of_processes_are_torchs_to_tell(monkeypatch):
    without = again(processes, "torch.utils.data._utils.signal_handling._remove_worker_pids", monkeypatch)
    loader = DataLoader(list(range(4)), num_workers=1)
    iterator = iter(loader)
    without.deaths_unnoticed(iterator)
    assert iterator._worker_pids_set  # as torch left it: it tells of each that dies
    assert sum(len(batch) for batch in iterator) == 4


def test_a_scaler_that_does_not_tell_is_refused(monkeypatch):
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([dict(params=[weight], clipping=0.01)], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    agc = AGC(optimizer, scaler=scaler)
    scaler.scale(weight.sum()).backward()
    del scaler._per_optimizer_states
    before = weight.grad.clone()
    with pytest.raises(UsageError, match="_per_optimizer_states is gone"):
        agc.step()
    assert torch.equal(weight.grad, before)


def test_operations_of_aten_that_are_gone_are_left_out():
    from normfree.spp.origin import operations

    assert operations("mul", "_no_such_operation") == {torch.ops.aten.mul}
