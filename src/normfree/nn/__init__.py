"""Modules to build Normalizer-Free networks from: thin layers over :mod:`normfree.functional`.

Every module with parameters declares their roles in ``parameter_roles`` (see :class:`Role`), from which
:func:`normfree.optim.param_groups` derives weight decay and clipping.
"""

from ..kernels import gated_merge
from .activation import Activation, ScaledActivation
from .affine import Affine, ChannelAffine, affine_conv
from .batch_norm import BATCH_NORM, batch_norms
from .concat import ScaledConcat
from .conv import SameConv, SameConv1d, SameConv2d, SameConv3d
from .dct import BlockDCT2d
from .folded import PaddedConv1d, PaddedConv2d, PaddedConv3d
from .linear import WSLinear
from .pool import AvgPoolSame, MaxPoolSame
from .recompute import Activated, activated, gated_activated
from .residual import SkipInit, StochasticDepth, StochdepthScaling
from .roles import ParameterRole, Role, explain_roles, parameter_roles, transposed_groups
from .squeeze_excite import EfficientChannelAttention, SqueezeExcite, lecun_normal_, mean_over_places
from .transposed import WSConvTranspose, WSConvTranspose1d, WSConvTranspose2d, WSConvTranspose3d
from .weight_schemes import (
    DecoupledWSConv,
    DecoupledWSConv1d,
    DecoupledWSConv2d,
    DecoupledWSConv3d,
    GainConv,
    GainConv1d,
    GainConv2d,
    GainConv3d,
    SoftWSConv,
    SoftWSConv1d,
    SoftWSConv2d,
    SoftWSConv3d,
    WNConv,
    WNConv1d,
    WNConv2d,
    WNConv3d,
    WSConv,
    WSConv1d,
    WSConv2d,
    WSConv3d,
    recompute_weights,
)
from .whitening import PatchWhitening2d, fit_whitening

__all__ = [
    "BATCH_NORM",
    "Activated",
    "Activation",
    "Affine",
    "AvgPoolSame",
    "BlockDCT2d",
    "ChannelAffine",
    "DecoupledWSConv",
    "DecoupledWSConv1d",
    "DecoupledWSConv2d",
    "DecoupledWSConv3d",
    "EfficientChannelAttention",
    "GainConv",
    "GainConv1d",
    "GainConv2d",
    "GainConv3d",
    "MaxPoolSame",
    "PaddedConv1d",
    "PaddedConv2d",
    "PaddedConv3d",
    "ParameterRole",
    "PatchWhitening2d",
    "Role",
    "SameConv",
    "SameConv1d",
    "SameConv2d",
    "SameConv3d",
    "ScaledActivation",
    "ScaledConcat",
    "SkipInit",
    "SoftWSConv",
    "SoftWSConv1d",
    "SoftWSConv2d",
    "SoftWSConv3d",
    "SqueezeExcite",
    "StochasticDepth",
    "StochdepthScaling",
    "WNConv",
    "WNConv1d",
    "WNConv2d",
    "WNConv3d",
    "WSConv",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WSConvTranspose",
    "WSConvTranspose1d",
    "WSConvTranspose2d",
    "WSConvTranspose3d",
    "WSLinear",
    "activated",
    "affine_conv",
    "batch_norms",
    "explain_roles",
    "fit_whitening",
    "gated_activated",
    "gated_merge",
    "lecun_normal_",
    "mean_over_places",
    "parameter_roles",
    "recompute_weights",
    "transposed_groups",
]
