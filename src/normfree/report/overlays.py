"""Images beside their ground truth and the network's prediction, with legends and tables of scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .axes import Scale, number
from .examples import encoded
from .markup import Markup, section, tag

MAX_NAMED = 60  # classes in a legend
CRISP = 160  # pixels: smaller pictures are kept without loss


@dataclass(frozen=True)
class Overlay:
    """Pictures of one size side by side, each with its name, and the text below them.

    Attributes:
        panels: for example the image, the image with the ground truth, and the image with the prediction.
        caption: one line; detail: smaller lines below it; title: shown when the pointer rests on it.
    """

    panels: Sequence[tuple[str, Image.Image]]
    caption: str
    detail: str = ""
    title: str = ""


@dataclass(frozen=True)
class Colors:
    """A legend of classes: a name for each colour of (N, 3) uint8."""

    names: Sequence[str]
    colors: np.ndarray


@dataclass(frozen=True)
class Range:
    """A legend of a continuous scale: (N, 3) uint8 colours from one number to another, with their unit."""

    low: float
    high: float
    unit: str
    colors: np.ndarray


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column is a name, with a colour (3,) uint8 if ``colors`` are given."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    colors: np.ndarray | None = None
    note: str = ""


@dataclass(frozen=True)
class Overlays:
    """The content of the page's section of examples for tasks whose prediction is itself a picture."""

    shown: Sequence[Overlay]
    key: Colors | Range | None = None
    tables: Sequence[Table] = field(default=())


def overlays(given: Overlays, introduction: str = "", note: str = "") -> Markup:
    """The section: legend, pictures in the order given, tables."""
    parts = [tag("p", introduction)] if introduction else []
    if given.shown:
        parts += [] if given.key is None else [_key(given.key)]
        parts.append(tag("div", [_card(overlay) for overlay in given.shown], class_="overlays"))
    if note:
        parts.append(tag("p", note, class_="note"))
    return section("examples", "Examples", parts, [_table(table) for table in given.tables])


def _card(overlay: Overlay) -> Markup:
    panels = [
        tag("div", tag("img", src=source, alt=f"{name}, {overlay.caption}", loading="lazy"), tag("i", name))
        for name, source in ((name, encoded(image, CRISP)[0]) for name, image in overlay.panels)
    ]
    details = [tag("span", line) for line in overlay.detail.splitlines()]
    columns = f"grid-template-columns:repeat({len(panels)},minmax(0,1fr))"
    content = tag("div", panels, class_="panels", style=columns), tag("b", overlay.caption), details
    return tag("div", *content, title=overlay.title or None)


def _key(key: Colors | Range) -> Markup:
    if isinstance(key, Range):
        return _bar(key)
    pairs = list(zip(key.names, key.colors, strict=True))
    named = [tag("span", _swatch(color), name) for name, color in pairs[:MAX_NAMED]]
    rest = [tag("span", f"and {len(pairs) - MAX_NAMED} more")] if len(pairs) > MAX_NAMED else []
    return tag("div", named, rest, class_="key")


def _bar(key: Range) -> Markup:
    scale = Scale(key.low, key.high) if key.high > key.low else Scale(key.low, key.low + 1)
    ticks = [
        tag("span", f"{number(tick)} {key.unit}", style=f"left:{100 * scale.at(tick):.2f}%") for tick in scale.ticks()
    ]
    places = np.linspace(0, len(key.colors) - 1, 17).round().astype(int)
    gradient = ",".join(_hex(key.colors[i]) for i in places)
    bar = tag("i", class_="bar", style=f"background:linear-gradient(90deg,{gradient})")
    return tag("div", bar, tag("div", ticks, class_="below"), class_="scale", style="margin-left:0")


def _table(table: Table) -> Markup:
    heading = [tag("th", name, class_="n" if i else None) for i, name in enumerate(table.headings)]
    rows = []
    for place, (first, *rest) in enumerate(table.rows):
        swatch = [] if table.colors is None else [_swatch(table.colors[place])]
        rows.append(tag("tr", tag("td", swatch, first), [tag("td", cell, class_="n") for cell in rest]))
    body = tag("table", tag("thead", tag("tr", heading)), tag("tbody", rows))
    note = [tag("p", table.note, class_="note")] if table.note else []
    return tag("div", tag("h3", table.title), tag("div", body, class_="wide"), note)


def _swatch(color: np.ndarray) -> Markup:
    return tag("i", class_="swatch", style=f"background:{_hex(color)}")


def _hex(color: np.ndarray) -> str:
    return "#" + "".join(f"{value:02x}" for value in color.tolist())
