"""What recording a signal propagation plot costs: `python benchmarks/record.py` (two minutes).

Time: a plain forward pass and `normfree.spp.record` of a network alternate in one run, outputs compared first.
Memory: peak resident memory of either, each in a process of its own, for networks of growing depth.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import normfree
from normfree.spp import record


def build(name: str) -> torch.nn.Module:
    """A network in training mode, as `record` shows it: batch statistics; these have no dropout. "+1": skip gains 1."""
    torch.manual_seed(0)
    name, on, _ = name.partition("+1")
    return normfree.create_model(name, **dict(skip_gain=1.0) if on else {}).train()


@torch.no_grad()
def seconds(function, *args) -> float:
    begun = time.perf_counter()
    function(*args)
    return time.perf_counter() - begun


@torch.no_grad()
def compare(name: str, batch: int, size: int, rounds: int) -> None:
    model, x = build(name), torch.randn(batch, 3, size, size)
    outputs = []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    record(model, x)
    hook.remove()
    same = torch.equal(outputs[0], model(x))
    plain, recorded = [], []
    for _ in range(rounds):
        plain.append(seconds(model, x))
        recorded.append(seconds(record, model, x))
    ratios = [b / a for a, b in zip(plain, recorded, strict=True)]
    print(
        f"{name:16} {batch:5} {size:4} px  outputs {'equal' if same else 'DIFFER'}  "
        f"forward {1e3 * statistics.median(plain):7.1f} ms  record {1e3 * statistics.median(recorded):7.1f} ms  "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def memory(name: str, batch: int, size: int, recording: bool) -> float:
    """Peak MiB beyond the model and the inputs, of a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(batch), "--size", str(size)]
    output = subprocess.run(command + ["--recording"] * recording, check=True, capture_output=True, text=True).stdout
    return float(output)


@torch.no_grad()
def peak(name: str, batch: int, size: int, recording: bool) -> float:
    model, x = build(name), torch.randn(batch, 3, size, size)
    model(x)  # libraries set aside memory at their first use
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    before = resident("VmHWM")
    record(model, x) if recording else model(x)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """KiB of resident memory, now or at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--recording", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, options.batch, options.size, options.recording))
        return
    print(
        f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {options.rounds} alternating rounds"
    )
    for name in ("bn_resnet50", "nf_resnet50", "nf_resnet50+1", "nf_seresnet50"):
        compare(name, options.batch, options.size, options.rounds)
    for name in ("bn_resnet50", "bn_resnet101", "bn_resnet152", "bn_resnet200"):
        plain, recorded = (memory(name, options.batch, options.size, recording) for recording in (False, True))
        print(f"{name:16} peak memory of forward {plain:6.0f} MiB, of record {recorded:6.0f} MiB")


if __name__ == "__main__":
    main()
