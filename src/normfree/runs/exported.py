"""Exported files: opening them, and measuring one as the network that it is from."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..export import Deployed, open_archive, open_onnx
from ..export.description import VECTORS
from ..recipes import Recipe
from ..tasks import task_of
from ..words import tell
from .foreign import UNSAID, class_names, recipe_from

ONNX, ARCHIVE = ".onnx", ".pt2"
# fields of a recipe that say how true answers are stored, and their sections
TARGETS = dict(mask_values="data", mask_ignored="data", target_mean="task", target_std="task")


def open_exported(path: str, device: torch.device) -> Deployed:
    """An ONNX file (on the CPU), or an archive of ``torch.export``.

    Raises:
        UsageError: it cannot be opened, or was not written by ``normfree export``.
    """
    deployed = open_onnx(path) if Path(path).suffix == ONNX else open_archive(path, device)
    if not deployed.sealed:
        tell(f"{path} has no checksum, as files of earlier versions; whether it is whole is not known", file=sys.stderr)
    return deployed


class ExportedNet(nn.Module):
    """An exported file as a module: (N, C, H, W) -> (N, *outputs) in float32, on the images' device."""

    def __init__(self, path: str):
        super().__init__()
        self.path, self.file = path, open_exported(path, torch.device("cpu"))

    def forward(self, images: Tensor) -> Tensor:
        about = self.file.description
        if tuple(images.shape[1:]) != about.preprocessing.shape:
            shapes = ("x".join(map(str, shape)) for shape in (about.preprocessing.shape, images.shape[1:]))
            raise UsageError(f"{self.path} was exported for images of {' pixels, not '.join(shapes)}")
        step = about.batch or len(images)
        parts = [self._run(part, step) for part in images.cpu().split(step)]
        return torch.cat(parts).to(images.device)

    def _run(self, images: Tensor, batch: int) -> Tensor:
        """A part of the images; of a last one that is too small, the first image is repeated behind it."""
        lacking = batch - len(images)
        full = torch.cat([images, images[:1].expand(lacking, *images.shape[1:])]) if lacking else images
        return self.file.run(full.contiguous())[: len(images)]


def exported_recipe(network: ExportedNet) -> tuple[Recipe, list[str], list[str]]:
    """How the file's images are prepared, as a recipe; folders and names of its classes.

    Raises:
        UsageError: a file whose description is too old, or not right.
    """
    about = network.file.description
    shape = about.preprocessing
    multi = about.task == "multi-label"
    fields: dict[str, Any] = {"model.name": about.model, "data.crop": "none"}
    fields |= {"task.name": "classification", "task.labels": "multi"} if multi else {"task.name": about.task}
    if unknown := about.targets.keys() - TARGETS.keys():
        raise UsageError(
            f"{network.path} was written by another version of normfree: targets have {min(unknown)!r:.40}"
        )
    fields |= {f"{TARGETS[name]}.{name}": value for name, value in about.targets.items()}
    fields |= {"data.source": UNSAID, "data.channels": shape.channels, "data.test_size": shape.size}
    fields |= {
        "data.image_size": shape.size,
        "data.mean": list(shape.mean),
        "data.std": list(shape.std),
        "data.resize_margin": shape.resize_margin,
    }
    fields["data.value_range"] = shape.value_range and list(shape.value_range)
    if about.task in VECTORS:
        fields["data.test_crop"] = shape.resize
    else:
        fields |= {"data.test_width": shape.width, "data.short_side": shape.short_side}
    recipe = recipe_from(fields)
    if about.task == "regression" and recipe.task.target_mean is None:
        raise UsageError(f"{network.path} does not say mean and std of the training numbers; export the run again")
    if not task_of(recipe).named_outputs:
        return recipe, [], []
    folders, names = class_names(about.shape[0])
    if about.classes is None or list(about.classes) == names:
        return recipe, folders, names
    return recipe, list(about.classes), list(about.classes)


def targets_of(recipe: Recipe) -> dict[str, Any]:
    """What an exported file says about true answers: the fields of the recipe that are set."""
    values = {name: getattr(getattr(recipe, section), name) for name, section in TARGETS.items()}
    return {name: value for name, value in values.items() if value is not None}
