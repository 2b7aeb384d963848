"""Six steps of the authors' optimizer, on their toy tree: parameters after every step, schedule and average."""

import math

import golden_data as gd
import numpy as np
import pytest
import torch
from torch import nn

from normfree.nn import Role, SkipInit, WSConv2d
from normfree.optim import AGC, EMA, param_groups, warmup_cosine

GOLDEN = gd.load("sgd_agc")
# their name -> ours; "w" is HWIO and IO there
NAMES = {
    "Net/~/conv0/w": "conv0.weight",
    "Net/~/conv0/gain": "conv0.gain",
    "Net/~/conv0/bias": "conv0.bias",
    "Net/~/block/~/conv1/w": "conv1.weight",
    "Net/~/block/~/conv1/gain": "conv1.gain",
    "Net/~/block/~/conv1/bias": "conv1.bias",
    "Net/~/block/~/squeeze_excite/~/linear/w": "linear.weight",
    "Net/~/block/~/squeeze_excite/~/linear/b": "linear.bias",
    "Net/~/block/skip_gain": "skip.skip_gain",
    "Net/~/linear/w": "fc.weight",
    "Net/~/linear/b": "fc.bias",
}


class Toy(nn.Module):
    parameter_roles = {"fc.weight": Role.CLASSIFIER}

    def __init__(self):
        super().__init__()
        self.conv0, self.conv1 = WSConv2d(4, 8, 3), WSConv2d(8, 16, 1)
        self.linear, self.skip, self.fc = nn.Linear(16, 8), SkipInit(), nn.Linear(16, 10)
        for theirs, parameter in self.theirs():
            name, shape = theirs.rsplit("/", 1)[1], GOLDEN[f"clip0.01/ema/{theirs}"].shape
            z = gd.rng(theirs).standard_normal(shape).astype(np.float32)
            value = {
                "w": lambda z: z * np.float32(np.prod(z.shape[:-1]) ** -0.5),
                "gain": lambda z: 1 + np.float32(0.1) * z,
            }
            parameter.data = ours(value.get(name, np.zeros_like)(z), parameter)

    def theirs(self):
        parameters = dict(self.named_parameters())
        return [(theirs, parameters[name]) for theirs, name in NAMES.items()]


def ours(array, parameter):
    """Haiku's layout to torch's: the last dimension, the outputs, becomes the first; HWI becomes IHW."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return torch.from_numpy(np.array(array).transpose(*axes).copy()).view(parameter.shape)


def check(model, values, prefix):
    for theirs, parameter in model.theirs():
        expected = ours(GOLDEN[f"{prefix}/{theirs}"], parameter)
        difference = (values[NAMES[theirs]] - expected).norm()
        # float32 rounding over a few steps; zeros stay exactly zero
        assert difference <= 1e-6 * expected.norm(), (prefix, theirs)


@pytest.mark.parametrize("clipping", ["0.01", "0.16"])
@pytest.mark.parametrize(
    "implementation", [dict(), dict(foreach=True), dict(fused=True)], ids=["loop", "foreach", "fused"]
)
def test_six_steps(clipping, implementation):
    model = Toy()
    groups = param_groups(model, weight_decay=2e-5, clipping=float(clipping))
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, **implementation)
    agc, ema = AGC(optimizer), EMA(model, decay=0.99999)
    fractions = []
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, peak=1.6, total_steps=100, warmup_steps=10)
        for theirs, parameter in model.theirs():
            shape = GOLDEN[f"clip{clipping}/ema/{theirs}"].shape
            gradient = gd.rng(f"grad/{step}/{theirs}").standard_normal(shape) * (0.003 if step % 2 == 0 else 0.3)
            parameter.grad = ours(gradient.astype(np.float32), parameter)
        fractions.append(agc.step().total_fraction)
        ema.update()
        check(model, dict(model.named_parameters()), f"clip{clipping}/step{step}")
    check(model, ema.average, f"clip{clipping}/ema")
    assert max(fractions[::2]) < min(fractions[1::2])  # small and large gradients by turns
    assert 0 < min(fractions) < 0.9  # both sides of the threshold were taken


def test_the_toy_starts_where_the_golden_does():
    check(Toy(), dict(Toy().named_parameters()), "clip0.01/step0")  # at step 0 the learning rate is 0


def test_schedule():
    got = [warmup_cosine(step, peak=1.6, total_steps=100, warmup_steps=10) for step in range(101)]
    np.testing.assert_allclose(got, GOLDEN["schedule_lr"], rtol=1e-6, atol=1e-7)  # theirs went through float32
    assert GOLDEN["schedule_lr"][10] == pytest.approx(1.6, rel=1e-6)
    assert math.isclose(got[100], 0.0, abs_tol=1e-12)
