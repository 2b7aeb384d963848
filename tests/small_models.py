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


def small(name: str, **options) -> torch.nn.Module:
    """The variant's small version, 10 classes, no dropout, no stochastic depth, in evaluation mode."""
    options = dict(num_classes=10, drop_rate=0.0, stochdepth_rate=0.0) | SMALL[name] | options
    return shake(normfree.create_model(name, **options).eval())


@torch.no_grad()
def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Gains 1 + 0.1 z, skip gains 0.5 + 0.1 z, biases 0.1 z, classifier z / sqrt(fan-in); seeded by the caller."""
    for name, parameter in model.named_parameters():
        z = torch.randn_like(parameter)
        if name.endswith("skip_gain"):
            parameter.copy_(0.5 + 0.1 * z)
        elif name.endswith("gain"):
            parameter.copy_(1 + 0.1 * z)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * z)
        elif name.endswith("head.fc.weight"):
            parameter.copy_(z * parameter.shape[1] ** -0.5)
    return model


def grads(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}
