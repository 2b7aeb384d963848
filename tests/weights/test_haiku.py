"""The authors' weights: there and back bit for bit; what does not fit is named and changes nothing."""

import pickle

import dill
import golden_data as gd
import numpy as np
import pytest
import torch
from small_models import SMALL, small

import normfree
from normfree import UsageError
from normfree.weights import haiku_names, load_haiku, to_haiku

MODELS = gd.MODELS | gd.CONTROLS
ROUND_TRIPS = ["nfnet_f0_64", "nf_regnet_b0_64", "nf_resnet50_64", "nf_seresnet50_75", *gd.CONTROLS]


def equal(a, b) -> bool:
    """The same names, dtypes, shapes and bits."""
    if a.keys() != b.keys() or any(a[module].keys() != b[module].keys() for module in a):
        return False
    pairs = [(np.asarray(a[m][n]), np.asarray(b[m][n])) for m in a for n in a[m]]
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


def changed(arrays, function):
    return {m: {n: function(array) for n, array in inner.items()} for m, inner in arrays.items()}


@pytest.fixture
def model():
    return small("nf_seresnet50")


@pytest.fixture
def arrays(model):
    """Other weights that fit the model."""
    return changed(to_haiku(model), lambda array: (array + 1).astype(np.float32))


@pytest.mark.parametrize("file", ROUND_TRIPS)
def test_round_trip(file):
    weights = gd.parameters(gd.load(file))
    model = normfree.create_model(MODELS[file], num_classes=10)
    assert load_haiku(model, weights) is model
    assert equal(to_haiku(model), weights)


@pytest.mark.parametrize("file", MODELS)
def test_names_and_shapes_are_the_authors(file):
    golden = gd.load(file)
    with torch.device("meta"):
        model = normfree.create_model(MODELS[file], num_classes=10)
    names = haiku_names(model)
    assert names.keys() == dict(model.named_parameters()).keys()
    assert sorted("/".join(key) for key in names.values()) == sorted(golden["param_names"].tolist())


@pytest.mark.parametrize("name", SMALL)
def test_loading_gives_the_same_function(name):
    source, x = small(name), torch.randn(2, 3, 32, 32)
    target = load_haiku(normfree.create_model(name, num_classes=10, **SMALL[name]).eval(), to_haiku(source))
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("name", [*SMALL, "nf_resnet26_small"])
def test_without_classifier(name):
    model = small(name, num_classes=0) if name in SMALL else normfree.create_model(name, num_classes=0)
    assert not any(module.endswith("/~/linear") and "block" not in module for module, _ in haiku_names(model).values())
    arrays = to_haiku(model)
    assert equal(to_haiku(load_haiku(model, arrays)), arrays)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("writer", [pickle, dill], ids=["pickle", "dill"])
def test_files(model, arrays, tmp_path, writer, protocol):
    path = tmp_path / "weights.npz"
    path.write_bytes(writer.dumps(arrays, protocol=protocol))
    for source in (path, str(path)):
        assert equal(to_haiku(load_haiku(small("nf_seresnet50"), source)), arrays)


@pytest.mark.parametrize("protocol", range(4))
@pytest.mark.parametrize("writer", [pickle, dill], ids=["pickle", "dill"])
def test_files_of_numpy_1(model, arrays, tmp_path, writer, protocol):
    content = writer.dumps(arrays, protocol=protocol)
    assert b"numpy._core" in content
    path = tmp_path / "weights.npz"
    path.write_bytes(content.replace(b"cnumpy._core.", b"cnumpy.core."))  # the module's name before numpy 2
    assert equal(to_haiku(load_haiku(model, path)), arrays)


@pytest.mark.parametrize("to_file", [False, True])
@pytest.mark.parametrize(
    "convert",
    [
        lambda a: np.array(a, order="F"),
        lambda a: a.astype(">f4"),
        lambda a: np.array(a, ">f8", order="F"),
        lambda a: a.astype(np.float64),
        lambda a: a[()] if a.ndim == 0 else a,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    ],
    ids=["fortran", "big-endian", "fortran-big-endian-float64", "float64", "numpy-scalars", "strided"],
)
def test_any_memory_layout(model, arrays, tmp_path, convert, to_file):
    source = changed(arrays, convert)
    if to_file:
        path = tmp_path / "weights.npz"
        path.write_bytes(pickle.dumps(source))
        source = path
    assert equal(to_haiku(load_haiku(model, source)), arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.longdouble])
def test_other_number_types_are_rounded_to_the_models(model, arrays, dtype):
    source = changed(arrays, lambda array: (8 * array).astype(dtype))
    expected = changed(source, lambda array: array.astype(np.float32))
    assert equal(to_haiku(load_haiku(model, source)), expected)


