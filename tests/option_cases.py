"""The options of the three families beyond their variants: each one, on the small networks of ``small_models``."""

from small_models import small
from torch import nn

AFFINES = ("gain", "bias", "none", "activation")
CASES: list[tuple[str, dict]] = [
    *(("nf_resnet50", dict(affine=affine)) for affine in AFFINES),
    ("nf_resnet50", dict(skip_gain=None)),
    ("nf_resnet50", dict(shortcut="pooled")),
    ("nf_resnet50", dict(first_ratio=0.5, affine="activation", skip_gain=None)),
    ("nf_resnet50", dict(standardize=False, affine="activation", shortcut="pooled")),
    ("nf_seresnet50", dict(se_width="input")),
    ("nf_seresnet50", dict(se_position="middle", affine="activation")),
    ("nf_seresnet50", dict(se_position="straddled", skip_gain=None)),
    *(("nf_regnet_b0", dict(affine=affine)) for affine in AFFINES),
    ("nf_regnet_b0", dict(skip_gain=None, shortcut="strided", first_ratio=None)),
    ("nf_regnet_b0", dict(squeeze_excite=False)),
    ("nf_regnet_b0", dict(se_width="input", se_position="end")),
    ("nf_regnet_b0", dict(group_width=1)),
    ("nf_regnet_b0", dict(group_width=1, standardize_depthwise=False)),
    ("nf_regnet_b0", dict(group_width=1, standardize_depthwise=False, affine="gain")),
    *(("nfnet_f0", dict(affine=affine)) for affine in AFFINES),
    ("nfnet_f0", dict(skip_gain=None, shortcut="strided")),
    ("nfnet_f0", dict(spatial_convs=1, squeeze_excite=False)),
    ("nfnet_f0", dict(se_position="straddled", pointwise_groups=2)),
    ("nfnet_f0", dict(se_position="middle", se_width="input", pointwise_groups=4)),
    ("nfnet_f0", dict(ratio=(0.25, 0.25, 0.5, 0.5), ratio_of=("input", "input", "output", "output"), group_width=4)),
    ("nfnet_f0", dict(group_width=(2, 2, 4, 4), ratio_of="input")),
    *(("nfnet_f0", dict(stem=stem)) for stem in ("3x 3x3", "7x7", "7x7-nopool", "dct")),
    ("nfnet_f0", dict(stem="dct", affine="activation", squeeze_excite=False)),
    *((name, dict(final=final)) for name in ("nfnet_f0", "nf_regnet_b0") for final in ("linear", "none")),
    *((name, dict(global_pool="logits")) for name in ("nf_resnet50", "nfnet_f0")),
]


def case_name(value: object) -> str:
    return ",".join(f"{key}={choice}" for key, choice in value.items()) if isinstance(value, dict) else str(value)


def network(name: str, options: dict) -> nn.Module:
    """Its small version, in evaluation mode, every parameter away from the value that hides mistakes."""
    return small(name, **options)
