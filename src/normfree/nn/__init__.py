"""Modules to build Normalizer-Free networks from: thin layers over :mod:`normfree.functional`.

Every module with parameters declares their roles in ``parameter_roles`` (see :class:`Role`), from which
:func:`normfree.optim.param_groups` derives weight decay and clipping.
"""

from ..kernels import gated_merge
from .activation import Activation, ScaledActivation
from .affine import Affine, ChannelAffine, affine_conv
from .batch_norm import BATCH_NORM, batch_norms
from .conv import PaddedConv2d, SameConv2d
from .dct import BlockDCT2d
from .pool import AvgPoolSame, MaxPoolSame
from .recompute import Activated, activated, gated_activated
from .residual import SkipInit, StochasticDepth, StochdepthScaling
from .roles import ParameterRole, Role, explain_roles, parameter_roles
from .squeeze_excite import EfficientChannelAttention, SqueezeExcite, lecun_normal_
from .weight_schemes import DecoupledWSConv2d, GainConv2d, SoftWSConv2d, WNConv2d, WSConv2d, recompute_weights
from .whitening import PatchWhitening2d, fit_whitening

__all__ = [
    "BATCH_NORM",
    "Activated",
    "Activation",
    "Affine",
    "AvgPoolSame",
    "BlockDCT2d",
    "ChannelAffine",
    "DecoupledWSConv2d",
    "EfficientChannelAttention",
    "GainConv2d",
    "MaxPoolSame",
    "PaddedConv2d",
    "ParameterRole",
    "PatchWhitening2d",
    "Role",
    "SameConv2d",
    "ScaledActivation",
    "SkipInit",
    "SoftWSConv2d",
    "SqueezeExcite",
    "StochasticDepth",
    "StochdepthScaling",
    "WNConv2d",
    "WSConv2d",
    "activated",
    "affine_conv",
    "batch_norms",
    "explain_roles",
    "fit_whitening",
    "gated_activated",
    "gated_merge",
    "lecun_normal_",
    "parameter_roles",
    "recompute_weights",
]
