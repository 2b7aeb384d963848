"""The controls in the authors' naming, and BatchNorm's running statistics, which Haiku keeps apart."""

import numpy as np
import pytest
import torch
from small_models import CONTROLS, WITHOUT_NORM, small

import normfree
from normfree import UsageError
from normfree.weights import haiku_names, load_haiku, to_haiku

MAPPED = [name for name in CONTROLS if name != "bn_nfnet_f0"]
WITH_NORM = [name for name in MAPPED if name not in WITHOUT_NORM]
V1 = "ResNet/~/res_block_v1"


def equal(a, b) -> bool:
    """The same names, dtypes, shapes and bits."""
    if a.keys() != b.keys() or any(a[module].keys() != b[module].keys() for module in a):
        return False
    pairs = [(a[m][n], b[m][n]) for m in a for n in a[m]]
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


def flat(arrays):
    return {f"{module}/{name}": array for module, inner in arrays.items() for name, array in inner.items()}


def fresh(name):
    torch.manual_seed(1)
    return small(name)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("name", MAPPED)
def test_round_trip(name, state):
    source, target, x = small(name), fresh(name), torch.randn(2, 3, 32, 32)
    arrays = to_haiku(source, state=state)
    assert load_haiku(target, arrays) is target
    assert equal(to_haiku(target, state=state), arrays)
    assert torch.equal(target(x), source(x)) == (state or name in WITHOUT_NORM)  # evaluation uses the statistics
    # batch statistics make them irrelevant
    assert torch.equal(target.train()(x), source.train()(x))


@pytest.mark.parametrize("name", MAPPED)
def test_every_parameter_has_one_name(name):
    model = small(name)
    names = haiku_names(model)
    assert names.keys() == dict(model.named_parameters()).keys()
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stem.conv.weight", "ResNet/~/initial_conv/w"),
        ("stem.bn.weight", "ResNet/~/initial_bn/scale"),
        ("stages.0.0.conv_shortcut.weight", f"{V1}/~/conv_shortcut/w"),
        ("stages.0.0.shortcut_bn.weight", f"{V1}/shortcut_bn/scale"),  # made where it is called: no "~"
        ("stages.0.0.shortcut_bn.bias", f"{V1}/shortcut_bn/offset"),
        ("stages.0.1.bn2.bias", f"{V1}_1/~/bn2/offset"),
        ("stages.2.0.shortcut_bn.weight", f"{V1}_3/shortcut_bn/scale"),
        ("stages.2.0.squeeze_excite.fc1.bias", f"{V1}_3/~/squeeze_excite/~/linear_1/b"),
        ("head.fc.weight", "ResNet/~/linear/w"),
    ],
)
def test_names_of_v1(ours, theirs):
    model = small("bn_resnet50_v1")
    assert "/".join(haiku_names(model)[ours]) == theirs
    assert theirs in flat(to_haiku(model))


def test_layouts():
    arrays = flat(to_haiku(small("bn_resnet50_v1"), state=True))
    assert arrays[f"{V1}/shortcut_bn/scale"].shape == (1, 1, 1, 32)
    assert arrays[f"{V1}/shortcut_bn/~/mean_ema/average"].shape == (1, 1, 1, 32)
    assert arrays[f"{V1}/~/conv1/w"].shape == (3, 3, 8, 8)
    fixup = flat(to_haiku(small("fixup_resnet50")))
    block = "FixUp_ResNet/~/res_block_2"
    assert {fixup[f"{block}/{name}"].shape for name in ("scale", "bias1a", "bias3b")} == {()}
    assert fixup["FixUp_ResNet/bias1"].shape == fixup["FixUp_ResNet/bias2"].shape == ()
    skipinit = flat(to_haiku(small("skipinit_resnet50")))
    assert skipinit["SkipInit_ResNet/~/nf_res_block_2/skip_gain"].shape == ()
    assert skipinit["SkipInit_ResNet/~/nf_res_block_2/~/conv1/b"].shape == (12,)


@pytest.mark.parametrize("name", WITH_NORM)
def test_running_statistics_under_haikus_names(name):
    model = small(name)
    bare, whole = flat(to_haiku(model)), flat(to_haiku(model, state=True))
    added = {key: whole[key] for key in whole.keys() - bare.keys()}
    buffers = {key: value for key, value in model.named_buffers() if not key.endswith("num_batches_tracked")}
    assert len(added) == len(buffers)
    names = haiku_names(model)
    for key, value in buffers.items():
        layer, _, kind = key.rpartition(".")
        module = names[f"{layer}.weight"][0]
        ema = dict(running_mean="mean_ema", running_var="var_ema")[kind]
        np.testing.assert_array_equal(added[f"{module}/~/{ema}/average"].ravel(), value.numpy())


