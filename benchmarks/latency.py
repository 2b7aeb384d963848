"""Latency of one image on the CPU: `python benchmarks/latency.py`, four minutes; wants timm, onnxruntime and openvino.

NFNet-F0 by default. Ours is folded, or folded and prepacked; the others are timm's network: eager, compiled with
freezing, and exported by the dynamo exporter for onnxruntime and OpenVINO. All sides alternate in one run, outputs
compared first; rounds in which other load disturbed the reference are left out.
"""

import argparse
import copy
import importlib.metadata
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
import torch._inductor.config
from torch import nn

import normfree
from normfree.export import prepack
from normfree.weights import load_timm

Side = Callable[[], np.ndarray]


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


def sides(name: str, size: int, threads: int, folder: str) -> dict[str, Side]:
    """All at one function: the weights are timm's, and ours is the variant that computes what timm does."""
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key.endswith("skipinit_gain"):
                parameter.fill_(0.5)  # a fresh one is 0, which would hide every branch
    ours = load_timm(normfree.create_model(f"timm_{name}"), theirs.state_dict()).eval()
    released = load_timm(normfree.create_model(name.removeprefix("dm_")), theirs.state_dict()).eval()
    x = torch.randn(1, 3, size, size)
    xb = x.bfloat16()
    path, theirs_bf16 = exported(theirs, x, folder), copy.deepcopy(theirs).bfloat16()
    return {
        "float32": None,
        "timm, eager": eager(theirs, x),
        "timm, compiled with freezing": compiled(theirs, x),
        "timm, onnxruntime": in_onnxruntime(path, x, threads),
        "timm, OpenVINO": in_openvino(path, x, threads, "f32"),
        "ours, eager": eager(ours, x),
        "ours, folded": eager(normfree.fold(ours), x),
        "ours, prepacked": eager(prepack(ours, x.shape), x),
        "ours, prepacked, released function": eager(prepack(released, x.shape), x),
        "bfloat16": None,
        "timm, eager, bf16": eager(theirs_bf16, xb),
        "timm, compiled with freezing, bf16": compiled(theirs_bf16, xb),
        "timm, OpenVINO, bf16": in_openvino(path, x, threads, "bf16"),
        "ours, folded, bf16": eager(normfree.fold(ours).bfloat16(), xb),
        "ours, prepacked, bf16": eager(prepack(normfree.fold(ours).bfloat16(), x.shape), xb),
        "ours, prepacked, released function, bf16": eager(prepack(normfree.fold(released).bfloat16(), x.shape), xb),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dm_nfnet_f0", help="timm's name")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        runs = sides(options.model, options.size, options.threads, folder)
        measure(runs, options.rounds)
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "timm", "onnxruntime", "openvino"))
    print(f"{options.model}, {options.size} px, {options.threads} threads; {platform.machine()}; {versions}")


def measure(runs: dict[str, Side | None], rounds: int) -> None:
    reference = runs["timm, eager"]
    expected = reference()
    differences = {
        name: np.linalg.norm(run() - expected) / np.linalg.norm(expected) for name, run in runs.items() if run
    }
    times: dict[str, list[float]] = {name: [] for name, run in runs.items() if run}
    for _ in range(rounds):
        for name, samples in times.items():
            runs[name]()  # its weights come into the cache, as in a stream of images
            begun = time.perf_counter()
            runs[name]()
            samples.append(time.perf_counter() - begun)
    usual = statistics.median(times["timm, eager"])
    quiet = [i for i, t in enumerate(times["timm, eager"]) if t < 1.25 * usual]
    print(f"{'':42} {'ms':>7} {'middle half':>15} {'ratio':>6} {'difference':>11}   ({len(quiet)} of {rounds} rounds)")
    for name, run in runs.items():
        if run is None:
            print(name)
            continue
        kept = [times[name][i] for i in quiet]
        low, _, high = statistics.quantiles(kept, n=4)
        ratio = statistics.median(times[name][i] / times["timm, eager"][i] for i in quiet)
        spread = f"{1e3 * low:.1f} to {1e3 * high:.1f}"
        print(f"  {name:40} {1e3 * statistics.median(kept):7.1f} {spread:>15} {ratio:6.2f} {differences[name]:11.1e}")
    for ours in (name for name in times if name.startswith("ours, prepacked")):
        peers = [n for n in times if n.startswith("timm") and n.endswith("bf16") == ours.endswith("bf16")]
        best = min(peers, key=lambda n: statistics.median(times[n][i] for i in quiet))
        ratio = statistics.median(times[ours][i] / times[best][i] for i in quiet)
        print(f"{ours}: {ratio:.2f} of {best}, the fastest other")


if __name__ == "__main__":
    main()
