"""Pictures of the network's mistakes, and the classes that it confuses."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from .axes import percent
from .markup import Markup, Missing, missing, section, tag

SIDE, TINY = 256, 64  # pixels: the longest side of a picture on the page; below the second, pixels are not smoothed
MAX_PAIRS, MAX_MATRIX = 12, 20
HALF_WIDE, SHORT = 10, 4  # classes of a matrix that fits beside the pairs; letters of a name that is not rotated


@dataclass(frozen=True)
class Example:
    """A picture with the text that is shown with it.

    Attributes:
        image: of any size; it is shrunk for the page.
        caption: one line below it.
        detail: smaller lines below the caption.
        title: shown when the pointer rests on the picture.
    """

    image: Image.Image
    caption: str
    detail: str = ""
    title: str = ""


@dataclass(frozen=True)
class Confusion:
    """Counts of images by (true class, predicted class), both as indices into ``classes``."""

    classes: Sequence[str]
    counts: Mapping[tuple[int, int], int]


def examples(
    shown: Sequence[Example] | Missing, introduction: str = "", confusion: Confusion | None = None, note: str = ""
) -> Markup:
    """The section: the pictures in the order given, and the confusion matrix if there is one."""
    identity, title = "examples", "Examples it gets wrong"
    if isinstance(shown, Missing):
        return section(identity, title, missing(shown))
    parts = [tag("p", introduction)] if introduction else []
    if shown:
        parts.append(tag("div", [_card(example) for example in shown], class_="examples"))
    if note:
        parts.append(tag("p", note, class_="note"))
    if confusion is not None:
        parts += _confusions(confusion)
    return section(identity, title, parts)


def _card(example: Example) -> Markup:
    source, tiny = encoded(example.image)
    picture = tag("img", src=source, alt=example.caption, class_="tiny" if tiny else None, loading="lazy")
    details = [tag("span", line) for line in example.detail.splitlines()]
    return tag(
        "div", tag("div", picture, class_="pic"), tag("b", example.caption), details, title=example.title or None
    )


def encoded(image: Image.Image, crisp: int = TINY) -> tuple[str, bool]:
    """A picture as a data URL, shrunk for the page, and whether it is tiny.

    A picture is tiny, and kept without loss, if its longer side is below ``crisp`` pixels.
    """
    image = (image if image.mode in ("L", "RGB") else image.convert("RGB")).copy()
    image.thumbnail((SIDE, SIDE))
    small = max(image.size) < crisp
    content = io.BytesIO()
    image.save(content, "PNG" if small else "JPEG", **(dict(optimize=True) if small else dict(quality=80)))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(content.getvalue()).decode()}", small


def _confusions(confusion: Confusion) -> list[Markup]:
    wrong = {pair: count for pair, count in confusion.counts.items() if pair[0] != pair[1] and count}
    if not wrong:
        return []
    classes, of = confusion.classes, _totals(confusion)
    most = sorted(wrong, key=lambda pair: (-wrong[pair], pair))[:MAX_PAIRS]
    rows = [
        tag(
            "tr",
            tag("td", classes[true]),
            tag("td", classes[predicted]),
            tag("td", f"{wrong[true, predicted]:,}", class_="n"),
            tag("td", percent(wrong[true, predicted] / of[true], 1), class_="n"),
        )
        for true, predicted in most
    ]
    heading = tag(
        "tr",
        *(tag("th", name) for name in ("true", "said")),
        *(tag("th", name, class_="n") for name in ("images", "of the class")),
    )
    table = tag("table", tag("thead", heading), tag("tbody", rows))
    left = tag("div", tag("h3", "Confused most"), tag("div", table, class_="wide"))
    if len(classes) > MAX_MATRIX:
        return [left]
    matrix = tag("div", _matrix(confusion), class_="wide")
    right = tag("div", tag("h3", "All confusions: rows are true, columns said"), matrix)
    return [tag("div", left, right, class_="two")] if len(classes) <= HALF_WIDE else [left, right]


def _totals(confusion: Confusion) -> dict[int, int]:
    totals: dict[int, int] = {}
    for (true, _), count in confusion.counts.items():
        totals[true] = totals.get(true, 0) + count
    return totals


def _matrix(confusion: Confusion) -> Markup:
    names, totals = confusion.classes, _totals(confusion)
    rows = []
    for true, name in enumerate(names):
        total = totals.get(true, 0)
        cells = [
            _cell(confusion.counts.get((true, predicted), 0), total, true == predicted)
            for predicted in range(len(names))
        ]
        right = confusion.counts.get((true, true), 0)
        share = tag("td", percent(right / total, 1) if total else "\N{EN DASH}", class_="sum")
        rows.append(tag("tr", tag("th", tag("span", name, title=name)), cells, share))
    heading = [tag("th", tag("span", name, title=name)) for name in names]
    head = tag("thead", tag("tr", tag("th"), heading, tag("th", "right")))
    style = "confusion turned" if max(map(len, names)) > SHORT else "confusion"
    return tag("table", head, tag("tbody", rows), class_=style)


def _cell(count: int, total: int, right: bool) -> Markup:
    if not count:
        return tag("td", "\N{MIDDLE DOT}", class_="zero")
    strength = (count / total) ** 0.5  # so that rare mistakes are visible
    return tag(
        "td", f"{count:,}", class_="right" if right else None, style=f"--a:{(0.45 if right else 0.85) * strength:.3f}"
    )
