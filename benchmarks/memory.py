"""Bytes per image that NFNet-F0 keeps for the backward pass, and the most that live at once, beside timm's.

    python benchmarks/memory.py [--size 192]

Counted, not timed: every storage that operations make, while it lives (:class:`normfree.training.memory.Allocated`).
Per image: the difference between three images and one, halved.
"""

import argparse
import datetime
import platform

import timm
import torch

import normfree
from normfree.training.memory import Allocated
from normfree.weights import load_timm


def bytes_of(model: torch.nn.Module, images: int, size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Kept after the forward pass, and the most at any time until the end of the backward pass."""
    x = torch.randn(images, 3, size, size)
    with Allocated() as allocated, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model(x)
        kept = allocated.now
        output.float().square().mean().backward()
    model.zero_grad(set_to_none=True)
    return kept, allocated.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=192)
    size = parser.parse_args().size
    torch.manual_seed(0)
    theirs, ours = timm.create_model("dm_nfnet_f0"), normfree.create_model("timm_dm_nfnet_f0")
    load_timm(ours, theirs.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        a, b = ours.eval()(x), theirs.eval()(x)
    print(f"{platform.machine()}, torch {torch.__version__}, timm {timm.__version__}, {datetime.date.today()}")
    print(f"outputs on the same weights differ by {((a - b).norm() / b.norm()).item():.1e}\n")
    ours.train(), theirs.train()
    print(f"| {size} px | network | kept per image, MB | of timm's | most per image, MB | of timm's |")
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        rows = {}
        for name, model in (("timm dm_nfnet_f0", theirs), ("normfree timm_dm_nfnet_f0", ours)):
            one, three = (bytes_of(model, images, size, dtype) for images in (1, 3))
            rows[name] = [(b - a) / 2e6 for a, b in zip(one, three, strict=True)]
        for name, row in rows.items():
            (kept, a), (most, b) = ((x, x / base) for x, base in zip(row, rows["timm dm_nfnet_f0"], strict=True))
            print(f"| {str(dtype).removeprefix('torch.')} | {name} | {kept:.1f} | {a:.2f} | {most:.1f} | {b:.2f} |")


if __name__ == "__main__":
    main()
