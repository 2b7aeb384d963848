"""Speeds that the papers print: the one place where they stand, as they are printed there."""

from dataclasses import dataclass
from typing import Literal

Unit = Literal["ms", "steps per second"]
_BATCHES, _BATCH = (16, 32, 64), 32


@dataclass(frozen=True)
class Published:
    """What the authors measured of a network and of its peer.

    Attributes:
        machine: TPUv3 (bfloat16, 32 devices that exchange gradients) or V100 (one).
        batch: images per step of a device.
        ours, theirs: milliseconds of a step; None: out of memory.
    """

    machine: str
    batch: int
    ours: float | None
    theirs: float | None

    @property
    def ratio(self) -> float | None:
        """Time of a step over that of the peer."""
        return None if self.ours is None or self.theirs is None else self.ours / self.theirs


# NFNets beside ResNet-50 and EfficientNets (NFNets, table 3), batch 32: milliseconds of a step on TPUv3 and on V100
STEPS: dict[str, tuple[float | None, float | None]] = {
    "resnet50": (41.6, 35.3),
    "nfnet_f0": (73.3, 56.7),
    "nfnet_f1": (158.5, 133.9),
    "nfnet_f2": (295.8, 226.3),
    "nfnet_f3": (532.2, 524.5),
    "nfnet_f4": (1033.3, 1190.6),
    "nfnet_f5": (1398.5, 2177.1),
    "nfnet_f5 + SAM": (1958.0, None),
    "nfnet_f6 + SAM": (2774.1, None),
    "bn_efficientnet_b0": (51.1, 44.8),
    "bn_efficientnet_b3": (129.5, 116.6),
    "bn_efficientnet_b4": (245.9, 221.6),
    "bn_efficientnet_b5": (450.5, 458.9),
    "bn_efficientnet_b6": (775.7, 868.2),
    "bn_efficientnet_b7": (1397.0, 1753.3),
}
# NFNets, table 6, batch 32: milliseconds on TPUv3 of the rungs of NFNet's ladder, of F0 to F3
RUNGS = {
    "baseline": (58.0, 116.0, 211.7, 369.5),
    "width": (64.1, 133.9, 252.2, 441.5),
    "second_conv": (73.3, 158.5, 295.8, 532.2),
    "default_width": (65.9, 137.4, 248.8, 452.2),
}
BATCH_NORM = (111.7, 258.0, 396.3, 617.7)  # of "second_conv" with BatchNorm
# NF-ResNets, table 4: steps per second on V100 of NF and BN at batch 16, 32, 64; None: out of memory
RESNETS: dict[int, tuple[tuple[float, float] | None, ...]] = {
    50: ((17.3, 16.42), (10.5, 9.45), (5.79, 5.24)),
    101: ((10.4, 9.4), (6.28, 5.75), (3.46, 3.08)),
    152: ((7.02, 5.57), (4.4, 3.95), (2.4, 2.17)),
    200: ((5.22, 3.53), (3.26, 2.61), None),
    288: ((3.0, 2.25), None, None),
}
# NF-ResNets, table 5: the same of NF-RegNets and EfficientNets at batch 16, at EfficientNet's sizes; what stands at 32
# and 64 cannot be read in the text that we have
REGNETS = ((12.2, 5.23), (9.06, 3.0), (5.84, 2.22), (4.49, 1.57), (2.73, 0.94), (1.66, None))


def steps(ours: str, theirs: str) -> tuple[Published, ...]:
    """Of an NFNet beside ResNet-50 or an EfficientNet (NFNets, table 3), on the machines for which both are printed.

    >>> [round(value.ratio, 2) for value in steps("nfnet_f0", "resnet50")]
    [1.76, 1.61]
    """
    pairs = zip(("TPUv3", "V100"), STEPS.get(ours, ()), STEPS.get(theirs, ()), strict=False)
    return tuple(Published(machine, _BATCH, a, b) for machine, a, b in pairs if a is not None and b is not None)


def rung(name: str, level: int) -> tuple[Published, ...]:
    """Of a rung of NFNet's ladder beside NFNet itself (NFNets, table 6)."""
    return (Published("TPUv3", _BATCH, RUNGS[name][level], RUNGS["second_conv"][level]),)


def batch_norm(level: int) -> tuple[Published, ...]:
    """Of NFNet beside the same network with BatchNorm (NFNets, table 6)."""
    return (Published("TPUv3", _BATCH, RUNGS["second_conv"][level], BATCH_NORM[level]),)


def resnets(depth: int) -> tuple[Published, ...]:
    """Of NF-ResNet and ResNet (NF-ResNets, table 4)."""
    return tuple(_per_second(*pair) for pair in zip(_BATCHES, RESNETS[depth], strict=True))


def regnets(level: int) -> tuple[Published, ...]:
    """Of NF-RegNet and EfficientNet (NF-ResNets, table 5)."""
    return (_per_second(_BATCHES[0], REGNETS[level]),)


def _per_second(batch: int, rates: tuple[float | None, float | None] | None) -> Published:
    ours, theirs = (None if rate is None else 1e3 / rate for rate in rates or (None, None))
    return Published("V100", batch, ours, theirs)
