"""A whole training step of NFNets and their relatives, beside timm's and beside the convolutions alone.

    python benchmarks/training.py                      # NFNet-F0, batch 8, 192 px: float32 and bfloat16
    python benchmarks/training.py --batch 1            # any of --size, --rounds, --model, --device cuda, --no-compile

Forward, cross-entropy, backward, Adaptive Gradient Clipping, SGD with Nesterov momentum, moving average. All sides
alternate in one run; outputs on the same weights are compared first. timm's side is its own: `dm_nfnet_f0`,
`adaptive_clip_grad` on all but the classifier, torch's fused SGD, `ModelEmaV3`. A sample that got less of the
processors than the others (another program ran) is thrown away. The floor is forward and backward of the same
convolutions, nothing else.
"""

import argparse
import copy
import datetime
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import nn

import normfree
from normfree import kernels
from normfree.data import Batch
from normfree.nn import SameConv2d
from normfree.optim import EMA, OptimConfig
from normfree.training import TrainStep
from normfree.weights import load_timm

PEERS = {
    "nfnet_f0": ("dm_nfnet_f0", "timm_dm_nfnet_f0"),
    "nfnet_f1": ("dm_nfnet_f1", "timm_dm_nfnet_f1"),
    "nf_resnet50": ("nf_resnet50", "timm_nf_resnet50"),
    "nf_regnet_b0": ("nf_regnet_b0", "timm_nf_regnet_b0"),
}
LR, DECAY, CLIPPING, AVERAGE = 1e-3, 2e-5, 0.01, 0.9999


class CrossEntropy:
    def loss(self, output, batch):
        return F.cross_entropy(output.float(), batch.labels)

    def correct(self, output, batch):
        return (output.argmax(1) == batch.labels).sum()


def ours(model: nn.Module, images, labels, precision: str, compiled: bool) -> Callable[[], None]:
    optim = OptimConfig(clipping=CLIPPING, weight_decay=DECAY)
    step = TrainStep(
        model, CrossEntropy(), optim.build(model), ema=EMA(model, AVERAGE), precision=precision, compiled=compiled
    )
    batch = Batch(images, labels, labels)
    return lambda: step(batch, LR)


def timms(model: nn.Module, images, labels, precision: str, compiled: bool) -> Callable[[], None]:
    classifier = {id(p) for p in model.get_classifier().parameters()}
    clipped = [p for p in model.parameters() if id(p) not in classifier]
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=DECAY, nesterov=True, fused=True)
    ema, network = ModelEmaV3(model, AVERAGE), torch.compile(model) if compiled else model
    device = images.device.type

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            output = network(images)
        F.cross_entropy(output.float(), labels).backward()
        adaptive_clip_grad(clipped, CLIPPING)
        optimizer.step()
        ema.update(model)

    return step


def floor(model: nn.Module, images, precision: str, layout: torch.memory_format) -> Callable[[], None]:
    """Forward and backward of the network's convolutions at the sizes they run at, each by itself."""
    calls, hooks = [], []

    def note(layer: SameConv2d, args: tuple, output: torch.Tensor) -> None:
        x, padding = layer._pad(args[0].detach())
        geometry = (layer.stride, padding, layer.dilation, layer.groups)
        calls.append((x.shape, layer.weight.shape, geometry, bool(args[0].requires_grad), output.shape))

    for layer in model.modules():
        if isinstance(layer, SameConv2d):
            hooks.append(layer.register_forward_hook(note))
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        model(images)
    for hook in hooks:
        hook.remove()
    dtype = getattr(torch, precision)
    made = []
    for x, weight, geometry, needs, out in calls:
        make = lambda shape: torch.randn(shape, device=images.device).to(dtype, memory_format=layout)  # noqa: E731
        leaf = (
            make(x).requires_grad_(needs),
            make(weight).requires_grad_(),
            torch.zeros(weight[0], device=images.device),
        )
        made.append((*leaf[:2], leaf[2].to(dtype).requires_grad_(), geometry, make(out)))

    def step() -> None:
        for x, weight, bias, geometry, grad in made:
            wanted = [t for t in (x, weight, bias) if t.requires_grad]
            torch.autograd.grad(F.conv2d(x, weight, bias, *geometry), wanted, grad)

    return step


def compare(sides: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds per step, sides alternating; samples that had too little of the processors are left out."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for step in sides.values():
        step(), step()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            wait()
            begun, worked = time.perf_counter(), time.process_time()
            step()
            wait()
            spent = time.perf_counter() - begun
            samples[name].append((spent, (time.process_time() - worked) / spent))
    kept = {}
    for name, some in samples.items():
        usual = statistics.median(share for _, share in some)
        kept[name] = (
            [spent for spent, share in some if share > 0.9 * usual] if device == "cpu" else [s for s, _ in some]
        )
    return kept


def sides_of(name: str, images, labels, precision: str, layout, compile_too: bool) -> dict[str, Callable[[], None]]:
    peer, same = PEERS[name]
    device = images.device
    build = lambda make: make().train().to(device, memory_format=layout)  # noqa: E731
    torch.manual_seed(0)
    theirs = timm.create_model(peer)
    mine = normfree.create_model(same)
    load_timm(mine, theirs.state_dict())
    with torch.no_grad():
        x = images[:1].cpu()
        a, b = mine.eval()(x), theirs.eval()(x)
    print(f"outputs of {same} and timm's {peer} differ by {((a - b).norm() / b.norm()).item():.1e}")
    sides = {}
    copies = {"timm": theirs, "normfree": mine, "normfree, released function": normfree.create_model(name)}
    for compiled in (False, True) if compile_too else (False,):
        for label, model in copies.items():
            step = timms if label == "timm" else ours
            fresh = build(lambda model=model: copy.deepcopy(model))
            sides[f"{label}{', compiled' if compiled else ''}"] = step(fresh, images, labels, precision, compiled)
    sides["the convolutions alone"] = floor(build(lambda: mine), images, precision, layout)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PEERS, default="nfnet_f0")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--layout", default="channels_last", choices=("contiguous", "channels_last"))
    parser.add_argument("--no-compile", action="store_true", help="eager sides only")
    options = parser.parse_args()
    layout = torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
    shape = (options.batch, 3, options.size, options.size)
    images = torch.randn(shape).to(options.device, memory_format=layout)
    labels = torch.arange(options.batch, device=options.device)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{options.model}, batch {options.batch}, {options.size} px, {options.layout}, {where}, {platform.machine()} "
        f"({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}, timm {timm.__version__}, "
        f"kernels {kernels.why_off() or 'on'}, {datetime.date.today()}\n"
    )
    for precision in options.precision:
        sides = sides_of(options.model, images, labels, precision, layout, not options.no_compile)
        times = compare(sides, options.rounds, options.device)
        medians = {name: statistics.median(spent) for name, spent in times.items()}
        best = min(value for name, value in medians.items() if name.startswith("timm"))
        print(f"\n| {precision} | ms per step | smallest to largest | of timm's best | of the floor | samples |")
        print("|---|---|---|---|---|---|")
        for name, spent in times.items():
            ends = f"{1e3 * min(spent):.0f} to {1e3 * max(spent):.0f}"
            of = f"{medians[name] / best:.2f} | {medians[name] / medians['the convolutions alone']:.2f}"
            print(f"| {name} | {1e3 * medians[name]:.0f} | {ends} | {of} | {len(spent)} |")
        print()


if __name__ == "__main__":
    main()
