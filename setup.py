"""The optional compiled kernels; all else is in pyproject.toml.

A plain shared library for ctypes: no headers of Python or torch. Without a C++ compiler the installation warns and goes
on, and `normfree.kernels.why_off()` says so.
"""

from pathlib import Path

from setuptools import Extension, setup

KERNELS = Path("src/normfree/kernels")
OPTIONS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",  # multiply-adds, as torch's own kernels have them
    "-fopenmp-simd",  # sums in vectors where the source says so; no OpenMP library comes with it
]

setup(
    ext_modules=[
        Extension(
            "normfree.kernels._cpu",
            sources=[str(KERNELS / "cpu.cpp")],
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            language="c++",
            extra_compile_args=OPTIONS,
            optional=True,
        )
    ]
)