def with_state(model):
    """Arrays of other values as Haiku would store them: with a counter and the sum before its correction."""
    arrays = {m: {n: a + np.float32(1) for n, a in inner.items()} for m, inner in to_haiku(model, state=True).items()}
    for module, inner in arrays.items():
        if module.endswith("_ema"):
            inner.update(hidden=inner["average"] * np.float32(0.5), counter=np.array(7, np.int32))
    return arrays


@pytest.mark.parametrize("name", WITH_NORM)
def test_haikus_counter_and_hidden_are_not_needed(name):
    arrays = with_state(small(name))
    model = load_haiku(fresh(name), arrays)
    kept = {m: {n: a for n, a in inner.items() if n not in ("counter", "hidden")} for m, inner in arrays.items()}
    assert equal(to_haiku(model, state=True), kept)
    assert equal(to_haiku(load_haiku(fresh(name), kept), state=True), kept)


def drop(module, name):
    return lambda arrays: arrays[module].pop(name)


def put(module, name, array):
    return lambda arrays: arrays.setdefault(module, {}).update({name: array})


EMA = f"{V1}/shortcut_bn/~/mean_ema"


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        (drop(EMA, "average"), [f"1 missing ({EMA}/average)"]),
        (drop(f"{V1}/shortcut_bn", "offset"), [f"1 missing ({V1}/shortcut_bn/offset)"]),
        (put(f"{V1}_1/shortcut_bn", "scale", np.ones((1, 1, 1, 32))), [f"1 extra ({V1}_1/shortcut_bn/scale)"]),
        (put(f"{V1}_1/~/bn7/~/var_ema", "average", np.ones(3)), ["1 extra", f"{V1}_1/~/bn7/~/var_ema/average"]),
        (put(EMA, "average", np.ones(32)), [f"{EMA}/average has shape (32,)", "needs (1, 1, 1, 32)"]),
        (put(f"{V1}/~/bn0", "scale", np.ones(())), [f"{V1}/~/bn0/scale has shape ()", "needs (1, 1, 1, 8)"]),
        (put(EMA, "average", np.full((1, 1, 1, 32), "x")), [f"{EMA}/average is of type <U"]),
    ],
    ids=["missing-ema", "missing", "extra", "extra-ema", "flat-ema", "scalar-scale", "text-ema"],
)
def test_what_does_not_fit_is_named_and_the_model_unchanged(change, quoted):
    model = small("bn_resnet50_v1")
    before, arrays = to_haiku(model, state=True), with_state(model)
    change(arrays)
    with pytest.raises(UsageError) as error:
        load_haiku(model, arrays)
    assert all(part in str(error.value) for part in quoted)
    assert equal(to_haiku(model, state=True), before)


def test_misshapen_scalars_of_fixup_are_named():
    model = small("fixup_resnet50")
    arrays, block = to_haiku(model), "FixUp_ResNet/~/res_block_1"
    arrays[block]["bias2a"] = arrays[block]["bias2a"].reshape(1)
    del arrays[block]["scale"]
    with pytest.raises(UsageError, match=rf"1 missing \({block}/scale\)"):
        load_haiku(model, arrays)
    arrays[block]["scale"] = np.float32(1)
    with pytest.raises(UsageError, match=rf"{block}/bias2a has shape \(1,\), \w+ needs \(\)"):
        load_haiku(model, arrays)


@pytest.mark.parametrize("name", WITHOUT_NORM)
def test_running_statistics_of_a_network_without_any_are_extra(name):
    model = small(name)
    arrays = to_haiku(model, state=True)
    assert equal(arrays, to_haiku(model))
    put("X/~/bn0/~/mean_ema", "average", np.ones((1, 1, 1, 8), np.float32))(arrays)
    with pytest.raises(UsageError, match=r"1 extra \(X/~/bn0/~/mean_ema/average\)"):
        load_haiku(model, arrays)


def test_one_controls_weights_do_not_fit_another():
    arrays = to_haiku(small("bn_resnet50"))
    with pytest.raises(UsageError, match=r"do not fit bn_resnet50_v1: \d+ missing .*initial_bn.* \d+ extra .*final_bn"):
        load_haiku(small("bn_resnet50_v1"), arrays)


def test_the_nfnet_with_batch_norm_has_no_counterpart():
    with pytest.raises(UsageError, match=r"BNNFNet \(family 'bn_nfnet'\) has no Haiku counterpart"):
        haiku_names(small("bn_nfnet_f0"))


def test_raw_weights_of_the_nf_resnet():
    model = normfree.create_model("nf_resnet50", widths=(32, 48), depths=(1, 1), standardize=False)
    arrays = flat(to_haiku(model))
    assert {"NF_ResNet/~/nf_res_block/~/conv0/w", "NF_ResNet/~/nf_res_block/~/conv0/b"} <= arrays.keys()
    assert not any(key.endswith("/gain") for key in arrays)
    assert equal(to_haiku(load_haiku(model, to_haiku(model))), to_haiku(model))
