"""What the compiled kernels bring on this CPU: `python benchmarks/kernels.py`, one minute.

Sides alternate in one run, outputs compared first: activations at the sizes of all of a network's activations, weight
standardization over all its convolutions, and the optimizer's step over all its parameters. The step's floor is a plain
loop that reads weights, gradients, momenta and averages and writes all but the gradients.

`--device cuda`: the optimizer's step alone, on a GPU, with launches; torch, torchvision, timm and Triton are enough.
"""

import argparse
import copy
import ctypes
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad

import normfree
from normfree import functional, kernels
from normfree.nn import Activation, WSConv2d
from normfree.optim import AGC, EMA, FusedStep, param_groups

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

FLOOR = """
#include <stdint.h>
void run(float *restrict w, const float *restrict g, float *restrict m, float *restrict e, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = 0.9f * m[i] + g[i];
    w[i] -= 1e-4f * m[i];
    e[i] += 1e-5f * (w[i] - e[i]);
  }
}
"""


def wall(run: Callable[[], object]) -> float:
    """Milliseconds on the wall."""
    begun = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - begun)


def events(run: Callable[[], object]) -> float:
    """Milliseconds on a GPU that has nothing to do before, so that the host's time to launch counts, too."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


Clock = Callable[[Callable[[], object]], float]


def compare(title: str, sides: dict[str, Callable[[], object]], rounds: int, clock: Clock = wall) -> None:
    """Sides in turn, `rounds` times after a first that does not count; ratios are to the first side, by round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            spent = clock(run)
            if number:
                times[name].append(spent)
    first = next(iter(times.values()))
    print(title)
    for name, spent in times.items():
        ratios = sorted(a / b for a, b in zip(spent, first, strict=True))
        quarter = len(ratios) // 4
        print(
            f"  {name:34} {statistics.median(spent):8.2f} ms (least {min(spent):8.2f})  ratio "
            f"{statistics.median(ratios):5.2f} ({ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}, middle half)"
        )


@torch.no_grad()
def activation_shapes(model: torch.nn.Module, batch: int, size: int) -> list[torch.Size]:
    shapes: list[torch.Size] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
        for module in model.modules()
        if isinstance(module, Activation)
    ]
    model(torch.randn(batch, 3, size, size))
    for hook in hooks:
        hook.remove()
    return shapes


def activations(shapes: list[torch.Size], dtype: torch.dtype, rounds: int) -> None:
    inputs = {shape: torch.randn(shape).to(dtype) for shape in set(shapes)}
    grads = {shape: torch.randn(shape).to(dtype) for shape in inputs}
    out = {shape: torch.empty_like(x) for shape, x in inputs.items()}

    def forward(function):
        return lambda: [function(inputs[shape]) for shape in shapes]

    def backward(function):
        held = {shape: x.clone().requires_grad_() for shape, x in inputs.items()}
        graphs = {shape: function(x) for shape, x in held.items()}
        return lambda: [
            torch.autograd.grad(graphs[shape], held[shape], grads[shape], retain_graph=True) for shape in shapes
        ]

    functions = {
        "torch gelu, erf": F.gelu,
        "torch gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
        "gelu, erf": kernels.gelu,
        "gelu_tanh": kernels.gelu_tanh,
        "torch silu": F.silu,
        "silu": kernels.silu,
    }
    pairs = (("torch gelu, erf", "gelu, erf"), ("torch gelu, tanh", "gelu_tanh"), ("torch silu", "silu"))
    tolerance = dict(rtol=1e-6, atol=1e-6) if dtype is torch.float32 else dict(rtol=2**-7, atol=1e-4)
    for x in inputs.values():
        for theirs, ours in pairs:
            torch.testing.assert_close(functions[ours](x), functions[theirs](x), **tolerance)
    sides = {"copy, memory at hand": lambda: [out[shape].copy_(inputs[shape]) for shape in shapes]}
    elements = sum(shape.numel() for shape in shapes) / 1e6
    title = f"{len(shapes)} activations, {elements:.1f} M elements, {str(dtype)[6:]}"
    with torch.no_grad():
        compare(f"{title}, forward", sides | {k: forward(f) for k, f in functions.items()}, rounds)
    compare(f"{title}, backward", sides | {k: backward(f) for k, f in functions.items()}, rounds)


