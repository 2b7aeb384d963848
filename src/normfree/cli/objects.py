"""Pictures of the objects that a network finds in images."""

import argparse

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data import Objects
from ..models import Detections
from ..report.drawing import class_colors, under_masks
from ..training import pick_device
from .overlays import INK, TEXT, beside, enlarged, predict_pictures
from .trained import Trained, evaluation_transform


def predict_objects(trained: Trained, options: argparse.Namespace) -> int:
    """Draw and list the objects in each image; the exit code.

    Raises:
        UsageError: no image, or a folder that cannot be made.
    """
    place = pick_device(options.device)
    model, view = trained.model.to(place), evaluation_transform(trained)
    least = 0.5 if options.score is None else options.score

    def draw(image: Tensor) -> tuple[Image.Image, dict]:
        original = tuple(image.shape[-2:])
        size = view.size_of(original)
        with torch.inference_mode():
            found = model(view.view(image)[None].to(place), [Objects.none(size, original)])[0]
        return drawn(image, found.chosen(found.scores >= least).placed(size, original), trained.names)

    return predict_pictures(draw, _lines, trained.recipe.task.name, trained.recipe.data.channels, options)


def drawn(image: Tensor, found: Detections, names: list[str]) -> tuple[Image.Image, dict]:
    """An image beside itself with masks, boxes, classes and scores; and the same as numbers."""
    palette = class_colors(len(names) + 1)[1:]
    height, width = image.shape[-2:]
    sheet = beside(image, Image.fromarray(under_masks(image, found.labels, found.masks, palette)))
    times, right = enlarged(width, height)
    top = (sheet.height - height * times) // 2
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    told = []
    parts = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for box, score, label in reversed(list(parts)):  # the surest on top
        color = tuple(palette[label].tolist())
        corners = [right + box[0] * times, top + box[1] * times, right + box[2] * times, top + box[3] * times]
        draw.rectangle(corners, outline=color, width=2)
        text = f"{names[label][:20]} {score:.2f}"
        wide = draw.textlength(text, font)
        # inside of the picture, above the box where there is room
        left = max(right, min(corners[0], right + width * times - wide - 4))
        line = corners[1] - TEXT - 4 if corners[1] - TEXT - 4 >= top else corners[1]
        draw.rectangle((left, line, left + wide + 4, line + TEXT + 4), fill=color)
        draw.text((left + 2, line + 1), text, INK if sum(color) > 300 else "white", font)
        told.insert(0, dict(name=names[label], score=round(score, 4), box=[round(side, 2) for side in box]))
    if found.masks is not None:
        for one, mask in zip(told, found.masks, strict=True):
            one["pixels"] = int(mask.sum())
    return sheet, dict(objects=told)


def _lines(told: dict) -> str:
    lines = [str(told["path"])]
    for one in told["objects"]:
        box = " ".join(f"{side:7.1f}" for side in one["box"])
        lines.append(f"  {one['score']:7.2%}  {box}  {one['name']}")
    return "\n".join([*lines, *([] if told["objects"] else ["  nothing"]), f"  picture {told['picture']}"])
