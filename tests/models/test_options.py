"""Options of a family's class from a recipe or the command line: any wrong value is named, whatever it is."""

import inspect
import math

import numpy as np
import pytest
import torch
from hostile_values import HOSTILE, fuzz
from hypothesis import given
from hypothesis import strategies as st

import normfree
from normfree import UsageError
from normfree.models.config import ModelConfig
from normfree.models.registry import lookup

# one of each class
FAMILIES = ["nfnet_f0", "nf_regnet_b0", "nf_resnet26_small", "timm_test_nfnet", "timm_nf_resnet50", "bn_resnet50"]
FAMILIES += [
    "nf_efficientnet_b0",
    "bn_efficientnet_b0",
    "bn_resnet50_v1",
    "plain_resnet50",
    "fixup_resnet50",
    "skipinit_resnet50",
    "bn_nfnet_f0",
    "gn_resnet50",
]
GIVEN = {"num_classes", "in_chans", "drop_rate", "stochdepth_rate"}  # by other fields of a recipe
NUMBERS = ["x", "0.2", "1e-3", "", True, [0.2], {"a": 1}, math.nan, math.inf, -math.inf, 1e300, 10**400, 1j]
LISTS = [3, "3", "333", "", [], [1.5, 1, 1], ["1", 1, 1], [0, 1, 1], [-1, 1, 1], [True] * 3, [10**9, 1, 1], [[1], 1, 1]]
LISTS += [{"a": 1}, None, [None], [10**400] * 3]
WRONG = {
    "alpha": NUMBERS,
    "skip_gain": NUMBERS,
    "gamma": NUMBERS,
    "ratio": [*NUMBERS, None, 0, -1],
    "se_ratio": [0, -0.5],
    "depths": LISTS,
    "widths": LISTS,
    "squeeze_excite": ["yes", 1, 0, None, []],
    "stem": ["5x5", "", 7, None, ["7x7"]],
    "activation": ["rellu", "", 3, None, ["relu"], {"class_path": "torch.nn.ReLU"}, {"name": "relu"}],
    "global_pool": ["mean", 3, None, [""]],
    "output_stride": [0, -8, 7, 64, "8", 8.0, None, True, 10**30],
}


def options_of(name: str) -> list[str]:
    return [key for key in inspect.signature(lookup(name)[0].__init__).parameters if key not in {"self", *GIVEN}]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_signature_spells_out_what_a_family_passes_on(name):
    parameters = inspect.signature(lookup(name)[0].__init__).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    passed_on = [parameters[key] for key in ("num_classes", "global_pool", "output_stride")]
    assert [(p.default, p.annotation) for p in passed_on] == [(1000, int), ("avg", str), (32, int)]
    assert {"drop_rate", "stochdepth_rate", "in_chans", "widths", "depths"} <= parameters.keys()
    if name in ("nfnet_f0", "nf_regnet_b0", "nf_resnet26_small"):
        assert parameters["alpha"].default == 0.2
        assert (parameters["skip_gain"].default, parameters["skip_gain"].annotation) == (0.0, float | None)


def build(name: str, **options) -> torch.nn.Module:
    with torch.device("meta"):
        return ModelConfig(name, options=options).build(num_classes=10, in_chans=3)


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in WRONG.items() for value in values],
    ids=lambda value: repr(value)[:30],
)
def test_a_wrong_option_is_named(key, value):
    with pytest.raises(
        UsageError, match=rf"^model\.options\.{key} \(=.*must be|^model\.options\.{key} \(=.*unknown"
    ) as e:
        build("nf_resnet26_small", **{key: value})
    message = str(e.value)
    assert message.isprintable()
    assert len(message) < 500
    with pytest.raises(UsageError, match=rf"{key} \(="):  # from Python as well
        normfree.create_model("nf_resnet26_small", **{key: value})


@pytest.mark.scaled
@pytest.mark.parametrize("name", FAMILIES)
def test_every_option_of_every_family(name):
    """30 cases of each family: a network, or a message that names the option."""
    names = options_of(name)

    @fuzz(30)
    @given(key=st.sampled_from(names), value=HOSTILE)
    def check(key, value):
        few = {"depths": [1] * len(lookup(name)[1]["depths"])}
        try:
            build(name, **{**few, key: value})
        except UsageError as error:
            message = str(error)
        else:
            return
        assert f"model.options.{key} (=" in message or f"'{key}'" in message
        assert message.isprintable()
        assert len(message) < 600

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_variants_own_values_are_right(name):
    """Tuples from Python, lists from YAML."""
    cls, variant = lookup(name)
    own = {key: value for key, value in variant.items() if key in options_of(name)}
    depths = [1] * len(own["depths"])
    as_yaml = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
    built = [build(name, **{**given, "depths": depths}) for given in ({}, own, as_yaml)]
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in built]
    assert shapes[0] == shapes[1] == shapes[2]
    assert all(isinstance(model, cls) for model in built)


def test_numbers_of_other_libraries_are_numbers():
    options = dict(depths=tuple(np.array([1, 1, 1])), alpha=np.float32(0.25))
    assert build("nf_resnet26_small", **options).alpha == 0.25


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(depths=[1, 1]), "widths .*, depths .* and strides .* must have one length"),
        (dict(widths=[1, 1, 1]), "out_channels"),
        (dict(ratio=1e-6), "out_channels"),
        (dict(alpha=1e6, depths=[1, 1, 3], group_width=3), "'group_width' is unknown for nf_resnet26_small"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_options_that_do_not_go_together(options, said):
    with pytest.raises(UsageError, match=said) as caught:
        build("nf_resnet26_small", **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["drop_rate", "stochdepth_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, math.inf])
def test_rates_are_checked_with_the_recipe(name, value):
    with pytest.raises(UsageError, match=rf"model\.{name} \(=.*\) must be at least 0 and below 1"):
        ModelConfig("nfnet_f0", **{name: value})
