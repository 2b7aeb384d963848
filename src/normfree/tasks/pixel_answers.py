"""Predictions of segmentation and depth: pictures, label images, depth maps."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..data.masks import MaskValues
from ..data.pairs import MILLIMETRES
from ..data.pixels import PixelTransform
from ..data.resize import pixels_of
from ..pictures.sheets import LEGEND_CLASSES, depth_sheet, mask_sheet
from ..training import pick_device
from .answers import Answers, Asked, PredictOptions, make_folder, writing
from .trained import ReadyNetwork, Trained, view_of

MIN_DEPTH = 1e-3  # metres: smaller predictions are clamped to it in the metrics
MAX_DEPTH = 65_535 / MILLIMETRES  # metres that a depth map of 16 bits can hold


@dataclass(frozen=True)
class Pixels:
    """A network with outputs for each pixel.

    Attributes:
        task: "segmentation" or "depth"; names: of its classes, or empty.
        channels, value_range: of the images.
        view: from an image (C, H, W) uint8 to the network's input.
        look: from a batch of inputs and their images to pairs of the image to draw, (C, H, W) uint8, and its outputs
            (outputs, H, W).
    """

    task: str
    names: list[str]
    channels: int
    view: Callable[[Tensor], Tensor]
    look: Callable[[Tensor, Sequence[Tensor]], list[tuple[Tensor, Tensor]]]
    value_range: tuple[float, ...] | None = None


def pixels_of_network(network: ReadyNetwork, options: PredictOptions) -> Pixels:
    """A trained network, which takes whole images, or an exported file, which takes the centre of images."""
    if network.trained is None:
        return _exported(network)
    if options.size is not None:
        network.trained.recipe.data.short_side = options.size
    return _trained(network.trained, options.device)


def _trained(trained: Trained, device: str) -> Pixels:
    target, view = pick_device(device), trained.transform
    model = trained.model.to(target)

    def look(seen: Tensor, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        with torch.inference_mode():
            outputs = model(seen.to(target)).float().cpu()
        sizes = [image.shape[-2:] for image in images]
        pairs = zip(images, outputs.split(1), sizes, strict=True)
        return [
            (image, F.interpolate(one, size, mode="bilinear", align_corners=False)[0]) for image, one, size in pairs
        ]

    data = trained.recipe.data
    return Pixels(
        trained.task.kind,
        trained.names,
        data.channels,
        view.whole,
        look,
        None if isinstance(data.value_range, str) else data.value_range,
    )


def _exported(file: ReadyNetwork) -> Pixels:
    about = file.preprocessing
    assert about is not None  # every exported file has it
    view = view_of(about)
    assert isinstance(view, PixelTransform)

    def look(seen: Tensor, images: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        centres = [pixels_of(one, about.mean, about.std) for one in seen]
        return list(zip(centres, file.run(seen), strict=True))

    return Pixels(file.task.kind, list(file.classes or ()), about.channels, view.view, look, about.levels)


class Pictures:
    """Pictures of predictions, in --out or in the folder of the network.

    None are drawn if another option for output files is given and --out is not.
    """

    def __init__(self, task: str, options: PredictOptions):
        network, self.task, self.folder = Path(options.network), task, None
        if options.out or not (options.masks or options.depths or options.boxes):
            self.folder = make_folder("out", options.out or (network if network.is_dir() else Path()) / "predictions")

    def save(self, item: Asked, draw: Callable[[], Image.Image]) -> dict[str, str]:
        """Draw and save a picture; returns its path for the result."""
        if self.folder is None:
            return {}
        path = self.folder / f"{item.name}_{self.task}.png"
        save(draw(), path)
        return dict(picture=str(path))

    def finish(self) -> list[str]:
        return [] if self.folder is None else [f"  pictures in {self.folder}"]


def save(image: Image.Image, path: Path) -> None:
    """Write an image file.

    Raises:
        RunFailed: it cannot be written.
    """
    try:
        image.save(path)
    except OSError as error:  # on a full disk, Pillow's message does not name the file
        raise writing(path, error) from error


class MaskAnswers(Answers):
    """The class of each pixel.

    Args:
        values: pixel values of the classes in label images.
        options: of the command line.
    """

    def __init__(self, network: Pixels, values: MaskValues, options: PredictOptions):
        self.network, self.values, self.channels = network, values, network.channels
        self.value_range, self.names, self.counts = network.value_range, network.names, Counter()
        self.pictures, self.picture_ending = Pictures(network.task, options), f"_{network.task}.png"
        self.folder = make_folder("masks", options.masks) if options.masks else None

    def view(self, image: Tensor) -> Tensor:
        return self.network.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        outputs = self.network.look(seen, images)
        self.names = self.names or [str(number) for number in range(len(outputs[0][1]))]
        self.columns = self.names
        return [(image, output.argmax(0)) for image, output in outputs]

    def tell(self, item: Asked, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        image, mask = answer
        counts = torch.bincount(mask.flatten(), minlength=len(self.names))
        present = [i for i in counts.argsort(descending=True, stable=True).tolist() if counts[i]]
        shares = {self.names[i]: round(int(counts[i]) / mask.numel(), 6) for i in present}
        self.counts.update(shares)
        result = self.pictures.save(item, lambda: mask_sheet(image, mask, self.names, counts, present))
        if self.folder:
            path = self.folder / f"{item.name}.png"
            save(self.values.image(mask), path)
            result["mask"] = str(path)
        return result | dict(classes=shares)

    def lines(self, result: dict[str, Any]) -> list[str]:
        shares = [f"  {share:7.2%}  {name}" for name, share in result["classes"].items()]
        return [result["path"], *shares, *_files(result)]

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [result["classes"].get(name, 0) for name in self.names]

    def finish(self) -> list[str]:
        total = sum(self.counts.values())  # the shares of each image add up to 1
        lines = [f"  {share / total:7.2%}  {name}" for name, share in self.counts.most_common(LEGEND_CLASSES)]
        masks = [f"  masks in {self.folder}"] if self.folder else []
        return [*lines, *self.pictures.finish(), *masks]


class DepthAnswers(Answers):
    """The distance of each pixel in metres."""

    columns = ("nearest", "farthest", "median")

    def __init__(self, network: Pixels, options: PredictOptions):
        self.network, self.channels, self.range = network, network.channels, (float("inf"), 0.0)
        self.value_range, self.pictures = network.value_range, Pictures(network.task, options)
        self.picture_ending = f"_{network.task}.png"
        self.folder = make_folder("depths", options.depths) if options.depths else None

    def view(self, image: Tensor) -> Tensor:
        return self.network.view(image)

    def ask(self, seen: Tensor, images: Sequence[Tensor]) -> Sequence[tuple[Tensor, Tensor]]:
        return [(image, output[0].clamp(min=MIN_DEPTH)) for image, output in self.network.look(seen, images)]

    def tell(self, item: Asked, answer: tuple[Tensor, Tensor]) -> dict[str, Any]:
        image, depth = answer
        low, high = depth.min().item(), depth.max().item()
        self.range = min(low, self.range[0]), max(high, self.range[1])
        result = self.pictures.save(item, lambda: depth_sheet(image, depth))
        if self.folder:
            result["depth"] = str(save_depth(depth, self.folder / item.name))
        metres = dict(nearest=round(low, 4), farthest=round(high, 4), median=round(depth.median().item(), 4))
        return result | dict(metres=metres)

    def lines(self, result: dict[str, Any]) -> list[str]:
        metres = "  {nearest:.2f} to {farthest:.2f} m, median {median:.2f} m".format(**result["metres"])
        return [result["path"], metres, *_files(result)]

    def rows(self, result: dict[str, Any]) -> Iterator[Sequence[Any]]:
        yield [result["metres"][name] for name in self.columns]

    def finish(self) -> list[str]:
        depths = [f"  depths in {self.folder}"] if self.folder else []
        return ["  {:.2f} to {:.2f} m".format(*self.range), *self.pictures.finish(), *depths]


def save_depth(depth: Tensor, path: Path) -> Path:
    """Write metres (H, W) as "depth:PATH" reads them; returns the file: PATH.png, 16 bits of millimetres.

    If a pixel is too far for 16 bits, it is PATH.npy, in metres.
    """
    if depth.max() <= MAX_DEPTH:
        path = path.with_name(f"{path.name}.png")
        save(Image.fromarray((depth * MILLIMETRES).round().numpy().astype(np.uint16)), path)
        return path
    path = path.with_name(f"{path.name}.npy")
    try:
        np.save(path, depth.numpy())
    except OSError as error:
        raise writing(path, error) from error
    return path


def _files(result: dict[str, Any]) -> list[str]:
    """Lines about the files that were written for an image."""
    return [f"  {kind} {result[kind]}" for kind in ("picture", "mask", "depth") if kind in result]
