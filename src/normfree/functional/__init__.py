"""The papers' equations as pure functions of tensors and numbers.

"NF-ResNets" is arXiv:2101.08692 and "NFNets" is arXiv:2102.06171; where paper and released code differ, the released
weights decide (see ``docs/facts.md``).
"""

from .clipping import clip_coefficient, clip_gradient, momentum_step, moving_average, norm_coefficient, unitwise_norm
from .padding import atrous_padding, avg_pool_atrous, avg_pool_same, max_pool_same, pad_same, per_axis, same_padding
from .signal import (
    concat_weights,
    concatenated_variance,
    expected_skip_variances,
    expected_variances,
    residual_merge,
    survival_mask,
)
from .weights import normalize_weight, pull_weight, standardize_transposed, standardize_weight, swap_channels

__all__ = [
    "atrous_padding",
    "avg_pool_atrous",
    "avg_pool_same",
    "clip_coefficient",
    "clip_gradient",
    "concat_weights",
    "concatenated_variance",
    "expected_skip_variances",
    "expected_variances",
    "max_pool_same",
    "momentum_step",
    "moving_average",
    "norm_coefficient",
    "normalize_weight",
    "pad_same",
    "per_axis",
    "pull_weight",
    "residual_merge",
    "same_padding",
    "standardize_transposed",
    "standardize_weight",
    "survival_mask",
    "swap_channels",
    "unitwise_norm",
]
