"""The signal propagation plots of the first paper: networks, claims, and the numbers that hold or break them."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import UsageError
from ..models import create_model, list_models
from .record import record
from .result import SPP

Numbers = dict[str, float]


@dataclass(frozen=True)
class Network:
    """A curve: a model's name with a placeholder for its layers, its options, and its share of the image size.

    A network without max pooling takes images of half the size, so that its blocks have maps of the same size.
    """

    label: str
    name: str
    options: Mapping[str, Any]
    share: float = 1.0

    def record(self, layers: int, size: int, batch: int, seed: int, **overrides: Any) -> SPP:
        """Fresh weights and unit Gaussian inputs from ``seed``.

        Raises:
            UsageError: inputs that give BatchNorm only one value.
        """
        torch.manual_seed(seed)
        model = create_model(self.name.format(layers), num_classes=10, **{**self.options, **overrides})
        side = max(1, round(size * self.share))
        try:
            return record(model, (batch, 3, side, side), seed=seed, name=self.label)
        except ValueError as error:  # of BatchNorm
            raise UsageError(f"{self.label}: a batch of {batch} at {side} px is too small: {error}") from error


@dataclass(frozen=True)
class PaperFigure:
    """One figure: the paper's claim and what is measured of it.

    Attributes:
        claim: of the paper, in our words.
        networks: keys of :data:`NETWORKS`.
        measure: computes the numbers of the claim from the recordings, in the order of ``networks``.
    """

    number: int
    title: str
    claim: str
    networks: tuple[str, ...]
    measure: Callable[..., Numbers]


_FIGURE_SETTING = dict(alpha=1.0, skip_gain=1.0)  # the figures' networks have alpha 1 and no SkipInit
_LINEAR = dict(activation="identity", stem="7x7-nopool")

NETWORKS = {
    "bn": Network("BN-ReLU-Conv", "bn_resnet{}", {}),
    "bn_after": Network("ReLU-BN-Conv", "bn_resnet{}", dict(order="relu-bn-conv")),
    "nf": Network("NF, Scaled WS", "nf_resnet{}", _FIGURE_SETTING),
    "nf_he": Network("NF, He init", "nf_resnet{}", dict(_FIGURE_SETTING, standardize=False)),
    "plain": Network("no normalization, He init", "plain_resnet{}", {}),
    "bn_linear": Network("BatchNorm, linear", "bn_resnet{}", _LINEAR, 0.5),
    "nf_linear": Network(
        "NF, He init, linear", "nf_resnet{}", dict(_FIGURE_SETTING, **_LINEAR, standardize=False), 0.5
    ),
    "nf_sqrt2": Network("NF, gamma = sqrt(2)", "nf_resnet{}", dict(_FIGURE_SETTING, gamma=math.sqrt(2))),
    "nf_bare_se": Network("NF, unmodified SE", "nf_seresnet{}", dict(_FIGURE_SETTING, se_factor=1.0)),
    "fixup": Network("FixUp", "fixup_resnet{}", {}),
    "v1": Network("V1, post-activation", "bn_resnet{}_v1", {}),
}


def _branches(spp: SPP) -> list[float]:
    return [value for value in spp.res_avg_var if value is not None]


def _growth_per_block(spp: SPP) -> float:
    """Median over blocks of what a block without projection adds to the variance."""
    pairs = zip(spp.rows, spp.rows[1:], strict=False)
    return statistics.median(row.avg_var - before.avg_var for before, row in pairs if not row.transition)


def _resets(spp: SPP) -> list[float]:
    """Variance behind each transition but the first."""
    return [row.avg_var for row in spp.rows[1:] if row.transition]


def _spread_in_stages(values: Sequence[float], spp: SPP) -> float:
    """Largest over smallest value within a stage; the worst stage."""
    starts = [0, *(end + 1 for end in spp.stage_ends[:-1])]
    return max(max(values[a : b + 1]) / min(values[a : b + 1]) for a, b in zip(starts, spp.stage_ends, strict=True))


def _figure1(before: SPP, after: SPP) -> Numbers:
    return {
        "BN-ReLU-Conv: branch variance, median": statistics.median(_branches(before)),
        "BN-ReLU-Conv: branch variance, smallest": min(_branches(before)),
        "BN-ReLU-Conv: branch variance, largest": max(_branches(before)),
        "BN-ReLU-Conv: variance added per block": _growth_per_block(before),
        "BN-ReLU-Conv: squared mean, largest": max(before.avg_sq_mean),
        "ReLU-BN-Conv: branch variance, median": statistics.median(_branches(after)),
        "ReLU-BN-Conv: branch variance, smallest": min(_branches(after)),
        "ReLU-BN-Conv: branch variance, largest": max(_branches(after)),
        "ReLU-BN-Conv: variance added per block": _growth_per_block(after),
        "ReLU-BN-Conv: squared mean, largest": max(after.avg_sq_mean),
        "variance behind transitions, largest": max(_resets(before) + _resets(after)),
    }


def _figure2(normalized: SPP, he: SPP, standardized: SPP) -> Numbers:
    apart = [abs(a / b - 1) for a, b in zip(standardized.avg_var, normalized.avg_var, strict=True)]
    shift = [mean / var for mean, var in zip(he.avg_sq_mean, he.avg_var, strict=True)]
    return {
        "Scaled WS against ReLU-BN-Conv: variance, median difference": statistics.median(apart),
        "Scaled WS against ReLU-BN-Conv: variance, largest difference": max(apart),
        "Scaled WS: branch variance, median": statistics.median(_branches(standardized)),
        "Scaled WS: branch variance, smallest": min(_branches(standardized)),
        "Scaled WS: squared mean over variance, largest": max(
            m / v for m, v in zip(standardized.avg_sq_mean, standardized.avg_var, strict=True)
        ),
        "He init: branch variance, median": statistics.median(_branches(he)),
        "He init: squared mean over variance, largest": max(shift),
        "He init: share of blocks whose squared mean exceeds the variance": sum(s > 1 for s in shift) / len(shift),
        "He init: squared mean, largest": max(he.avg_sq_mean),
    }


def _figure6(plain: SPP) -> Numbers:
    steps = len(plain.rows) - 1
    return {
        f"growth per block of the {what}": (values[-1] / values[0]) ** (1 / steps)
        for what, values in (
            ("squared mean", plain.avg_sq_mean),
            ("variance", plain.avg_var),
            ("branch variance", _branches(plain)),
        )
    } | {"variance of the last block": plain.avg_var[-1]}


def _figure7(normalized: SPP, free: SPP) -> Numbers:
    return {
        "BatchNorm: squared mean over variance, largest": _largest_shift(normalized),
        "NF: squared mean over variance, largest": _largest_shift(free),
        "BatchNorm: branch variance, median": statistics.median(_branches(normalized)),
        "NF: branch variance, median": statistics.median(_branches(free)),
        "NF: branch variance, smallest": min(_branches(free)),
        "NF: branch variance, largest": max(_branches(free)),
    }


def _largest_shift(spp: SPP) -> float:
    return max(mean / var for mean, var in zip(spp.avg_sq_mean, spp.avg_var, strict=True))


def _attenuation(spp: SPP) -> Numbers:
    branches, ends = _branches(spp), spp.stage_ends
    local = [row.branch_var / row.theory.res_var for row in spp.rows[1:] if row.theory]
    return {
        "branch variance of the first block": branches[0],
        "branch variance over that of a healthy branch, median": statistics.median(local),
        **{f"branch variance at the end of stage {i + 1}": branches[end] for i, end in enumerate(ends)},
        **{f"variance behind transition {i + 1}": value for i, value in enumerate(_resets(spp))},
    }


def _figure10(spp: SPP) -> Numbers:
    return {
        "variance within a stage, largest over smallest": _spread_in_stages(spp.avg_var, spp),
        "squared mean within a stage, largest over smallest": _spread_in_stages(spp.avg_sq_mean, spp),
        "branch variance, largest": max(_branches(spp)),
        **{f"variance of stage {i + 1}": spp.avg_var[end] for i, end in enumerate(spp.stage_ends)},
    }


def _figure11(spp: SPP) -> Numbers:
    return {
        "branch variance, smallest": min(_branches(spp)),
        "branch variance, largest": max(_branches(spp)),
        "variance behind transitions, largest": max(_resets(spp)),
        "variance, largest": max(spp.avg_var),
    }


FIGURES = {
    figure.number: figure
    for figure in (
        PaperFigure(
            1,
            "BatchNorm ResNet V2, two orders",
            "The variance grows linearly with depth in a stage and is reset near 1 by each transition. With BN-"
            "ReLU-Conv the branch ends with variance about 0.68 at all depths and the squared means grow like the"
            " variance; with ReLU-BN-Conv the branch has variance about 1 and there is no mean shift.",
            ("bn", "bn_after"),
            _figure1,
        ),
        PaperFigure(
            2,
            "Normalizer-Free against BatchNorm",
            "A Normalizer-Free network with He initialization has branches below 1 and squared means that grow "
            "past the variance; with Scaled Weight Standardization its plots are almost those of the BatchNorm "
            "network with ReLU-BN-Conv.",
            ("bn_after", "nf_he", "nf"),
            _figure2,
        ),
        PaperFigure(
            6,
            "ResNet V2 without normalization",
            "With He initialization and no normalization, all three statistics grow exponentially with depth.",
            ("plain",),
            _figure6,
        ),
        PaperFigure(
            7,
            "Linear networks",
            "Without activations (and without max pooling in the stem) squared means stay near 0 and the branch's"
            " variance fluctuates around 1, with BatchNorm and without: the shift comes from the ReLU.",
            ("bn_linear", "nf_linear"),
            _figure7,
        ),
        PaperFigure(
            8,
            "gamma = sqrt(2)",
            "He's gain for ReLU is too small for standardized weights: the signal attenuates progressively in the"
            " first stage and once more at each transition, whose beta assumes a larger one.",
            ("nf_sqrt2",),
            _attenuation,
        ),
        PaperFigure(
            9,
            "Unmodified Squeeze-Excite",
            "Without the factor 2, Squeeze-Excite attenuates the signal in the same way.",
            ("nf_bare_se",),
            _attenuation,
        ),
        PaperFigure(
            10,
            "FixUp",
            "Since the last weight of every branch starts at 0, the variance is constant in a stage, and still "
            "reset between stages.",
            ("fixup",),
            _figure10,
        ),
        PaperFigure(
            11,
            "ResNet V1",
            "BatchNorm at the end of the branch keeps its variance at 1 throughout; that on the shortcuts of "
            "transitions resets the variance.",
            ("v1",),
            _figure11,
        ),
    )
}


@dataclass(frozen=True)
class Drawn:
    """A figure with its recordings and numbers."""

    figure: PaperFigure
    plots: list[SPP]
    numbers: Numbers


def check_figures(numbers: Sequence[int], layers: int) -> None:
    """Raise UsageError for an unknown figure or depth."""
    for number in numbers:
        if number not in FIGURES:
            raise UsageError(f"figure {number} is none of {', '.join(map(str, FIGURES))}")
    if f"nf_resnet{layers}" not in list_models():
        depths = [name.removeprefix("nf_resnet") for name in list_models("nf_resnet*")]
        raise UsageError(f"layers (={layers}) must be one of {', '.join(d for d in depths if d.isdigit())}")


def draw_figures(
    numbers: Sequence[int],
    *,
    layers: int,
    size: int,
    batch: int,
    seed: int,
    started: Callable[[str], Any] = lambda label: None,
    finished: Callable[[], Any] = lambda: None,
) -> Iterator[Drawn]:
    """Record the networks of the figures, each network once, and yield figure by figure.

    Args:
        layers: 600 in the paper; any depth of the models.
        started: called with a network's label before its recording; finished: called afterwards.

    Raises:
        UsageError: an unknown figure or depth.
    """
    check_figures(numbers, layers)
    recorded: dict[str, SPP] = {}
    for number in numbers:
        figure = FIGURES[number]
        for key in figure.networks:
            if key not in recorded:
                started(NETWORKS[key].label)
                recorded[key] = NETWORKS[key].record(layers, size, batch, seed)
                finished()
        plots = [recorded[key] for key in figure.networks]
        try:
            measured = figure.measure(*plots)
        except ZeroDivisionError as error:
            raise UsageError(
                f"inputs of {size} px leave maps of one value, which do not vary; use larger ones"
            ) from error
        yield Drawn(figure, plots, measured)


def networks_of(numbers: Sequence[int]) -> list[str]:
    """Keys of the networks that these figures need, each once."""
    return list(dict.fromkeys(key for number in numbers if number in FIGURES for key in FIGURES[number].networks))
