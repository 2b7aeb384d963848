"""The papers' figures of accuracy: published points, and drawing them with those of one's own runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError, did_you_mean
from ..spp.plot import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#7f7f7f")
OWN = "#000000"


@dataclass(frozen=True)
class Point:
    """A network in a figure.

    Attributes:
        label: its name.
        x: multiply-adds in billions, or milliseconds of a step of training with 32 images.
        top1: per cent.
    """

    label: str
    x: float
    top1: float


@dataclass(frozen=True)
class PublishedFigure:
    """A figure of one of the papers.

    Attributes:
        title: which.
        axis: what ``x`` is: "macs" or "latency".
        lines: points by the name of their family, with rising ``x``.
    """

    title: str
    axis: str
    lines: Mapping[str, Sequence[Point]]


AXES = {
    "macs": "multiply-adds of a test image, billions",
    "latency": "a step of training with 32 images, milliseconds",
}
_NFNETS = {  # NFNets, table 3: multiply-adds in billions, top-1, milliseconds on TPUv3
    "NFNet": (
        ("F0", 12.38, 83.6, 73.3),
        ("F1", 35.54, 84.7, 158.5),
        ("F2", 62.59, 85.1, 295.8),
        ("F3", 114.76, 85.7, 532.2),
        ("F4", 215.24, 85.9, 1033.3),
        ("F5", 289.76, 86.0, 1398.5),
    ),
    "NFNet + SAM": (("F5 + SAM", 289.76, 86.3, 1958.0), ("F6 + SAM", 377.28, 86.5, 2774.1)),
    "EfficientNet": (
        ("B0", 0.39, 77.1, 51.1),
        ("B3", 1.80, 81.6, 129.5),
        ("B4", 4.20, 82.9, 245.9),
        ("B5", 9.90, 83.7, 450.5),
        ("B6", 19.00, 84.0, 775.7),
        ("B7", 37.00, 84.7, 1397.0),
        ("B8 + MaxUp", 62.50, 85.8, None),
    ),
    "SENet": (("SE-50", 4.09, 79.4, 64.3), ("SE-152", 19.04, 83.1, 149.9), ("SE-350", 52.90, 83.8, 593.6)),
    "LambdaNet": (("152", None, 83.0, 138.3), ("350", None, 84.5, 471.4), ("420", None, 84.8, 593.9)),
    "BoTNet": (
        ("110", 10.90, 82.8, 181.3),
        ("128-T5", 19.30, 83.5, 355.2),
        ("77-T6", 23.30, 84.0, 578.1),
        ("128-T7", 45.80, 84.7, 804.5),
    ),
    "ResNet": (("ResNet-50", 4.10, 78.6, 41.6),),
}
_NF_RESNETS = {  # NF-ResNets, table 3: multiply-adds in billions, top-1
    "NF-RegNet": ("B0 .44 76.8", "B1 .73 78.6", "B2 1.09 79.6", "B3 1.98 80.6", "B4 4.43 81.7", "B5 10.48 82.0"),
    "NF-RegNet, CutMix + MixUp": (
        *("B0 .44 77.0", "B1 .73 78.7", "B2 1.09 80.0", "B3 1.98 81.2", "B4 4.43 82.5", "B5 10.48 83.0"),
    ),
    "EfficientNet": ("B0 .39 76.7", "B1 .70 78.7", "B2 1.0 79.8", "B3 1.8 81.1", "B4 4.2 82.5", "B5 9.9 83.1"),
    "EfficientNet, Auto- or RandAugment": (
        *("B0 .39 77.1", "B1 .70 79.1", "B2 1.0 80.1", "B3 1.8 81.6", "B4 4.2 82.9", "B5 9.9 83.7"),
    ),
    "RegNetY": ("400MF .40 74.1", "600MF .60 75.5", "800MF .80 76.3", "4.0GF 4.00 79.4", "12GF 12.10 80.3"),
    "ResNet": ("ResNet50 4.10 76.8", "ResNet152 11.00 78.6"),
}


def _nfnets(axis: str) -> dict[str, list[Point]]:
    at = 1 if axis == "macs" else 3
    every = {
        family: [Point(row[0], row[at], row[2]) for row in rows if row[at] is not None]
        for family, rows in _NFNETS.items()
    }
    return {family: points for family, points in every.items() if points}


def _parsed(rows: Sequence[str]) -> list[Point]:
    return [Point(label, float(x), float(top1)) for label, x, top1 in map(str.split, rows)]


FIGURES = {
    "nf_resnets_3": PublishedFigure(
        "NF-ResNets, figure 3 (points of table 3)", "macs", {name: _parsed(rows) for name, rows in _NF_RESNETS.items()}
    ),
    "nfnets_1": PublishedFigure("NFNets, figure 1 (points of table 3, TPUv3)", "latency", _nfnets("latency")),
    "nfnets_4": PublishedFigure("NFNets, figure 4 (points of table 3)", "macs", _nfnets("macs")),
}


def published_figure(name: str) -> PublishedFigure:
    """A figure by its name.

    >>> published_figure("nfnets_4").lines["NFNet"][0]
    Point(label='F0', x=12.38, top1=83.6)

    Raises:
        UsageError: there is none of that name; the nearest one is suggested.
    """
    if name not in FIGURES:
        raise UsageError(f"figure {name!r} is unknown; {did_you_mean(name, FIGURES, f'there are {_known()}')}")
    return FIGURES[name]


def draw_published(figure: PublishedFigure, own: Sequence[Point] = ()) -> "Figure":
    """Top-1 over multiply-adds or latency, one line for each family; ``own`` points are black stars.

    Returns:
        A figure with an Agg canvas; ``figure.savefig("nfnets_4.png")`` writes it.
    """
    page = new_figure(9, 6)
    axes = page.subplots()
    for color, (family, points) in zip(COLORS, figure.lines.items(), strict=False):
        axes.plot([p.x for p in points], [p.top1 for p in points], "o-", color=color, label=family, markersize=5)
        for p in points:
            axes.annotate(p.label, (p.x, p.top1), xytext=(4, -10), textcoords="offset points", fontsize=7, color=color)
    for number, p in enumerate(own):
        label = "own runs" if number == 0 else None
        axes.plot([p.x], [p.top1], "*", color=OWN, markersize=12, label=label)
        text = p.label.replace("$", r"\$")
        axes.annotate(text, (p.x, p.top1), xytext=(7, 4), textcoords="offset points", fontsize=8, color=OWN)
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set(xlabel=AXES[figure.axis], ylabel="top-1, per cent", title=figure.title)
    axes.grid(visible=True, which="both", color="#e4e6e9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=8)
    return page


def _known() -> str:
    return ", ".join(FIGURES)
