"""A small network, its groups and losses, optimizers, and what param_groups answers, for tests of normfree.optim."""

import torch
from torch import nn

from normfree.optim import agc_, param_groups

OPTIMIZERS = {
    "SGD": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
    "SGD-foreach": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "SGD-fused": lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "Adam": lambda g: torch.optim.Adam(g, lr=0.1, foreach=False),
    "Adam-foreach": lambda g: torch.optim.Adam(g, lr=0.1, foreach=True),
    "Adam-fused": lambda g: torch.optim.Adam(g, lr=0.1, fused=True),
    "AdamW": lambda g: torch.optim.AdamW(g, lr=0.1),
    "AdamW-fused": lambda g: torch.optim.AdamW(g, lr=0.1, fused=True),
    "RMSprop": lambda g: torch.optim.RMSprop(g, lr=0.1),
}
FUSED = ["SGD-fused", "Adam-fused", "AdamW-fused"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


def groups(model):
    return param_groups(model, weight_decay=0.01, clipping=0.02, roles={"3.weight": "classifier"})


def loss_of(model, step):
    return 10 * model(torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(step))).square().mean()


def parameters_equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def clipped_like(optimizer, model, reference, plain):
    """Whether a step of one clips as ``agc_`` and a step of the other."""
    for net in (model, plain):
        net.zero_grad()
        loss_of(net, 5).backward()
    agc_(reference.param_groups)
    reference.step()
    optimizer.step()
    return parameters_equal(model, plain)


def answers(model, **options):
    """(name of the group, decayed, clipped) by parameter."""
    groups = param_groups(model, **{"weight_decay": 0.1, "clipping": 0.01, **options})
    given = {p: (g["name"], g["weight_decay"] > 0, g["clipping"] is not None) for g in groups for p in g["params"]}
    return {name: given[p] for name, p in model.named_parameters()}
