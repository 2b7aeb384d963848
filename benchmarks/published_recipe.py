"""What others' recipe for speed reaches on your copy of CIFAR-10: the mark to hold ours against.

    python benchmarks/published_recipe.py CIFAR10 [--epochs 9.9] [--images 50000] [--seed 0]

CIFAR10 is a folder with train/CLASS and val/CLASS. Network, optimizer, schedule and augmentation are airbench94's
(Jordan 2024, arXiv:2404.00498), which the paper reports at 94.0 % after 3.6e14 operations on the original images. It
is written here from the paper's description, with BatchNorm, in plain PyTorch. On images that were compressed, it shows
how much of the accuracy is gone before any network sees them. One thread; bfloat16 by autocast.
"""

import argparse
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

BATCH, MOMENTUM, LR, DECAY, BIAS_FACTOR, SMOOTHING = 1024, 0.85, 11.5, 0.0153, 64, 0.2  # per 1024 images
WIDTHS, LOGITS, BATCH_NORM_MOMENTUM, WHITENED = (64, 256, 256), 1 / 9, 0.4, 3  # epochs that train the first bias
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))


def images_of(folder: Path) -> tuple[Tensor, Tensor]:
    """Normalized images (N, 3, 32, 32) and labels."""
    images, labels = [], []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for path in sorted((folder / name).iterdir()):
            images.append(np.asarray(Image.open(path).convert("RGB")))
            labels.append(label)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / STD, torch.tensor(labels)


class Group(nn.Module):
    """Two convolutions with BatchNorm (bias alone), max pooling behind the first."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(outputs, 1e-12, BATCH_NORM_MOMENTUM) for _ in range(2))
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])  # the identity, and noise in what is left
            norm.weight.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Network(nn.Module):
    """Whitened patches, three groups, a linear layer: (N, 3, 32, 32) -> (N, 10)."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        nn.init.zeros_(self.whiten.bias)
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors.T / torch.sqrt(values[:, None] + 5e-4)).flip(0).view(12, 3, 2, 2)
        self.whiten.weight = nn.Parameter(torch.cat([filters, -filters]), requires_grad=False)
        widths = (24, *WIDTHS)
        self.groups = nn.Sequential(*(Group(a, b) for a, b in zip(widths, WIDTHS, strict=False)))
        self.head = nn.Linear(WIDTHS[-1], 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.groups(F.gelu(self.whiten(x))), 3).flatten(1)) * LOGITS


def optimizer_of(model: Network) -> torch.optim.SGD:
    """Biases of BatchNorm learn 64 times as fast; the loss is a sum over the batch."""
    lr, decay = LR / (1024 * (1 + 1 / (1 - MOMENTUM))), DECAY * BATCH / (1024 * (1 + 1 / (1 - MOMENTUM)))
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast, slow = ([p for name, p in named if ("norm" in name) == chosen] for chosen in (True, False))
    groups = [
        dict(params=params, lr=lr * factor, peak=lr * factor, weight_decay=decay / (lr * factor))
        for params, factor in ((fast, BIAS_FACTOR), (slow, 1))
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


class Lookahead:
    """Every five steps the weights move to an average, which follows them more and more slowly."""

    def __init__(self, model: nn.Module, steps: int):
        self.model, self.steps = model, steps
        self.average = {name: value.clone() for name, value in model.state_dict().items()}

    def update(self, decay: float) -> None:
        for name, value in self.model.state_dict().items():
            if value.dtype.is_floating_point:
                value.copy_(self.average[name].lerp_(value, 1 - decay))

    def after(self, step: int) -> None:
        if step % 5 == 0:
            self.update(0.95**5 * (step / self.steps) ** 3)


def augmented(padded: Tensor, chosen: Tensor, mirrored: Tensor) -> Tensor:
    """Crops at random places, mirrored in every other epoch."""
    corners = torch.randint(0, 5, (len(chosen), 2)).tolist()
    crops = torch.stack([padded[i, :, y : y + 32, x : x + 32] for i, (y, x) in zip(chosen, corners, strict=True)])
    crops = torch.where(mirrored.view(-1, 1, 1, 1), crops.flip(3), crops)
    return crops.contiguous(memory_format=torch.channels_last)


def train(model: Network, images: Tensor, labels: Tensor, epochs: float) -> None:
    per_epoch = len(images) // BATCH
    steps = math.ceil(epochs * per_epoch)
    optimizer, lookahead = optimizer_of(model), Lookahead(model, steps)
    rates = np.interp(np.arange(steps), [0, int(0.23 * steps), steps], [0.2, 1, 0.07])
    padded, flip = F.pad(images, (2,) * 4, "reflect"), torch.rand(len(images)) < 0.5
    start = time.process_time()
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        if position == 0:
            order = torch.randperm(len(images))
            model.whiten.bias.requires_grad = epoch < WHITENED
        chosen = order[position * BATCH : (position + 1) * BATCH]
        inputs = augmented(padded, chosen, flip[chosen] ^ bool(epoch % 2))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=SMOOTHING, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rates[step]
        optimizer.step()
        lookahead.after(step + 1)
        if position == per_epoch - 1:
            seconds = time.process_time() - start
            print(f"epoch {epoch + 1}: loss {loss.item() / BATCH:.3f}, {seconds:.0f} s of the processor", flush=True)
    lookahead.update(1.0)


@torch.no_grad()
def accuracy(model: Network, images: Tensor, labels: Tensor) -> float:
    """Percent; the mean over six views: mirrored, and shifted by a pixel (which counts half)."""
    model.eval()
    right = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        edge = F.pad(x, (1,) * 4, "reflect")
        views = [(x, 0.5), (edge[:, :, :32, :32], 0.25), (edge[:, :, 2:, 2:], 0.25)]
        with torch.autocast("cpu", torch.bfloat16):
            logits = sum(weight * (model(view).float() + model(view.flip(3)).float()) for view, weight in views)
        right += int((logits.argmax(1) == y).sum())
    return 100 * right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, metavar="CIFAR10")
    parser.add_argument("--epochs", type=float, default=9.9)
    parser.add_argument("--images", type=int, default=50_000, help="of the training images, at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    images, labels = images_of(options.cifar10 / "train")
    part = torch.randperm(len(images))[: options.images]
    images, labels = images[part], labels[part]
    model = Network(images[:5000]).to(memory_format=torch.channels_last)
    train(model, images, labels, options.epochs)
    print(f"test accuracy {accuracy(model, *images_of(options.cifar10 / 'val')):.2f} %")


if __name__ == "__main__":
    main()
