"""The step by Triton: in its interpreter, and compiled for GPUs that are not here.

Whether Triton interprets is decided when it is imported, so that tests of that kind run in a process of their own.
"""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import normfree
from normfree.kernels import optimizer

HERE = Path(__file__).parent
INSTALLED = importlib.util.find_spec("triton") is not None
VERSION = tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) if INSTALLED else ()
pytestmark = pytest.mark.skipif(not INSTALLED, reason="Triton is not installed")


def run(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "NORMFREE_KERNELS"}
    done = subprocess.run(command, env=inherited | environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.skipif(VERSION < (3, 9), reason="the interpreter of older ones does not loop with the numpy of today")
def test_the_interpreter():
    """Overflow and division by 0 are as in float32; numpy warns of them. One of the authors' two runs is enough."""
    where = [str(HERE / name) for name in ("triton_cases.py", "test_optimizer.py")]
    run(*where, "-k", "triton and not 0.01", "-W", "ignore::RuntimeWarning", TRITON_INTERPRET="1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_gpu():
    run(str(HERE / "triton_cases.py"), TRITON_INTERPRET="0")


def compiled(kernel, types: dict[str, str], capability: int, **constants):
    """Ready to load on a GPU of this compute capability; arguments in memory begin at multiples of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from normfree.kernels import triton_step

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n, its in types.items() if its[0] == "*"},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=triton_step.COMPILED)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled in the interpreter")
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_gpus(capability, monkeypatch, tmp_path):
    """Four floats at a time where rows are aligned; no registers in memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from normfree.kernels import triton_step

    types = dict(table="*i64", owners="*i32", norms="*fp32", bad="*i32")
    norms = compiled(triton_step.gradient_norms, types, capability, BLOCK=triton_step.BLOCK)
    assert "ld.global.v4" in norms.asm["ptx"]
    assert norms.asm["cubin"]
    types |= dict(numbers="*fp64", ratios="*fp32", clipped="*i1")
    types |= dict.fromkeys(("momentum", "undamped", "eps", "moving"), "fp32")
    for momentum, nesterov, write, check in ((True, True, False, True), (True, False, True, False), (False,) * 4):
        flags = dict(MOMENTUM=momentum, NESTEROV=nesterov, WRITE=write, CHECK=check, BLOCK=triton_step.BLOCK)
        step = compiled(triton_step.step_all, types, capability, **flags)
        assert "ld.global.v4" in step.asm["ptx"]
        assert "st.global.v4" in step.asm["ptx"]
        assert ".local" not in step.asm["ptx"]
        assert step.asm["cubin"]


def test_turned_off(monkeypatch):
    monkeypatch.setenv("NORMFREE_KERNELS", "0")
    optimizer._triton.cache_clear()
    assert optimizer._triton(torch.device("cuda", 0)) is None
    optimizer._triton.cache_clear()


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "normfree.kernels.triton_step", raising=False)
    monkeypatch.delattr(normfree.kernels, "triton_step", raising=False)
    optimizer._triton.cache_clear()
    assert optimizer._triton(torch.device("cuda", 0)) is None
    optimizer._triton.cache_clear()


def test_triton_is_imported_where_it_is_needed_only():
    code = "import sys, normfree.optim; assert 'triton' not in sys.modules and 'normfree.optim' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
