"""What is wrong with another implementation of Adaptive Gradient Clipping, and that nothing is where nothing is."""

import pytest
import timm.utils.agc
import torch

from normfree import UsageError
from normfree.functional import clip_gradient
from normfree.optim import agc_, check_clipping

norm = torch.linalg.vector_norm


def clipped_by(rule):
    """A function of parameters whose gradients become ``rule(weight, gradient, clipping, eps)``."""

    def clip(parameters, clipping, eps=1e-3):
        for p in parameters:
            if p.grad is not None:
                p.grad.copy_(rule(p.detach(), p.grad, clipping, eps))

    return clip


def vectors_whole(rule):
    """``rule`` of weights; gains and biases as they should be, so that only the fault of weights is left."""

    def of(w, g, c, eps):
        if w.squeeze().ndim > 1:
            return rule(w, g, c, eps)
        return clip_gradient(w.flatten(), g.flatten(), c, eps).view_as(g)

    return of


def over(*dims):
    def rule(w, g, c, eps):
        found = [d % w.ndim for d in dims] or list(range(w.ndim))
        return g * (c * norm(w, dim=found, keepdim=True).clamp(min=eps) / norm(g, dim=found, keepdim=True)).clamp(max=1)

    return vectors_whole(rule)


def units(x):
    return norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def test_ours_is_right():
    check = check_clipping(clipped_by(vectors_whole(clip_gradient)))
    assert check.differing == []
    assert str(check).startswith("clip: 0 of 10 kinds of parameters differ\n")
    assert len(check.notes) == 1
    assert check.notes[0].startswith("weights of transposed convolutions")


@pytest.mark.parametrize("function", [timm.utils.agc.adaptive_clip_grad, agc_], ids=["timm's", "ours, of tensors"])
def test_tensors_do_not_say_that_they_are_gains(function):
    """timm's gains are (out, 1, 1, 1) and one element each; in the authors' code they are one unit."""
    (differing,) = check_clipping(function).differing
    assert differing.layer == "gain, (out, 1, 1, 1)"
    assert differing.reason == "each element has its own norm; a vector is one unit"


@pytest.mark.parametrize(
    ("rule", "kinds", "said"),
    [
        (over(), 6, "one norm for the whole tensor"),
        (vectors_whole(lambda w, g, c, e: over(*({*range(w.ndim)} - {1}))(w, g, c, e)), 5, "each input channel"),
        (vectors_whole(lambda w, g, c, e: over(*range(min(2, w.ndim - 1), w.ndim))(w, g, c, e)), 4, "each kernel"),
        (over(-1), 4, "last dimension alone"),
        (lambda w, g, c, e: g * (c * w.abs().clamp(min=e) / g.abs()).clamp(max=1), 9, "each element"),
        (vectors_whole(lambda w, g, c, e: g), 6, "it is not clipped"),
        (vectors_whole(lambda w, g, c, e: g * (c * (units(w) + e) / units(g)).clamp(max=1)), 6, "eps is added"),
        (vectors_whole(lambda w, g, c, e: clip_gradient(w, g, 2 * c, e)), 6, "the threshold is 0.04 instead of 0.02"),
        (vectors_whole(lambda w, g, c, e: clip_gradient(w, g, c, 1e-2)), 6, "eps acts as 0.01 instead of 0.001"),
        (vectors_whole(lambda w, g, c, e: clip_gradient(w, g, c, 0.0)), 6, "become 0: the bound has no eps"),
        (vectors_whole(lambda w, g, c, e: g * c * units(w).clamp(min=e) / units(g)), 6, "scaled up"),
        (vectors_whole(lambda w, g, c, e: g * (c / units(g)).clamp(max=1)), 6, "not against the weight"),
        (vectors_whole(lambda w, g, c, e: g.sign() * 1e-3), 6, "in another way"),
        (lambda w, g, c, e: clip_gradient(w, g, c, e) if w.ndim > 1 else g, 3, "it is not clipped"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_are_named(rule, kinds, said):
    differing = check_clipping(clipped_by(rule)).differing
    named = [one.layer for one in differing if said in one.reason]
    assert len(named) == kinds, [(one.layer, one.reason) for one in differing]


def test_a_norm_of_all_gradients():
    def torchs(parameters, clipping):
        torch.nn.utils.clip_grad_norm_(parameters, clipping)

    check = check_clipping(torchs)
    assert {one.reason.partition(":")[0] for one in check.differing} == {"it depends on the other gradients"}
    assert len(check.differing) == len(check.layers)
    assert check.notes[-1] == "it takes no eps; compared with 0.001"


def test_gradients_of_zero():
    def careless(w, g, c, e):
        bound = c * units(w).clamp(min=e)
        return torch.where(g.any() & (units(g) < bound), g, g * bound / units(g))

    reasons = {one.reason for one in check_clipping(clipped_by(vectors_whole(careless))).differing}
    assert reasons == {"gradients of 0 become nan"}


def test_shapes_of_the_function():
    def by_names(parameters, eps, clip_factor):
        clipped_by(vectors_whole(clip_gradient))(parameters, clip_factor, eps)

    def of_a_model(model, clipping):
        clipped_by(vectors_whole(clip_gradient))(model.parameters(), clipping, 1e-3)

    assert check_clipping(by_names).differing == check_clipping(of_a_model).differing == []

    def fails(parameters, clipping):
        raise ZeroDivisionError("no\nluck")

    assert {one.reason for one in check_clipping(fails).layers} == {"it fails: ZeroDivisionError: no luck"}
    for wrong in (3, lambda parameters: None):
        with pytest.raises(UsageError, match="function"):
            check_clipping(wrong)
