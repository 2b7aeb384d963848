"""Optimization of Normalizer-Free networks: who gets what, clipping, sharpness, schedule, averaging."""

from .agc import AGC, ClipStatistics, agc_
from .config import OptimConfig
from .ema import EMA, ema_decay
from .groups import freeze, param_groups
from .sam import SAM
from .schedule import warmup_cosine

__all__ = [
    "AGC",
    "EMA",
    "SAM",
    "ClipStatistics",
    "OptimConfig",
    "agc_",
    "ema_decay",
    "freeze",
    "param_groups",
    "parameter_roles",
    "warmup_cosine",
]
