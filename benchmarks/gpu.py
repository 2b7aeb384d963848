"""All that is measured on a GPU, with torch, torchvision, timm and Triton alone.

    PYTHONPATH=src python benchmarks/gpu.py

The training step of NFNet-F0 beside timm's (bfloat16, batch 128, 192 px; both layouts; eager and compiled) with its
peak memory and share of the floor; the optimizer's step; bytes kept for the backward pass. Ten minutes, most of them
compiling.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STEP = ["--device", "cuda", "--precision", "bfloat16", "--batch", "128", "--rounds", "20"]
RUNS = (
    ["training.py", *STEP, "--layout", "channels_last"],
    ["training.py", *STEP, "--layout", "contiguous", "--no-compile"],
    ["kernels.py", "--device", "cuda"],
    ["memory.py", "--device", "cuda"],
)


def main() -> int:
    worst = 0
    for name, *options in RUNS:
        print(f"\n## python benchmarks/{name} {' '.join(options)}\n", flush=True)
        worst = max(worst, subprocess.run([sys.executable, str(HERE / name), *options]).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
