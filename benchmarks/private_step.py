"""A private training step beside an ordinary one, and beside Opacus on a ResNet with GroupNorm of equal size.

    python benchmarks/private_step.py                                  # nf_resnet50, batch 64, 224 px: 20 GB, minutes
    python benchmarks/private_step.py --batch 8 --size 64 --rounds 3   # a quick look
    python benchmarks/private_step.py --device cuda --rounds 20 --precision bfloat16
    python benchmarks/private_step.py --no-opacus

Forward and backward pass, SGD with momentum; the private ones also clip each image's gradient and add noise. All sides
alternate in one run. Memory is the most that lives at once beyond weights and momentum: every storage that operations
make (:class:`normfree.training.memory.Allocated`), on a GPU what its allocator counts. Opacus cannot take networks that
fold scalars into their layers, so its side is torchvision's ResNet with GroupNorm, of the same depths; its own ordinary
step stands beside it.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

import normfree
from normfree.bench import alternate, image_batch, machine
from normfree.bench.step import LR, CrossEntropy
from normfree.data import Batch
from normfree.optim import OptimConfig
from normfree.private import Ledger, PrivateConfig
from normfree.training import TrainStep, keep_freed_memory
from normfree.training.memory import Allocated
from normfree.training.private_step import PrivateStep
from normfree.training.step import autocast

DEPTHS = dict(nf_resnet50=(3, 4, 6, 3), nf_resnet101=(3, 4, 23, 3))
NORM, NOISE = 1.0, 1.0
Step = Callable[[], object]


def ours(options: argparse.Namespace, batch: Batch, views: int = 1) -> dict[str, Step]:
    """Ordinary and private steps of a Normalizer-Free network."""
    steps: dict[str, Step] = {}
    for name in ("ordinary", "private"):
        torch.manual_seed(0)
        depths = dict(depths=options.depths) if options.depths else {}
        model = normfree.create_model(options.model, num_classes=1000, drop_rate=0.0, skip_gain=0.5, **depths)
        model = model.train().to(options.device, memory_format=layout(options))
        optimizer = OptimConfig(clipping=None, weight_decay=0.0).build(model)
        how = dict(precision=options.precision)
        if name == "ordinary":
            step = TrainStep(model, CrossEntropy(), optimizer, **how)
        else:
            config = PrivateConfig(epsilon=1e9, max_norm=NORM, noise_multiplier=NOISE, augmentations=views)
            step = PrivateStep(
                model, CrossEntropy(), optimizer, ledger=Ledger(config, 0.01), batch_size=len(batch), seed=0, **how
            )
            step.verified = True
        steps[name] = partial(step, batch, LR)
    return steps


class Block(Bottleneck):
    """Without operations in place, which hooks do not allow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + identity)


def theirs(options: argparse.Namespace, batch: Batch) -> dict[str, Step]:
    """Ordinary steps of a ResNet with GroupNorm, and those of Opacus."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    steps: dict[str, Step] = {}
    for name in ("GroupNorm, ordinary", "GroupNorm, Opacus"):
        torch.manual_seed(0)
        model = ResNet(Block, list(options.depths or DEPTHS[options.model]), norm_layer=partial(nn.GroupNorm, 32))
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        model = model.train().to(options.device, memory_format=layout(options))
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True)
        if "Opacus" in name:
            model = GradSampleModule(model)
            how = dict(noise_multiplier=NOISE, max_grad_norm=NORM, expected_batch_size=len(batch))
            optimizer = DPOptimizer(optimizer, **how)
        steps[name] = partial(plain_step, model, optimizer, batch, options.precision)
    return steps


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, precision: str) -> None:
    optimizer.zero_grad(set_to_none=True)
    with autocast(batch.images.device, precision):
        output = model(batch.images)
    F.cross_entropy(output.float(), batch.labels).backward()
    optimizer.step()


def layout(options: argparse.Namespace) -> torch.memory_format:
    last = options.precision == "bfloat16" or options.device == "cuda"
    return torch.channels_last if last else torch.contiguous_format


def most(step: Step, device: str) -> int:
    """Bytes that live at once in a step, momentum being there already."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with Allocated() as allocated:
        step()
    return allocated.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nf_resnet50", choices=tuple(DEPTHS))
    parser.add_argument("--depths", type=int, nargs=4, help="other numbers of blocks, for a smaller network")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--opacus", default=True, action=argparse.BooleanOptionalAction)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    last = layout(options) == torch.channels_last
    batch = image_batch(options.batch, options.size, device=options.device, channels_last=last)
    steps = ours(options, batch) | (theirs(options, batch) if options.opacus else {})
    memory = {name: most(step, options.device) for name, step in steps.items()}
    times = alternate(steps, options.rounds, device=options.device, warmup=1)
    print(f"{options.model} {options.depths or ''}, batch {options.batch}, {options.size} px, {options.precision}")
    print(f"{options.rounds} rounds; {machine(options.device)}\n")
    print("| step | seconds | of ordinary | memory, MB | of ordinary |\n|---|---|---|---|---|")
    for name in steps:
        base = "GroupNorm, ordinary" if "GroupNorm" in name else "ordinary"
        low, high = times[name].spread
        cells = [
            f"{times[name].median:.2f} ({low:.2f} to {high:.2f})",
            f"{times[name].median / times[base].median:.2f}",
        ]
        cells += [f"{memory[name] / 1e6:,.0f}", f"{memory[name] / memory[base]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
