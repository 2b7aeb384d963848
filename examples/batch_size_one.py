"""Segmentation, depth and detection one image at a time, with BatchNorm in the backbone and without: a table.

    python examples/batch_size_one.py [segmentation depth detection] [--seeds 3] [--batches 1 8]

The demo recipes with their own network and with a BatchNorm ResNet of the same widths and depths (whose heads are the
same, without normalization). The learning rate is the recipe's times batch size over the recipe's; epochs are the
recipe's, so that all see the same images equally often. Held-out scenes, averaged weights.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from normfree import RunFailed, runs
from normfree.recipes import load_recipe

SCORES = {"segmentation": "miou", "depth": "delta1", "detection": "ap50"}
CONTROL = "bn_resnet50"
ALONE = ("skip_gain", "alpha")  # options that a network with BatchNorm does not have


def train(task: str, batch: int, control: bool, seed: int, folder: Path) -> float:
    """The score of one run; 0 of one that diverges."""
    own = load_recipe(f"demo_{task}")
    changes = {"train.seed": seed, "train.batch_size": batch, "optim.lr": own.optim.lr * batch / own.train.batch_size}
    # so many images in the average's memory as in the recipe's
    changes["optim.ema_decay"] = own.optim.ema_decay ** (batch / own.train.batch_size)
    if control:
        options = {name: value for name, value in own.model.options.items() if name not in ALONE}
        changes |= {"model.name": CONTROL, "model.options": options}
    try:
        last = runs.train(f"demo_{task}", changes, out=str(folder)).summary.last
    except RunFailed as error:
        print(f"{task}, batch {batch}, {'BatchNorm' if control else 'normalizer-free'}, seed {seed}: {error}")
        return 0.0
    score = last[f"ema_{SCORES[task]}"]
    print(
        f"{task}, batch {batch}, {'BatchNorm' if control else 'normalizer-free'}, seed {seed}: {score:.3f} "
        f"(raw weights {last[SCORES[task]]:.3f})",
        flush=True,
    )
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", default=list(SCORES), help="segmentation, depth, detection; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in options.task:
            for batch in options.batches:
                cells = []
                for control in (False, True):
                    place = lambda seed: Path(folder) / f"{task}-{batch}-{control}-{seed}"  # noqa: E731,B023
                    scores = [train(task, batch, control, seed, place(seed)) for seed in range(options.seeds)]
                    cells.append(f"{statistics.mean(scores):.3f} ({', '.join(f'{score:.3f}' for score in scores)})")
                rows.append(f"| {task} ({SCORES[task]}) | {batch} | {cells[0]} | {cells[1]} |")
    print("\n| | images per step | normalizer-free | BatchNorm |\n|---|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
