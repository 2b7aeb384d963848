"""Gradients of single examples, by one ordinary backward pass for each."""

import torch
import torch.nn.functional as F
from small_models import CONTROLS, EFFICIENTNETS, GROUP_NORM, SMALL, WITHOUT_NORM, shake, small

import normfree

# every family whose examples have gradients of their own
FAMILIES = [
    *SMALL,
    *WITHOUT_NORM,
    *GROUP_NORM,
    "nf_efficientnet_b0",
    "nf_cifarnet",
    "timm_dm_nfnet_f0",
    "timm_eca_nfnet_l0",
]
_THIN = dict(depths=(1, 1, 1, 1), widths=(16, 32, 48, 48), num_classes=10, group_width=8)


def network(name: str, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A small network, in training mode without dropout, whose every parameter has a gradient."""
    if name in SMALL | CONTROLS | EFFICIENTNETS | GROUP_NORM:
        return small(name).to(dtype).train()
    if name == "nf_cifarnet":
        model = normfree.create_model(name, num_classes=10, widths=(16, 24, 24), stem="3x3")
    else:
        model = normfree.create_model(name, **_THIN)
    return shake(model).to(dtype).train()


def examples(count: int, dtype: torch.dtype = torch.float64, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, size, size, dtype=dtype), torch.randint(10, (count,))


def one_by_one(model, x, labels, views: int = 1, loss=F.cross_entropy) -> list[dict[str, torch.Tensor]]:
    """Gradients by name, for each example of ``views`` rows."""
    found = []
    for begin in range(0, len(x), views):
        model.zero_grad()
        loss(model(x[begin : begin + views]), labels[begin : begin + views]).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return found


def norm_of(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    """Over all parameters, in float64."""
    return torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()
