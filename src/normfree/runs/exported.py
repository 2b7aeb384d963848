"""Exported files: opening one, and evaluating it like the network that it was made from."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..export import Deployed, Description, open_archive, open_onnx
from ..export.description import VECTORS
from ..recipes import Recipe
from ..tasks import task_of
from ..words import tell
from .foreign import UNKNOWN_SOURCE, class_names, recipe_from

ONNX, ARCHIVE = ".onnx", ".pt2"
# fields of a recipe that say how targets are stored, and their sections
TARGETS = dict(mask_values="data", mask_ignored="data", target_mean="task", target_std="task")


def open_exported(path: str, device: torch.device) -> Deployed:
    """Open an ONNX file (on the CPU), or an archive of ``torch.export``.

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
        description = self.file.description
        if tuple(images.shape[1:]) != description.preprocessing.shape:
            shapes = ("x".join(map(str, shape)) for shape in (description.preprocessing.shape, images.shape[1:]))
            raise UsageError(f"{self.path} was exported for images of {' pixels, not '.join(shapes)}")
        return run_batches(self.file, images.cpu()).to(images.device)


def run_batches(file: Deployed, images: Tensor) -> Tensor:
    """Run any number of images (N, C, H, W); copies of the last one fill up a batch of fixed size."""
    batch = file.description.batch or len(images)
    missing = -len(images) % batch
    filled = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
    return torch.cat([file.run(part.contiguous()) for part in filled.split(batch)])[: len(images)]


def exported_recipe(description: Description, path: str) -> tuple[Recipe, list[str], list[str]]:
    """A recipe with a file's preprocessing; folders and names of its classes.

    Args:
        path: of the file, for messages.

    Raises:
        UsageError: the file's description is too old, or not valid.
    """
    images = description.preprocessing
    multi = description.task == "multi-label"
    fields: dict[str, Any] = {"model.name": description.model, "data.crop": "none"}
    fields |= {"task.name": "classification", "task.labels": "multi"} if multi else {"task.name": description.task}
    if unknown := description.targets.keys() - TARGETS.keys():
        raise UsageError(f"{path} was written by another version of normfree: targets have {min(unknown)!r:.40}")
    fields |= {f"{TARGETS[name]}.{name}": value for name, value in description.targets.items()}
    fields |= {"data.source": UNKNOWN_SOURCE, "data.channels": images.channels, "data.test_size": images.size}
    fields |= {
        "data.image_size": images.size,
        "data.mean": list(images.mean),
        "data.std": list(images.std),
        "data.resize_margin": images.resize_margin,
    }
    values = images.value_range
    fields["data.value_range"] = values if values is None or isinstance(values, str) else list(values)
    if description.task in VECTORS:
        fields["data.test_crop"] = images.resize
    else:
        fields |= {"data.test_width": images.width, "data.short_side": images.short_side}
        fields |= {"data.test_depth": images.depth, "data.spacing": images.spacing and list(images.spacing)}
    recipe = recipe_from(fields)
    if description.task == "regression" and recipe.task.target_mean is None:
        raise UsageError(f"{path} does not say mean and std of the training numbers; export the run again")
    if not task_of(recipe).named_outputs:
        return recipe, [], []
    folders, names = class_names(description.shape[0])
    if description.classes is None or list(description.classes) == names:
        return recipe, folders, names
    return recipe, list(description.classes), list(description.classes)


def targets_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields on how targets are stored, as far as they are set; for an exported file."""
    values = {name: getattr(getattr(recipe, section), name) for name, section in TARGETS.items()}
    return {name: value for name, value in values.items() if value is not None}
