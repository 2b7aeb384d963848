"""A whole training step of NFNets and their relatives, beside timm's and beside the convolutions alone.

    python benchmarks/training.py                      # NFNet-F0, batch 8, 192 px: float32 and bfloat16
    python benchmarks/training.py --batch 1            # any of --size, --rounds, --model, --no-compile, --recompute
    python benchmarks/training.py --device cuda --precision bfloat16 --batch 128 --rounds 20

Forward, cross-entropy, backward, Adaptive Gradient Clipping, SGD with Nesterov momentum, moving average. All sides
alternate in one run; outputs on the same weights are compared first. timm's side is its own: `dm_nfnet_f0`,
`adaptive_clip_grad` on all but the classifier, torch's fused SGD, `ModelEmaV3`. A sample that got less of the
processors than the others (another program ran) is thrown away. The floor is forward and backward of the same
convolutions, nothing else. All sides profit from what `normfree train` does on a CPU: keep freed memory in the process
(`--leave-memory` does not). On a GPU, memory is the most that a step takes beyond weights, momentum and average.
"""

import argparse
import copy
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch import nn

import normfree
from normfree.bench import alternate, image_batch, machine, training_step
from normfree.bench.step import AVERAGE, DECAY, LR, CrossEntropy, memory_format
from normfree.data import Batch
from normfree.nn import SameConv2d, recompute_weights
from normfree.training import keep_freed_memory
from normfree.weights import load_timm

PEERS = {
    "nfnet_f0": ("dm_nfnet_f0", "timm_dm_nfnet_f0"),
    "nfnet_f1": ("dm_nfnet_f1", "timm_dm_nfnet_f1"),
    "nf_resnet50": ("nf_resnet50", "timm_nf_resnet50"),
    "nf_regnet_b0": ("nf_regnet_b0", "timm_nf_regnet_b0"),
}
CLIPPING = 0.01


def passes(model: nn.Module, batch: Batch, precision: str) -> Callable[[], None]:
    """Forward and backward alone."""
    losses = CrossEntropy()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model(batch.images)
        losses.loss(output, batch).backward()

    return step


def timms(model: nn.Module, batch: Batch, precision: str, compiled: bool) -> Callable[[], None]:
    classifier = {id(p) for p in model.get_classifier().parameters()}
    clipped = [p for p in model.parameters() if id(p) not in classifier]
    optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, weight_decay=DECAY, nesterov=True, fused=True)
    ema, network = ModelEmaV3(model, AVERAGE), torch.compile(model) if compiled else model
    images, labels, device = batch.images, batch.labels, batch.images.device.type

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


def sides_of(options: argparse.Namespace, precision: str, batch: Batch) -> dict[str, Callable[[], None]]:
    peer, same = PEERS[options.model]
    form = dict(device=options.device, memory_format=memory_format(options.layout == "channels_last"))
    torch.manual_seed(0)
    theirs, mine = timm.create_model(peer), normfree.create_model(same)
    load_timm(mine, theirs.state_dict())
    with torch.no_grad():
        x = batch.images[:1].cpu()
        a, b = mine.eval()(x), theirs.eval()(x)
    print(f"outputs of {same} and timm's {peer} differ by {((a - b).norm() / b.norm()).item():.1e}")
    released = normfree.create_model(options.model)

    def fresh(model: nn.Module) -> nn.Module:
        return copy.deepcopy(model).train().to(**form)

    settings, sides = dict(clipping=CLIPPING, precision=precision), {}
    for compiled in (False,) if options.no_compile else (False, True):
        word = ", compiled" if compiled else ""
        sides[f"timm{word}"] = timms(fresh(theirs), batch, precision, compiled)
        for name, model in (("normfree", mine), ("released function", released)):
            sides[f"{name}{word}"] = training_step(fresh(model), batch, compiled=compiled, **settings)
    if options.recompute:
        for name, model in (("timm", fresh(theirs)), ("normfree", fresh(mine))):
            model.set_grad_checkpointing(True)
            step = timms(model, batch, precision, False) if name == "timm" else training_step(model, batch, **settings)
            sides[f"{name}, stages recomputed"] = step
        model = fresh(mine)
        recompute_weights(model)
        sides["normfree, weights recomputed"] = training_step(model, batch, **settings)
    for name, model in (("normfree", mine), ("released function", released)):
        sides[f"{name}, forward and backward alone"] = passes(fresh(model), batch, precision)
    sides["the convolutions alone"] = floor(fresh(mine), batch.images, precision, form["memory_format"])
    return sides


def peak(step: Callable[[], None]) -> float:
    """GB that a step takes at its most, on a GPU, beyond what lies there between steps, gradients apart."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


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
    parser.add_argument("--leave-memory", action="store_true", help="do not keep freed memory, as Python would")
    parser.add_argument("--recompute", action="store_true", help="also with all stages, or the weights, computed again")
    options = parser.parse_args()
    kept = not options.leave_memory and keep_freed_memory()
    last = options.layout == "channels_last"
    batch = image_batch(options.batch, options.size, device=options.device, channels_last=last)
    print(f"{options.model}, batch {options.batch}, {options.size} px, {options.layout}, timm {timm.__version__}")
    print(f"freed memory is {'kept' if kept else 'given back'}, for all sides; {machine(options.device)}\n")
    for precision in options.precision:
        sides = sides_of(options, precision, batch)
        samples = alternate(sides, options.rounds, device=options.device)
        medians = {name: some.median for name, some in samples.items()}
        best = min(value for name, value in medians.items() if name.startswith("timm"))
        memory = {name: f" {peak(step):.2f} |" for name, step in sides.items()} if options.device == "cuda" else {}
        print(
            f"\n| {precision} | ms per step | smallest to largest | of timm's best | of the floor | samples |", end=""
        )
        print(" GB |" if memory else "")
        print("|---|---|---|---|---|---|" + "---|" * bool(memory))
        for name, some in samples.items():
            low, high = some.spread
            of = f"{medians[name] / best:.2f} | {medians[name] / medians['the convolutions alone']:.2f}"
            ms = f"{1e3 * medians[name]:.0f} | {1e3 * low:.0f} to {1e3 * high:.0f}"
            print(f"| {name} | {ms} | {of} | {len(some.seconds)} |{memory.get(name, '')}")
        print(flush=True)


if __name__ == "__main__":
    main()
