"""The gradient of each example: the guide's snippet in every family; hooks per layer where they see everything."""

from pathlib import Path

import pytest
import torch
from small_models import small
from torch import nn

import normfree
from normfree import UsageError
from normfree.nn import SkipInit

GUIDE = Path(__file__).parents[2] / "docs" / "building.md"
FOLDED = ["nfnet_f0", "nf_regnet_b0", "nf_resnet50", "nf_seresnet50", "skipinit_resnet50"]
PLAIN = ["plain_resnet50", "fixup_resnet50"]
COUNT = 3


def data():
    return torch.randn(COUNT, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 4, 2])


@pytest.mark.parametrize("name", FOLDED + PLAIN)
def test_the_guides_snippet_gives_the_gradient_of_each_example(name, monkeypatch):
    (code,) = [part.split("```")[0] for part in GUIDE.read_text().split("```python") if "loss_of_one" in part]
    model = small(name).double().eval()
    images, labels = data()
    monkeypatch.setattr(normfree, "create_model", lambda *args, **options: model)
    scope = dict(normfree=normfree, torch=torch, images=images, labels=labels)
    exec(code, scope)
    each = scope["gradients"]
    assert each.keys() == dict(model.named_parameters()).keys()
    for index in range(COUNT):
        model.zero_grad()
        nn.functional.cross_entropy(model(images[index : index + 1]), labels[index : index + 1]).backward()
        for key, p in model.named_parameters():
            # float64, sums in another order; a gradient may cancel
            assert (each[key][index] - p.grad).norm() <= 1e-9 * max(p.grad.norm().item(), 1e-3), key


def hooked(model):
    """As Opacus' GradSampleModule does: every module that owns parameters is watched in both passes."""
    seen = set()
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda module, inputs, output: None)
            module.register_full_backward_hook(lambda module, into, out, name=name: seen.add(name))
    return seen


@pytest.mark.parametrize("name", FOLDED)
def test_hooks_that_would_miss_the_skip_gains_are_refused(name):
    model = small(name)
    hooked(model)
    with pytest.raises(UsageError, match=r"\(GradSampleModule of Opacus\) miss its gradient; .* use torch.func"):
        model(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("name", PLAIN)
def test_hooks_see_every_layer_of_other_networks(name):
    model = small(name)
    seen = hooked(model)
    model(torch.randn(2, 3, 32, 32, requires_grad=True)).sum().backward()
    assert seen == {n for n, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}


def test_a_skip_init_that_is_called_may_be_watched():
    model = nn.Sequential(nn.Linear(3, 3), SkipInit(0.2, 1.0))
    seen = hooked(model)
    model(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert seen == {"0", "1"}
