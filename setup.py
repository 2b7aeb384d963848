"""The optional compiled kernels; all else is in pyproject.toml.

Plain shared libraries for ctypes: no headers of Python or torch. The same source is compiled once per set of
instructions, and `normfree.kernels` loads the best one that the processor has, so that one build serves old and new
processors. Without a C++ compiler the installation warns and goes on, and `normfree.kernels.why_off()` says so.
"""

import platform
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

# What torch asks of a processor before it runs its own kernels of that name, and no more.
AVX2 = ["-mavx2", "-mfma"]
INSTRUCTIONS = {"_cpu": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTIONS |= {
        "_cpu_avx2": AVX2,
        "_cpu_avx512": [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
    }

setup(
    ext_modules=[
        Extension(
            f"normfree.kernels.{name}",
            sources=[str(KERNELS / "cpu.cpp")],
            depends=sorted(str(path) for path in KERNELS.glob("*.h")),
            language="c++",
            extra_compile_args=[*OPTIONS, *instructions],
            optional=True,
        )
        for name, instructions in INSTRUCTIONS.items()
    ]
)
