"""Clipping of gradients by layer over time."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..words import counted
from .axes import number, percent
from .head import About
from .heatmap import Columns, HeatMap, Ramp, columns, draw_map
from .markup import Markup, missing, section, tag
from .run_files import Line, RunFiles

FRACTION = Ramp(
    ("f1f2f3", "fde6bd", "fab970", "ee7b45", "cd4438", "94203f", "541439"),
    ("21252b", "472a4a", "85304f", "c0463f", "e97c36", "f7b951", "fdf2b5"),
)
RATIO = Ramp(
    ("244f8c", "6696c8", "b9d1e7", "f1f1ef", "f7c99f", "e4813f", "a83318"),
    ("8abaf2", "4b7aae", "2c4765", "22262b", "6b3c24", "c4662c", "ffb774"),
)
MAX_DECADES = 6  # on either side of the threshold
LABELS = 3  # of the legend on either side
_SHARES = (0, 0.01, 0.05, 0.25, 0.5, 1)  # labels of the legend
_TITLES = dict(
    unit="Adaptive gradient clipping by layer over time",
    layer="Adaptive gradient clipping of whole tensors by layer over time",
    norm="Clipping of the gradient's norm over time",
)
_NORM = "\N{DOUBLE VERTICAL LINE}{}\N{DOUBLE VERTICAL LINE}"


def clipping(run: RunFiles, about: About) -> Markup:
    """Two heat maps over layers and steps: the fraction of units clipped, and the largest ratio of norms.

    Where all gradients are clipped together, one map: the norms, as all layers are clipped in the same steps.
    """
    identity, title = "clipping", _TITLES.get(about.clipping_kind, _TITLES["unit"])
    lines = [line for line in run.clipping if line["step"] > 0 and line["layers"]]
    if not lines:
        if about.clips is False:
            return section(identity, title, missing("this run clips nothing (optim.clipping is null)"))
        return section(
            identity, title, missing("there is no clipping.jsonl with lines; runs of older versions have none")
        )
    layers = _layers(lines)
    fractions, ratios = _matrix(lines, layers, 0), _matrix(lines, layers, 1)
    steps = [line["step"] for line in lines]
    if about.clipping_kind == "norm":
        parts = [tag("p", _summary_of_whole(fractions))]
    else:
        parts = [tag("p", _summary(layers, fractions, ratios)), _fraction_map(layers, steps, fractions)]
    if np.isfinite(ratios).any():
        parts.append(_ratio_map(layers, steps, ratios, about))
    return section(identity, title, *parts)


def _layers(lines: Sequence[Line]) -> list[str]:
    """The names of the layers of all lines, in the order of the line that has most."""
    longest = max(lines, key=lambda line: len(line["layers"]))
    return list({name: None for line in (longest, *lines) for name in line["layers"]})


def _matrix(lines: Sequence[Line], layers: Sequence[str], which: int) -> np.ndarray:
    """One of the two numbers logged per layer, as (lines, layers); nan where it is missing."""
    matrix = np.full((len(lines), len(layers)), np.nan)
    places = {name: place for place, name in enumerate(layers)}
    for row, line in zip(matrix, lines, strict=True):
        for name, pair in line["layers"].items():
            if isinstance(pair, list) and len(pair) > which and isinstance(pair[which], int | float):
                row[places[name]] = min(max(pair[which], -1e300), 1e300)
    return matrix


def _summary(layers: Sequence[str], fractions: np.ndarray, ratios: np.ndarray) -> str:
    """Sentences on the layers that are clipped most, then on those of which only the bias is clipped."""
    means = _over_lines(fractions, np.mean)
    bias_only = [i for i in range(len(layers)) if means[i] > 0 and only_bias_clipped(ratios[:, i].tolist())]
    order = sorted((i for i in range(len(layers)) if means[i] > 0 and i not in bias_only), key=lambda i: -means[i])
    if not order and not bias_only:
        return "No unit of any layer was clipped in the steps that were logged."
    names = ", ".join(f"{layers[i]} ({percent(means[i], 1)})" for i in order[:3])
    sentences = [f"Clipped most, over the whole run: {names}."] if order else []
    sentences += [
        f"Of {layers[i]} only the bias is clipped, in {percent(means[i], 1)} of the logged steps." for i in bias_only
    ]
    never = len(layers) - len(order) - len(bias_only)
    if never:
        sentences.append(f"Never, in the steps that were logged: {never} of {counted(len(layers), 'layer')}.")
    return " ".join(sentences)


def _summary_of_whole(fractions: np.ndarray) -> str:
    """How often the gradients were clipped, all at once."""
    steps = np.nan_to_num(fractions).max(axis=1) > 0
    return f"All gradients together were clipped in {percent(float(steps.mean()), 1)} of the logged steps."


def only_bias_clipped(ratios: Sequence[float]) -> bool:
    """Whether no weight of the layer is clipped: the logged ratios, which are of weights, are all 0."""
    known = [ratio for ratio in ratios if not math.isnan(ratio)]
    return bool(known) and not any(known)


def _over_lines(matrix: np.ndarray, pool: Callable[[np.ndarray], float]) -> np.ndarray:
    """Pool (lines, layers) over lines, ignoring nan, to a number per layer; nan where all are nan."""
    return np.array([pool(known) if len(known := row[~np.isnan(row)]) else np.nan for row in matrix.T])


def _fraction_map(layers: Sequence[str], steps: Sequence[int], fractions: np.ndarray) -> Markup:
    pooled = columns(steps, fractions, lambda rows: _over_lines(rows, np.mean))
    return draw_map(
        HeatMap(
            "fraction of units clipped",
            layers,
            pooled,
            np.sqrt(np.clip(pooled.values, 0, 1)),
            FRACTION,
            [(math.sqrt(share), percent(share, 0)) for share in _SHARES],
            [percent(_known(mean), 1) for mean in _over_lines(fractions, np.mean)],
            "mean",
            "fraction",
            note="Rows from input to output, columns optimizer steps. Colours follow the square root and mean the same "
            f"in every report. {_pooling(steps, pooled, 'the mean')}",
        )
    )


def _ratio_map(layers: Sequence[str], steps: Sequence[int], ratios: np.ndarray, about: About) -> Markup:
    pooled = columns(steps, ratios, lambda rows: _over_lines(rows, np.max))
    positive = ratios[np.isfinite(ratios) & (ratios > 0)]
    threshold = about.clipping
    middle = threshold or (float(np.exp(np.log(positive).mean())) if len(positive) else 1.0)
    places = np.log10(positive / middle)
    below, above = _decades(-places), _decades(places)
    with np.errstate(divide="ignore"):
        decades = np.log10(np.maximum(pooled.values, 0) / middle)
    shades = 0.5 + np.where(decades < 0, decades / below, decades / above) / 2
    ticks = [(0.5, number(middle) if threshold is None else f"\N{GREEK SMALL LETTER LAMDA} = {number(middle)}")]
    for side, far in ((-1, below), (1, above)):
        every = math.ceil(far / LABELS)
        powers = range(every, math.floor(far) + 1, every)
        ticks += [(0.5 + side * k / far / 2, number(middle * 10.0 ** (side * k))) for k in powers]
    meaning = _meaning(about)
    meaning.append(_pooling(steps, pooled, "the largest"))
    return draw_map(
        HeatMap(
            _ratio_title(about),
            layers,
            pooled,
            np.clip(shades, 0, 1),
            RATIO,
            ticks,
            [number(_known(most), 2) for most in _over_lines(ratios, np.max)],
            "max",
            "ratio",
            marked=None if threshold is None else 0.5,
            note=" ".join(meaning),
        )
    )


def _ratio_title(about: About) -> str:
    if about.clipping_kind == "norm":
        return f"largest {_NORM.format('G')} of a layer's tensors"
    bound = "eps" if about.clipping_eps is None else f"{about.clipping_eps:g}"
    units = "tensors" if about.clipping_kind == "layer" else "units"
    return f"largest {_NORM.format('G')} / max({_NORM.format('W')}, {bound}) of a layer's {units}"


def _meaning(about: About) -> list[str]:
    """Sentences below the map of ratios."""
    scale = "Either side of it has its own logarithmic scale."
    if about.clipping_kind == "norm":
        meaning = ["Of weights, before clipping. The threshold is for the norm of all gradients together."]
        orange = "Orange: the norm of one tensor is above it."
        return meaning if about.clipping is None else [*meaning, orange, scale]
    meaning = [
        "Of weights, before clipping; a norm below eps counts as eps. A classifier, whose bias alone is clipped, "
        "has none."
    ]
    colours = "Blue: no unit is above the threshold. Orange: some are, and are scaled down to it."
    return meaning if about.clipping is None else [*meaning, colours, scale]


def _decades(places: np.ndarray) -> float:
    """Decades on one side of the scale, a multiple of 0.5: enough for 99 % of the values there."""
    places = places[places > 0]
    far = np.quantile(places, 0.99) if len(places) else 1
    return min(MAX_DECADES, max(1, math.ceil(2 * far) / 2))


def _pooling(steps: Sequence[int], pooled: Columns, how: str) -> str:
    if len(steps) <= pooled.values.shape[1]:
        return ""
    return f"A column is {how} of about {len(steps) / pooled.values.shape[1]:.2g} logged steps."


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
