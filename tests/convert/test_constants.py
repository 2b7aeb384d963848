"""A conversion with the constants of an earlier one: the same function, without a measurement."""

import pytest
import torch
from foreign_blocks import Inverted, Net, PostActivation, PreActivation, collect

from normfree import UsageError
from normfree.convert import convert

SHAPE = (4, 3, 16, 16)


@pytest.mark.parametrize("block", [PostActivation, PreActivation, Inverted], ids=lambda kind: kind.__name__)
def test_weights_of_an_earlier_conversion_give_its_outputs(block):
    first = convert(Net(block(), block()), SHAPE, skip_gain=1.0)
    other = convert(Net(block(), block()), torch.zeros(2, 3, 16, 16), constants=first.constants)
    assert other.constants == first.constants
    assert len(first.constants) > 4
    other.model.load_state_dict(first.model.state_dict())
    x = torch.randn(SHAPE)
    assert torch.equal(other.model.eval()(x), first.model.eval()(x))


def test_other_constants_are_another_function():
    first = convert(Net(PostActivation()), SHAPE)
    name = next(iter(first.constants))
    other = convert(Net(PostActivation()), SHAPE, constants=first.constants | {name: 3.0})
    assert other.constants[name] == 3.0
    other.model.load_state_dict(first.model.state_dict())
    x = torch.randn(SHAPE)
    assert not torch.allclose(other.model.eval()(x), first.model.eval()(x))


def test_nothing_is_computed_on_the_meta_device():
    first = convert(Net(PostActivation()), SHAPE)
    with torch.device("meta"):
        net = Net(PostActivation())
        model = convert(net, torch.zeros(SHAPE), constants=first.constants).model
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in first.model.state_dict().items()
    }


def test_kept_networks_need_no_statistics_then():
    kept = convert(collect(Net(PostActivation())), SHAPE, mode="keep")
    assert kept.constants == {}
    other = convert(Net(PostActivation()), torch.zeros(SHAPE), mode="keep", constants={})
    assert other.difference is None
    other.model.load_state_dict(kept.model.state_dict())
    x = torch.randn(SHAPE)
    assert torch.equal(other.model.eval()(x), kept.model.eval()(x))


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"fc": 2.0}, "constants names 'fc', which has none in this conversion"),
        ({"elsewhere": 2.0}, "constants names 'elsewhere'"),
        ({"stem": float("nan")}, r"constants\['stem'\] \(=nan\) must be a finite number"),
    ],
)
def test_wrong_constants_are_refused(constants, message):
    with pytest.raises(UsageError, match=message):
        convert(Net(PostActivation()), SHAPE, constants=constants)
