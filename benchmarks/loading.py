"""Peak memory of loading a checkpoint: `python benchmarks/loading.py`, a minute; needs 4 GB of disk and 6 GB of memory.

NFNet-F6 (438 M parameters) by default, from a file in the authors' format and from one in timm's, each in a process of
its own. What a process holds before (Python, torch) is subtracted.
"""

import argparse
import pickle
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import normfree
from normfree.weights import load_haiku, load_timm, to_haiku, to_timm

MiB = 2**20


def peak() -> float:
    """Peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write(name: str, folder: Path) -> None:
    model = normfree.create_model(name)
    with (folder / "haiku.npz").open("wb") as file:
        pickle.dump(to_haiku(model), file, protocol=4)
    save_file(to_timm(model), folder / "timm.safetensors")


def load(name: str, path: Path) -> None:
    """In a process of its own: prints the peak in MiB beyond what importing takes."""
    model = normfree.create_model("nf_resnet26_small", num_classes=2)
    model(torch.zeros(1, 3, 8, 8))  # what torch sets up at first use
    before = peak()
    model = normfree.create_model(name)
    (load_haiku if path.suffix == ".npz" else load_timm)(model, path)
    print(peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nfnet_f6")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        return load(options.model, options.load)
    if options.write:
        return write(options.model, options.write)
    parameters = normfree.model_info(options.model).params
    size = 4 * parameters / MiB
    print(f"{options.model}: {parameters / 1e6:.0f} M parameters, one model {size:.0f} MiB; torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--model", options.model]
        subprocess.run([*command, "--write", folder], check=True)
        for path in (Path(folder) / "haiku.npz", Path(folder) / "timm.safetensors"):
            output = subprocess.run([*command, "--load", str(path)], check=True, capture_output=True, text=True).stdout
            allowed = path.stat().st_size / MiB + size
            print(f"{path.name:17} peak {float(output):6.0f} MiB, checkpoint and model {allowed:6.0f} MiB", end="  ")
            print(f"ratio {float(output) / allowed:.2f}")
    print(f"{platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