def standardization(model: torch.nn.Module, dtype: torch.dtype, rounds: int) -> None:
    layers = [module for module in model.modules() if isinstance(module, WSConv2d)]
    grads = [torch.randn_like(layer.weight).to(dtype) for layer in layers]

    def portable(layer):
        return functional.standardize_weight(layer.weight, layer.gain, scale=layer.input_scale).to(dtype)

    def compiled(layer):
        return kernels.fused_standardize_weight(layer.weight, layer.gain, scale=layer.input_scale, dtype=dtype)

    tolerance = dict(rtol=1e-5, atol=1e-6) if dtype is torch.float32 else dict(rtol=2**-7, atol=1e-5)
    for layer in layers:
        torch.testing.assert_close(compiled(layer), portable(layer), **tolerance)

    def both_ways(function):
        def run():
            for layer, grad in zip(layers, grads, strict=True):
                torch.autograd.grad(function(layer), (layer.weight, layer.gain), grad)

        return run

    def copied() -> None:
        """As many bytes read and written as by standardization."""
        for place, layer in zip(places, layers, strict=True):
            place.copy_(layer.weight)

    def added() -> None:
        """The same, of its gradient."""
        for place, layer, grad in zip(places[::-1], layers[::-1], grads[::-1], strict=True):
            torch.add(layer.weight, grad, out=place)

    places = [torch.empty_like(layer.weight, dtype=dtype, requires_grad=False) for layer in layers]
    title = f"standardization of {len(layers)} weights to {str(dtype)[6:]}"
    with torch.no_grad():
        sides = {"portable": lambda: list(map(portable, layers)), "compiled": lambda: list(map(compiled, layers))}
        compare(f"{title}, forward", sides | {"copy": copied}, rounds)
    sides = {"portable": both_ways(portable), "compiled": both_ways(compiled)}
    compare(f"{title}, both ways", sides | {"copy, and add": torch.no_grad()(lambda: (copied(), added()))}, rounds)


