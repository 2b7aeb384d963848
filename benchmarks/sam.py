"""What Sharpness-Aware Minimization costs: `python benchmarks/sam.py`, two minutes.

A training step (forward, backward, AGC, SGD, EMA) without it, with it on a fifth and on all of the batch, alternate in
one run on copies of one network.
"""

import argparse
import copy
import platform
import statistics
import time

import torch

import normfree
from normfree.data import Batch
from normfree.optim import EMA, SAM, OptimConfig
from normfree.training import TrainStep


class CrossEntropy:
    def loss(self, output, batch):
        return torch.nn.functional.cross_entropy(output, batch.labels)

    def correct(self, output, batch):
        return (output.argmax(1) == batch.labels).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nfnet_f0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = normfree.create_model(options.model, skip_gain=0.5).train()
    steps = {}
    for name, fraction in (("without", None), ("a fifth", 0.2), ("all", 1.0)):
        own = copy.deepcopy(model)
        sam = None if fraction is None else SAM(own.parameters(), fraction=fraction)
        steps[name] = TrainStep(own, CrossEntropy(), OptimConfig().build(own), ema=EMA(own), sam=sam)
    images = torch.randn(options.batch, 3, options.size, options.size)
    batch = Batch(images, torch.arange(options.batch), torch.arange(options.batch))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step(batch, 1e-4)
            if number:  # the first is the warm-up
                times[name].append(time.perf_counter() - begun)
    print(f"{options.model}, batch {options.batch}, {options.size} px, {options.rounds} rounds")
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(spent, times["without"], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  ascent on {name:8} {statistics.median(spent):7.3f} s  ratio {ratio}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
