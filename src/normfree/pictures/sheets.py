"""An image beside a picture of what a network says about it: its pixels' classes, its depth, its objects."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .drawing import class_colors, depth_colors, draw_depth, draw_mask, rgb_picture, under_masks

PANEL_SIDE, GAP, TEXT, MARGIN = 320, 8, 13, 10  # pixels: longer side of a panel, space, size of letters, space around
PAPER, INK = "white", "black"
LEGEND_CLASSES = 24  # at most
BAR = 18  # pixels: width of the bar of depths


def mask_sheet(image: Tensor, mask: Tensor, names: Sequence[str], counts: Tensor, there: Sequence[int]) -> Image.Image:
    """The image, the same under its classes' colours, and a legend of the classes that are there."""
    palette = class_colors(len(names))
    picture, legend = beside(image, draw_mask(image, mask, palette)), there[:LEGEND_CLASSES]
    line = TEXT + 7
    sheet, top = _below(picture, -(-len(legend) // 2) * line + GAP)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for number, index in enumerate(legend):
        left, row = MARGIN + (number % 2) * (sheet.width // 2), top + (number // 2) * line
        draw.rectangle((left, row, left + TEXT, row + TEXT), fill=tuple(palette[index].tolist()), outline=INK)
        share = f"{counts[index] / mask.numel():.1%}"
        draw.text((left + TEXT + 6, row - 1), f"{names[index][:28]}  {share}", INK, font)
    return sheet


def depth_sheet(image: Tensor, depth: Tensor) -> Image.Image:
    """The image, its depth in colours, and a bar that says the metres."""
    low, high = depth.min().item(), depth.max().item()
    picture = beside(image, draw_depth(depth, low, high))
    sheet, top = _below(picture, BAR + TEXT + 2 * GAP)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    width = sheet.width - 2 * MARGIN
    sheet.paste(Image.fromarray(depth_colors()[None]).resize((width, BAR)), (MARGIN, top))
    for part, anchor in ((0, "la"), (0.25, "ma"), (0.5, "ma"), (0.75, "ma"), (1, "ra")):
        text = f"{low + part * (high - low):.2f} m"
        draw.text((MARGIN + part * width, top + BAR + 4), text, INK, font, anchor=anchor)
    return sheet


def beside(image: Tensor, drawn: Image.Image) -> Image.Image:
    """An image and a picture of its size side by side, enlarged by a whole number where they are small."""
    width, height = drawn.size
    times, right = enlarged(width, height)
    sheet = Image.new("RGB", (right + width * times + MARGIN, height * times + 2 * MARGIN), PAPER)
    for whole, place in ((rgb_picture(image), MARGIN), (drawn, right)):
        sheet.paste(whole.resize((width * times, height * times), Image.Resampling.NEAREST), (place, MARGIN))
    return sheet


def enlarged(width: int, height: int) -> tuple[int, int]:
    """How many times :func:`beside` enlarges pictures of that size, and where the right one begins."""
    times = max(1, -(-PANEL_SIDE // max(height, width)))
    return times, MARGIN + width * times + GAP


def _below(picture: Image.Image, height: int) -> tuple[Image.Image, int]:
    """The picture with room below it, and where that begins."""
    sheet = Image.new("RGB", (picture.width, picture.height + height), PAPER)
    sheet.paste(picture, (0, 0))
    return sheet, picture.height


def object_sheet(
    image: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, masks: Tensor | None, names: Sequence[str]
) -> Image.Image:
    """An image beside itself with masks, boxes, classes and scores."""
    palette = class_colors(len(names) + 1)[1:]
    height, width = image.shape[-2:]
    sheet = beside(image, Image.fromarray(under_masks(image, labels, masks, palette)))
    times, right = enlarged(width, height)
    top = (sheet.height - height * times) // 2
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    parts = zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
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
    return sheet
