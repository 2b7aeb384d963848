"""The library is optional: built where a compiler is, left out with a warning where none is, off with a reason."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normfree import functional, kernels
from normfree.kernels import library

ROOT = Path(kernels.__file__).parents[3]
SOURCES = ("cpu.cpp", "elementwise.h", "gate.h", "merge.h", "optimizer.h", "parallel.h", "standardize.h")
VARIANTS = {"_cpu"} | ({"_cpu_avx2", "_cpu_avx512"} if platform.machine().lower() in ("x86_64", "amd64") else set())
needs_sources = pytest.mark.skipif(
    not (ROOT / "setup.py").is_file(), reason="normfree is installed without its setup.py"
)


def build(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess, list[Path]]:
    """setup.py's extension in a folder of its own: how it went, and the libraries made."""
    pytest.importorskip("setuptools", minversion="77")  # of pyproject.toml
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        folder / "lib",
        "--build-temp",
        folder / "o",
    ]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done, list((folder / "lib").rglob("_cpu*"))


@pytest.fixture
def built(tmp_path):
    """The libraries built now, or the reason to skip."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    done, libraries = build(tmp_path)
    assert done.returncode == 0, done.stderr
    if not libraries:
        pytest.skip(f"the compiler cannot: {done.stderr.strip().splitlines()[-1]}")
    return libraries


@needs_sources
def test_where_it_can_be_built_it_is_there(built):
    assert {path.name.partition(".")[0]: path for path in built}.keys() == VARIANTS
    for path in built:
        assert ctypes.CDLL(str(path)).nf_interface() == library.INTERFACE
    if os.environ.get("NORMFREE_KERNELS") != "0":
        assert kernels.available(), f"{kernels.why_off()}; install normfree again: pip install -e . --no-deps"


@needs_sources
@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/c++"])
def test_without_a_compiler_the_build_goes_on(tmp_path, compiler):
    done, libraries = build(tmp_path, CC=compiler, CXX=compiler)
    assert done.returncode == 0
    assert "normfree.kernels._cpu" in done.stderr + done.stdout
    assert "failed" in done.stderr + done.stdout
    assert libraries == []


def test_sources_lie_beside_the_modules():
    beside = Path(kernels.__file__).parent.iterdir()
    assert sorted(path.name for path in beside if path.suffix in (".cpp", ".h")) == sorted(SOURCES)


def test_the_reason_is_one_line(monkeypatch, tmp_path):
    load = library._load.__wrapped__
    monkeypatch.setenv("NORMFREE_KERNELS", "0")
    assert load() == (None, "NORMFREE_KERNELS is 0")
    monkeypatch.setenv("NORMFREE_KERNELS", "1")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    assert "not built" in load()[1]
    monkeypatch.setenv("NORMFREE_KERNELS", "default")
    assert "for default was not built" in load()[1]
    (tmp_path / "_cpu.so").write_text("no library")
    assert "_cpu.so cannot be loaded" in load()[1]
    assert "\n" not in load()[1]


def test_a_library_of_other_sources_is_not_called(compiled, monkeypatch):
    monkeypatch.setattr(library, "INTERFACE", 0)
    assert "other sources" in library._load.__wrapped__()[1]


def test_without_torchs_threads_only_one(compiled, monkeypatch):
    monkeypatch.setattr(library, "_parallel_of_torch", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert "OpenMP" in library._load.__wrapped__()[1]


def test_turned_off_everything_works():
    program = (
        "import torch; from normfree import kernels; print(kernels.available(), kernels.why_off());"
        "x = torch.randn(3, 4);"
        "kernels.gelu_tanh(x); kernels.silu(x); kernels.fused_standardize_weight(x);"
        "kernels.agc_sgd_ema_([x], [x.clone()], [x.clone()], lr=0.1, momentum=0.9)"
    )
    environment = os.environ | dict(NORMFREE_KERNELS="0")
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False NORMFREE_KERNELS is 0\n"


def test_the_portable_path_is_torchs(either_path):
    x = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(kernels.gelu_tanh(x), torch.nn.functional.gelu(x, approximate="tanh"))
    torch.testing.assert_close(kernels.fused_standardize_weight(x), functional.standardize_weight(x))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_one_pool_of_threads(compiled):
    x = torch.randn(1_000_000)
    torch.set_num_threads(2)
    try:
        torch.sin(x)
        before = set(os.listdir("/proc/self/task"))
        for _ in range(3):
            kernels.gelu_tanh(x)
            kernels.agc_sgd_ema_([x], [x.clone()], None, lr=0.1)
            torch.sin(x)
        assert set(os.listdir("/proc/self/task")) <= before  # threads of earlier tests may end meanwhile
    finally:
        torch.set_num_threads(1)
