"""Latency on the CPU: `python benchmarks/latency.py`, four minutes; wants timm, onnxruntime and openvino.

One image and NFNet-F0 by default. Ours is folded, or folded and prepacked; the others are timm's network: eager,
compiled with freezing, and exported by the dynamo exporter for onnxruntime and OpenVINO. All sides alternate in one
run, outputs compared first; rounds in which other load disturbed the reference are left out. Where the processor does
not multiply in bfloat16 itself, the rows of bfloat16 are left out: PyTorch then takes minutes for an image. So is any
side that is --patience times as slow as timm's eager network. What is built and what is left out is said on stderr.
"""

import argparse
import contextlib
import copy
import importlib.metadata
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
import torch._inductor.config
from torch import nn

import normfree
from normfree.bench import machine
from normfree.export import prepack
from normfree.training.device import computes_bfloat16
from normfree.weights import load_timm

Side = Callable[[], np.ndarray]
REFERENCE = "timm, eager"


def eager(model: nn.Module, x: torch.Tensor) -> Side:
    def run() -> np.ndarray:
        with torch.inference_mode():
            return model(x).float().numpy()

    return run


def compiled(model: nn.Module, x: torch.Tensor) -> Side:
    torch._inductor.config.freezing = True
    run = torch.compile(model)

    def call() -> np.ndarray:
        with torch.no_grad():
            return run(x).float().numpy()

    call()
    return call


def in_bf16(model: nn.Module) -> nn.Module:
    return normfree.fold(model).bfloat16()


def exported(model: nn.Module, x: torch.Tensor, folder: str) -> Path:
    path = Path(folder) / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    return path


def in_onnxruntime(path: Path, x: torch.Tensor, threads: int) -> Side:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def in_openvino(path: Path, x: torch.Tensor, threads: int, precision: str) -> Side:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    array = x.numpy()
    return lambda: request.infer([array])[0]


def builders(name: str, shape: tuple[int, ...], threads: int, folder: str) -> dict[str, Callable[[], Side]]:
    """All at one function: the weights are timm's, and ours is the variant that computes what timm does."""
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key.endswith("skipinit_gain"):
                parameter.fill_(0.5)  # a fresh one is 0, which would hide every branch
    ours = load_timm(normfree.create_model(f"timm_{name}"), theirs.state_dict()).eval()
    x = torch.randn(shape)
    xb = x.bfloat16()
    path = cache(lambda: exported(theirs, x, folder))
    theirs_bf16 = cache(lambda: copy.deepcopy(theirs).bfloat16())
    sides = {
        REFERENCE: lambda: eager(theirs, x),
        "timm, compiled with freezing": lambda: compiled(theirs, x),
        "timm, onnxruntime": lambda: in_onnxruntime(path(), x, threads),
        "timm, OpenVINO": lambda: in_openvino(path(), x, threads, "f32"),
        "ours, eager": lambda: eager(ours, x),
        "ours, folded": lambda: eager(normfree.fold(ours), x),
        "ours, prepacked": lambda: eager(prepack(ours, shape), x),
        "timm, eager, bf16": lambda: eager(theirs_bf16(), xb),
        "timm, compiled with freezing, bf16": lambda: compiled(theirs_bf16(), xb),
        "timm, OpenVINO, bf16": lambda: in_openvino(path(), x, threads, "bf16"),
        "ours, folded, bf16": lambda: eager(in_bf16(ours), xb),
        "ours, prepacked, bf16": lambda: eager(prepack(in_bf16(ours), shape), xb),
    }
    if name.startswith("dm_nfnet"):  # of the others, timm has no weights that fit the released function
        released = load_timm(normfree.create_model(name.removeprefix("dm_")), theirs.state_dict()).eval()
        sides |= {
            "ours, prepacked, released function": lambda: eager(prepack(released, shape), x),
            "ours, prepacked, released function, bf16": lambda: eager(prepack(in_bf16(released), shape), xb),
        }
    return sides


def seconds(run: Side) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def built(builders: dict[str, Callable[[], Side]], bfloat16: bool, patience: float) -> dict[str, Side]:
    """The sides that this machine can run; why another is left out is said."""
    runs, limit = {}, float("inf")
    for name, build in builders.items():
        if name.endswith("bf16") and not bfloat16:
            say(f"{name}: left out, this processor does not multiply in bfloat16")
            continue
        begun = time.perf_counter()
        try:
            run = build()
        except (ImportError, RuntimeError) as error:  # OpenVINO has no bfloat16 without AVX-512, and says so late
            say(f"{name}: left out, {str(error).strip().splitlines()[-1][:200]}")
            continue
        took = time.perf_counter() - begun
        run()
        once = seconds(run)
        if once > limit:
            say(f"{name}: left out, it takes {once:.2f} s, more than {patience:g} times {REFERENCE}")
            continue
        if name == REFERENCE:
            limit = patience * once
        say(f"{name}: built in {took:.1f} s, runs in {1e3 * once:.0f} ms")
        runs[name] = run
    return runs


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dm_nfnet_f0", help="timm's name")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--bfloat16", choices=("auto", "yes", "no"), default="auto", help="auto: where it is fast")
    parser.add_argument("--patience", type=float, default=10, help="leave out what is so many times slower than timm")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    bfloat16 = computes_bfloat16(torch.device("cpu")) if options.bfloat16 == "auto" else options.bfloat16 == "yes"
    shape = (options.batch, 3, options.size, options.size)
    with tempfile.TemporaryDirectory() as folder:
        sides = built(builders(options.model, shape, options.threads, folder), bfloat16, options.patience)
        say(f"measuring {options.rounds} rounds of {len(sides)} sides ...")
        measure(sides, options.rounds)
    print(f"{options.model}, batch {options.batch}, {options.size} px; {machine()}, {versions()}")


def versions() -> str:
    found = []
    for package in ("timm", "onnxruntime", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(found)


def measure(runs: dict[str, Side], rounds: int) -> None:
    expected = runs[REFERENCE]()
    differences = {name: np.linalg.norm(run() - expected) / np.linalg.norm(expected) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # its weights come into the cache, as in a stream of images
            times[name].append(seconds(run))
    usual = statistics.median(times[REFERENCE])
    quiet = [i for i, t in enumerate(times[REFERENCE]) if t < 1.25 * usual]
    print(f"{'':42} {'ms':>7} {'middle half':>15} {'ratio':>6} {'difference':>11}   ({len(quiet)} of {rounds} rounds)")
    for name in runs:
        kept = [times[name][i] for i in quiet]
        low, _, high = statistics.quantiles(kept, n=4)
        ratio = statistics.median(times[name][i] / times[REFERENCE][i] for i in quiet)
        spread = f"{1e3 * low:.1f} to {1e3 * high:.1f}"
        print(f"  {name:40} {1e3 * statistics.median(kept):7.1f} {spread:>15} {ratio:6.2f} {differences[name]:11.1e}")
    for ours in (name for name in times if name.startswith("ours, prepacked")):
        peers = [n for n in times if n.startswith("timm") and n.endswith("bf16") == ours.endswith("bf16")]
        best = min(peers, key=lambda n: statistics.median(times[n][i] for i in quiet))
        ratio = statistics.median(times[ours][i] / times[best][i] for i in quiet)
        print(f"{ours}: {ratio:.2f} of {best}, the fastest other")


if __name__ == "__main__":
    main()
