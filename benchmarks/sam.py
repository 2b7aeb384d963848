"""What Sharpness-Aware Minimization costs: `python benchmarks/sam.py`, two minutes.

A training step (forward, backward, AGC, SGD, EMA) without it, with it on a fifth and on all of the batch, alternate in
one run on copies of one network.
"""

import argparse
import copy

import torch

import normfree
from normfree.bench import alternate, image_batch, machine
from normfree.bench.step import CrossEntropy
from normfree.optim import EMA, SAM, OptimConfig
from normfree.training import TrainStep


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
    batch = image_batch(options.batch, options.size, channels_last=False)
    samples = alternate({name: lambda step=step: step(batch, 1e-4) for name, step in steps.items()}, options.rounds)
    print(f"{options.model}, batch {options.batch}, {options.size} px, {options.rounds} rounds; {machine()}")
    for name, some in samples.items():
        low, high = some.spread
        ratio = some.median / samples["without"].median
        print(f"  ascent on {name:8} {some.median:7.3f} s ({low:.3f} to {high:.3f})  ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
