"""In which order an epoch goes through the images."""

import torch
from torch import Tensor


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many indices as there are images, every class equally often: (N,) int64, in random order.

    Counts of two classes differ by at most one, and so do those of two images of a class: a rare class is gone through
    several times, and of a frequent one each epoch takes other images.

    Args:
        labels: (N,) int64 of the images.
    """
    grouped = torch.argsort(labels, stable=True)
    counts = labels[grouped].unique_consecutive(return_counts=True)[1].tolist()
    wanted = torch.full((len(counts),), len(labels) // len(counts))
    wanted[torch.randperm(len(counts), generator=generator)[: len(labels) % len(counts)]] += 1
    chosen = []
    for indices, number in zip(grouped.split(counts), wanted.tolist(), strict=True):
        rounds = -(-number // len(indices))
        orders = [torch.randperm(len(indices), generator=generator) for _ in range(rounds)]
        chosen.append(indices[torch.cat(orders)[:number]] if orders else indices[:0])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]
