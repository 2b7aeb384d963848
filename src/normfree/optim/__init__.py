"""Optimization of Normalizer-Free networks: parameter groups, clipping, sharpness, schedule, averaging."""

from .adaptive import LAMB, LaProp
from .agc import AGC
from .clip import agc_
from .clip_statistics import ClipStatistics, TensorClipping
from .clipping_check import ClippingCheck, LayerClipping, check_clipping
from .config import OptimConfig
from .ema import EMA, ema_decay
from .fused import FusedStep
from .groups import freeze, param_groups
from .lars import LARS
from .muon import Muon
from .optimizers import OPTIMIZERS
from .pull import WeightPull
from .rmsprop import RMSProp
from .sam import SAM
from .schedule import warmup_cosine, warmup_drops, warmup_exp_decay

__all__ = [
    "AGC",
    "EMA",
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "SAM",
    "ClipStatistics",
    "ClippingCheck",
    "FusedStep",
    "LaProp",
    "LayerClipping",
    "Muon",
    "OptimConfig",
    "RMSProp",
    "TensorClipping",
    "WeightPull",
    "agc_",
    "check_clipping",
    "ema_decay",
    "freeze",
    "param_groups",
    "warmup_cosine",
    "warmup_drops",
    "warmup_exp_decay",
]
