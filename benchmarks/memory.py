"""Bytes that NFNets keep for the backward pass, the most that live at once, and the largest batch, beside timm's.

    python benchmarks/memory.py [nfnet_f0 nfnet_f3] [--size 192] [--gib 16]

Counted, not timed: every storage that operations make, while it lives (:func:`normfree.bench.step_memory`); on a GPU,
what its allocator counts. Per image: the difference between three images and one, halved; what is left is constant.
The largest batch is what fits beside weights, momentum, average and gradients.
"""

import argparse

import timm
import torch

import normfree
from normfree.bench import image_batch, machine, step_memory
from normfree.nn import recompute_weights
from normfree.weights import load_timm


def measured(model: torch.nn.Module, size: int, precision: str, device: str) -> tuple[list[float], list[float]]:
    """Kept and most: bytes per image, and constant ones."""
    one, three = (step_memory(model, image_batch(n, size, device=device), precision) for n in (1, 3))
    each = [(b - a) / 2 for a, b in zip(one, three, strict=True)]
    return each, [a - e for a, e in zip(one, each, strict=True)]


def networks(name: str, size: int, device: str) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    theirs, ours = timm.create_model(f"dm_{name}"), normfree.create_model(f"timm_dm_{name}")
    load_timm(ours, theirs.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        a, b = ours.eval()(x), theirs.eval()(x)
    print(f"\n{name}: outputs on the same weights differ by {((a - b).norm() / b.norm()).item():.1e}\n")
    return {"timm": theirs.train().to(device), "normfree": ours.train().to(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", default=["nfnet_f0"])
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--gib", type=float, default=16, help="memory for the largest batch")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    print(f"{machine(options.device)}, timm {timm.__version__}, {options.size} px")
    for name in options.name:
        pair = networks(name, options.size, options.device)
        print(
            "| precision | network | kept per image, MB | of timm's | most per image, MB | of timm's | constant, MB |",
            end="",
        )
        print(f" images in {options.gib:g} GiB |\n|---|---|---|---|---|---|---|---|")
        for precision in ("float32", "bfloat16"):
            base = None
            for again in ("", "weights", "stages"):
                for label, model in pair.items():
                    if label == "timm" and again == "weights":
                        continue
                    model.set_grad_checkpointing(again == "stages")
                    recompute_weights(model, again == "weights")
                    (kept, most), (constant, _) = measured(model, options.size, precision, options.device)
                    base = base or (kept, most)
                    own = 4 * sum(p.nbytes for p in model.parameters())  # weights, momentum, average, gradients
                    images = (options.gib * 2**30 - own - constant) / max(kept, most)
                    cells = [f"{kept / 1e6:.1f}", f"{kept / base[0]:.2f}", f"{most / 1e6:.1f}", f"{most / base[1]:.2f}"]
                    cells = [precision, label + (again and f", {again} recomputed"), *cells, f"{constant / 1e6:.0f}"]
                    print(f"| {' | '.join(cells)} | {int(images)} |", flush=True)


if __name__ == "__main__":
    main()
