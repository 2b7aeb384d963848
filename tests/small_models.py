"""One small network of each family, with every parameter away from the value that would hide a mistake."""

import torch

import normfree

# Same classes, blocks and strides as the variants; fewer and narrower blocks.
SMALL = {
    "nfnet_f0": dict(widths=(32, 48, 64, 64), depths=(1, 2, 1, 1), group_width=8),
    "nf_regnet_b0": dict(widths=(16, 24, 32, 48), depths=(1, 2, 2, 1)),
    "nf_resnet50": dict(widths=(32, 48, 64, 96), depths=(2, 1, 2, 1)),
    "nf_seresnet50": dict(widths=(32, 48, 64, 96), depths=(1, 2, 1, 1)),
}
CONTROLS = {
    "bn_resnet50": dict(widths=(32, 48, 64, 96), depths=(2, 1, 2, 1), squeeze_excite=True),
    "bn_resnet50_v1": dict(widths=(32, 48, 64, 96), depths=(2, 1, 2, 1), squeeze_excite=True),
    "plain_resnet50": dict(widths=(32, 48, 64, 96), depths=(2, 1, 1, 1)),
    "fixup_resnet50": dict(widths=(32, 48, 64, 96), depths=(2, 1, 2, 1)),
    "skipinit_resnet50": dict(widths=(32, 48, 64, 96), depths=(2, 1, 2, 1)),
    "bn_nfnet_f0": dict(widths=(32, 48, 64, 64), depths=(1, 2, 1, 1), group_width=8),
}
EFFICIENTNETS = {
    f"{kind}_efficientnet_b0": dict(widths=(8, 16, 24, 32, 40, 48, 56), depths=(1, 2, 2, 1, 2, 2, 1), stem_width=16)
    for kind in ("nf", "bn")
}
GROUP_NORM = {"gn_resnet50": dict(widths=(32, 48, 64, 96), depths=(2, 1, 2, 1), squeeze_excite=True)}
WITHOUT_NORM = ["plain_resnet50", "fixup_resnet50", "skipinit_resnet50"]


def small(name: str, **options) -> torch.nn.Module:
    """The variant's small version, 10 classes, no dropout, no stochastic depth, in evaluation mode."""
    options = (
        dict(num_classes=10, drop_rate=0.0, stochdepth_rate=0.0)
        | (SMALL | CONTROLS | EFFICIENTNETS | GROUP_NORM)[name]
        | options
    )
    return shake(normfree.create_model(name, **options).eval())


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [block for stage in model.stages for block in stage]


def batch_norms(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@torch.no_grad()
def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Seeded by the caller: gains, scales and running variances 1 + 0.1 z, skip gains 0.5 + 0.1 z, biases and running
    means 0.1 z, the classifier and convolutions of zeros z / sqrt(fan-in)."""
    for name, parameter in model.named_parameters():
        z = torch.randn_like(parameter)
        if name.endswith("skip_gain"):
            parameter.copy_(0.5 + 0.1 * z)
        elif name.endswith(("gain", "scale")) or (name.endswith("weight") and parameter.ndim == 1):
            parameter.copy_(1 + 0.1 * z)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * z)
        elif name.endswith("head.fc.weight") or (parameter.ndim == 4 and not parameter.any()):
            parameter.copy_(z * parameter[0].numel() ** -0.5)
    for norm in batch_norms(model):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.normal_(mean=1.0, std=0.1)
    return model


def grads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}