def floor(tensors: list[torch.Tensor], folder: Path) -> Callable[[], object]:
    """The loop's time over memory of its own, as many tensors of these sizes; halves on two threads and so on."""
    (folder / "floor.c").write_text(FLOOR)
    compiler = shutil.which("cc") or "gcc"
    options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run([compiler, *options, folder / "floor.c", "-o", folder / "floor.so"], check=True)
    run = ctypes.CDLL(str(folder / "floor.so")).run
    run.argtypes, run.restype = [ctypes.c_void_p] * 4 + [ctypes.c_int64], None
    workers, total, done = torch.get_num_threads(), sum(x.numel() for x in tensors), 0
    pool = ThreadPoolExecutor(workers)
    memory = [[torch.zeros_like(x) for x in tensors] for _ in range(4)]
    shares: list[list[tuple]] = [[] for _ in range(workers)]
    for columns in zip(*memory, strict=True):
        share = shares[min(workers - 1, done * workers // total)]
        share.append((*(x.data_ptr() for x in columns), columns[0].numel()))
        done += columns[0].numel()

    def part(share, held=memory):
        for arguments in share:
            run(*arguments)

    return lambda: list(pool.map(part, shares))


class Fused:
    """A model's step with the compiled kernel."""

    def __init__(self, model: torch.nn.Module, check: bool):
        groups = param_groups(model, weight_decay=2e-5, clipping=0.01)
        self.params = [p for group in groups for p in group["params"]]
        each = [(group["weight_decay"], group["clipping"]) for group in groups for _ in group["params"]]
        self.buffers = [torch.zeros_like(p) for p in self.params]
        self.averages = [p.detach().clone() for p in self.params]
        self.options = dict(weight_decay=[w for w, _ in each], clipping=[c for _, c in each], error_if_nonfinite=check)
        self.options |= dict(lr=1e-4, momentum=0.9, nesterov=True, ema_decay=0.99999)

    def __call__(self) -> None:
        grads = [p.grad for p in self.params]
        kernels.agc_sgd_ema_(self.params, grads, self.buffers, self.averages, **self.options)


def optimizer_sides(model: torch.nn.Module, name: str) -> dict[str, Callable[[], object]]:
    """The step of a network by each, on a copy; `name` is of ours. The first step of both ways of ours is compared."""
    ours, fused, unchecked, theirs = (copy.deepcopy(model) for _ in range(4))
    for parameters in zip(*(net.parameters() for net in (ours, fused, unchecked, theirs)), strict=True):
        grad = torch.randn_like(parameters[0]) * 0.01
        for p in parameters:
            p.grad = grad.clone()
    agc = AGC(
        torch.optim.SGD(param_groups(ours, weight_decay=2e-5, clipping=0.01), lr=1e-4, momentum=0.9, nesterov=True),
        error_if_nonfinite=True,
    )
    ema = EMA(ours, warmup=False)
    sgd = torch.optim.SGD(theirs.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=2e-5, fused=True)
    their_ema = ModelEmaV3(theirs, decay=0.99999)

    def portable():
        agc.step()
        ema.update()

    def timm_step():
        adaptive_clip_grad(theirs.parameters(), 0.01, 1e-3)
        sgd.step()
        their_ema.update(theirs)

    step = Fused(fused, check=True)
    portable()
    step()
    averages, momenta = (dict(zip(step.params, column, strict=True)) for column in (step.averages, step.buffers))
    for (key, p), q in zip(ours.named_parameters(), fused.parameters(), strict=True):
        pairs = ((p, q), (ema.average[key], averages[q]), (agc.optimizer.state[p]["momentum_buffer"], momenta[q]))
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    return {
        name: step,
        f"{name}, finiteness not checked": Fused(unchecked, check=False),
        "AGC, SGD, EMA of normfree": portable,
        "timm's AGC and EMA, SGD fused": timm_step,
    }


def optimizer(model: torch.nn.Module, rounds: int, folder: Path) -> None:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    sides = {"floor: a loop over the memory": floor(list(model.parameters()), folder)}
    compare(f"optimizer's step, {millions:.1f} M parameters", sides | optimizer_sides(model, "compiled"), rounds)


if triton is not None:

    @triton.jit
    def floor_kernel(w, g, m, e, count, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < count
        moving = 0.9 * tl.load(m + at, mask=inside) + tl.load(g + at, mask=inside)
        weight = tl.load(w + at, mask=inside) - 1e-4 * moving
        mean = tl.load(e + at, mask=inside)
        tl.store(m + at, moving, mask=inside)
        tl.store(w + at, weight, mask=inside)
        tl.store(e + at, mean + 1e-5 * (weight - mean), mask=inside)


def launches(run: Callable[[], object]) -> tuple[int, float]:
    """Kernels and copies of one call, and the milliseconds that the GPU is busy with them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    found = [event for event in profile.events() if event.device_type is torch.autograd.DeviceType.CUDA]
    return len(found), sum(event.time_range.elapsed_us() for event in found) / 1e3


def optimizer_on_gpu(model: torch.nn.Module, rounds: int) -> None:
    """The floor's memory is four tensors as long as all parameters together."""
    model, count = model.cuda(), sum(p.numel() for p in model.parameters())
    memory = [torch.zeros(count, device="cuda") for _ in range(4)]

    def lowest(block: int) -> Callable[[], object]:
        grid = (triton.cdiv(count, block),)
        return lambda: floor_kernel[grid](*memory, count, BLOCK=block, num_warps=4, enable_fp_fusion=False)

    sides = {block: lowest(block) for block in (512, 1024, 2048)}
    for run in sides.values():
        run()  # compiled
    best = min(sides, key=lambda block: statistics.median(events(sides[block]) for _ in range(rounds)))
    everything = {f"floor: a loop, blocks of {best}": sides[best]} | optimizer_sides(model, "Triton")
    groups = param_groups(model, weight_decay=2e-5, clipping=0.01)
    fused = FusedStep(torch.optim.SGD(groups, lr=1e-4, momentum=0.9, nesterov=True), EMA(model))
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 0.01
    if not fused.possible():
        raise SystemExit("no step by Triton here")
    everything["FusedStep, as in training"] = lambda: fused.possible() and fused.step().total_fraction
    print(f"{torch.cuda.get_device_name()}, triton {triton.__version__}, {count / 1e6:.1f} M parameters")
    compare("optimizer's step, host and GPU from a GPU at rest", everything, rounds, events)
    for name, run in everything.items():
        number, busy = launches(run)
        print(
            f"  {name:34} {number:5} launches, GPU busy {busy:7.3f} ms, {28e-9 * count / busy:5.2f} TB/s of the floor's"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nfnet_f0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch's; on a shared machine one is the quieter measurement")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(
        f"{os.cpu_count()} cores {platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}; medians of "
        f"{options.rounds} alternating rounds; {options.model}, batch {options.batch}, {options.size} px"
    )
    torch.manual_seed(0)
    model = normfree.create_model(options.model)
    if options.device == "cuda":
        optimizer_on_gpu(model, options.rounds)
        return
    if not kernels.available():
        raise SystemExit(f"no compiled kernels: {kernels.why_off()}")
    shapes = activation_shapes(model, options.batch, options.size)
    for dtype in (torch.float32, torch.bfloat16):
        activations(shapes, dtype, options.rounds)
        standardization(model, dtype, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        optimizer(model, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
