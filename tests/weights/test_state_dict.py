"""Which tensors of a checkpoint are the network's: wrappers, averages, and what is ambiguous."""

import pytest

from normfree import UsageError
from normfree.weights.state_dict import find_state

NAMES = ("stem.conv.weight", "stages.0.0.conv0.weight", "stages.0.0.conv1.weight", "head.fc.weight")


def state(value: float, prefix: str = "") -> dict[str, float]:
    """Floats stand for tensors."""
    return {prefix + name: value for name in NAMES}


RAW, EMA = state(1.0), state(2.0)
WRAPPED = {
    "bare": RAW,
    "torch's ImageNet example": dict(
        state_dict=state(1.0, "module."), epoch=3, best_acc1=76.5, optimizer=dict(state={})
    ),
    "timm's": dict(state_dict=RAW, arch="x", args=object(), version=2, metric=0.5),
    "lightning": dict(state_dict=state(1.0, "model."), callbacks=dict(x=dict(best=0.5)), hyper_parameters=dict(lr=0.1)),
    "compiled, parallel": dict(model=state(1.0, "_orig_mod.module.")),
    "parallel, compiled": dict(model_state_dict=state(1.0, "module._orig_mod.")),
    "compiled blocks": {name.replace("conv0", "_orig_mod.conv0"): 1.0 for name in NAMES},
    "fsdp": {name.replace("stages.0.", "stages.0._fsdp_wrapped_module."): 1.0 for name in NAMES},
    "deepspeed": dict(module=RAW, optimizer=None),
    "transformers": state(1.0, "timm_model."),
    "AveragedModel": state(1.0, "module.") | dict(n_averaged=5.0),
    "a backbone, with another's head": state(1.0, "backbone.") | {"decode_head.conv.weight": 3.0},
    "an encoder": dict(net=state(1.0, "encoder.")),
    "a loss with weights": dict(state_dict=state(1.0, "model.") | {"criterion.weight": 3.0}),
    "nested": dict(model=dict(state_dict=state(1.0, "module.model."))),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_taken_off(case):
    found, notes = find_state(WRAPPED[case], float, "a.pth")
    assert found == RAW
    outside = [value for value in ("decode_head", "criterion", "n_averaged") if value in str(WRAPPED[case])]
    assert bool(notes) == bool(outside)
    assert all(value in notes[0] for value in outside)


BOTH = {
    "timm's": dict(state_dict=RAW, state_dict_ema=EMA),
    "model_ema": dict(model=state(1.0, "module."), model_ema=state(2.0, "module.")),
    "an object": dict(model=RAW, ema=dict(module=EMA, decay=0.999)),
    "in the names": dict(state_dict=state(1.0, "model.") | state(2.0, "ema_model.")),
}


@pytest.mark.parametrize("case", BOTH)
def test_the_average_is_taken_unless_the_raw_ones_are_asked_for(case):
    found, notes = find_state(BOTH[case], float, "a.pth")
    assert found == EMA
    assert "are taken, not those under" in notes[0]
    assert find_state(BOTH[case], float, "a.pth", "ema")[0] == EMA
    assert find_state(BOTH[case], float, "a.pth", "raw")[0] == RAW


@pytest.mark.parametrize(
    ("content", "weights", "said"),
    [
        (dict(generator=RAW, discriminator=RAW), None, "several sets of weights: 'generator', 'discriminator'"),
        (state(1.0, "student.") | state(2.0, "teacher."), None, "several sets of weights: 'student', 'teacher'"),
        (dict(epoch=3, args=[1]), None, r"no state dict of tensors, but epoch \(int\), args \(list\)"),
        ({}, None, "holds no state dict of tensors"),
        ([1.0], None, r"holds list, not a state dict; save the state_dict\(\)"),
        (RAW, "ema", "has no averaged weights"),
        (dict(model_ema=EMA), "raw", "has no other than averaged weights"),
    ],
)
def test_what_is_not_clear_is_said(content, weights, said):
    with pytest.raises(UsageError, match=f"^a.pth .*{said}"):
        find_state(content, float, "a.pth", weights)