def test_float64_models_keep_every_bit(model, arrays):
    source = changed(arrays, lambda array: np.asarray(array.astype(np.float64) + 1e-12))
    assert equal(to_haiku(load_haiku(model.double(), source)), source)


def test_bfloat16_models_give_float32_arrays(model):
    arrays = to_haiku(model.bfloat16())
    assert {array.dtype for inner in arrays.values() for array in inner.values()} == {np.dtype(np.float32)}
    assert equal(to_haiku(load_haiku(model, arrays)), arrays)


def test_arrays_do_not_change_with_the_model(model):
    arrays, expected = to_haiku(model), to_haiku(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert equal(arrays, expected)


def test_model_does_not_change_with_the_arrays(model, arrays):
    expected = changed(arrays, np.copy)
    load_haiku(model, arrays)
    for inner in arrays.values():
        for array in inner.values():
            array += 1
    assert equal(to_haiku(model), expected)


def without(module, name):
    def change(arrays):
        del arrays[module][name]

    return change


def put(module, name, value):
    def change(arrays):
        arrays.setdefault(module, {})[name] = value(arrays[module].get(name)) if callable(value) else value

    return change


ROOT, BLOCK = "NF_ResNet/~", "NF_ResNet/~/nf_res_block_2"


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        (without(BLOCK, "skip_gain"), [f"1 missing ({BLOCK}/skip_gain)"]),
        (lambda arrays: arrays.clear(), ["missing (", f"{ROOT}/initial_conv/w", "..."]),
        (put(f"{ROOT}/stem", "w", 1.0), [f"1 extra ({ROOT}/stem/w)"]),
        (lambda a: a[BLOCK].update(gain=a[BLOCK].pop("skip_gain")), ["1 missing", "1 extra", f"{BLOCK}/gain"]),
        (put(f"{ROOT}/linear", "w", lambda a: a.T), [f"{ROOT}/linear/w has shape (10, 96)", "needs (96, 10)"]),
        (put(f"{ROOT}/linear", "b", lambda a: a[:9]), [f"{ROOT}/linear/b has shape (9,)", "needs (10,)"]),
        (put(BLOCK, "skip_gain", lambda a: a.reshape(1)), [f"{BLOCK}/skip_gain has shape (1,)", "needs ()"]),
        (put(f"{ROOT}/linear", "b", lambda a: a.astype(object)), [f"{ROOT}/linear/b is of type object"]),
        (put(f"{ROOT}/linear", "b", lambda a: a.astype(str)), [f"{ROOT}/linear/b is of type <U"]),
        (put(f"{ROOT}/linear", "b", lambda a: a > 0), [f"{ROOT}/linear/b is of type bool"]),
        (put(f"{ROOT}/linear", "b", lambda a: a.astype(complex)), [f"{ROOT}/linear/b is of type complex"]),
        (put(BLOCK, "skip_gain", None), [f"{BLOCK}/skip_gain is of type object"]),
        (put(f"{ROOT}/linear", "b", [[1.0], [1.0, 2.0]]), [f"{ROOT}/linear/b"]),
        (lambda arrays: arrays.update({f"{ROOT}/linear": np.zeros(3)}), [f"{ROOT}/linear"]),
    ],
    ids=[
        *("missing", "empty", "extra", "renamed", "transposed", "short", "skip_gain-1d"),
        *("object", "str", "bool", "complex", "none", "ragged", "flat"),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_unchanged(model, arrays, change, quoted):
    before = to_haiku(model)
    change(arrays)
    with pytest.raises(UsageError) as error:
        load_haiku(model, arrays)
    assert all(part in str(error.value) for part in [*quoted, *(["nf_seresnet50"] if "..." in quoted else [])])
    assert equal(to_haiku(model), before)


def test_every_misshapen_parameter_is_counted(model, arrays):
    with pytest.raises(UsageError, match=r"and \d+ more"):
        load_haiku(model, changed(arrays, lambda array: array[None]))


def test_weights_of_another_variant_are_refused(model):
    before = to_haiku(model)
    for other in ("nfnet_f0", "nf_resnet50"):
        with pytest.raises(UsageError, match=r"do not fit nf_seresnet50: \d+ missing .* \d+ extra"):
            load_haiku(model, to_haiku(small(other)))
    assert equal(to_haiku(model), before)


def test_a_network_without_counterpart_is_refused():
    with pytest.raises(UsageError, match=r"Linear .*no Haiku counterpart"):
        haiku_names(torch.nn.Linear(2, 2))
