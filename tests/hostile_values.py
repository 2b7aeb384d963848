"""Values for fields and options that nobody means, and plausible ones, as Hypothesis draws them."""

import datetime
import typing
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers
from selection import share

from normfree.recipes import field_paths

# it would also draw constants of whatever modules are loaded: other cases with each change of the library
providers._get_local_constants = lambda: providers._local_constants
FIELDS = field_paths()
LETTERS = "abcdefghijklmnopqrstuvwxyz_0123456789-"
OBJECT = {"class_path": "os.system", "init_args": {"command": "true"}}  # what a configuration parser might build


def fuzz(cases: int, **options) -> settings:
    """The same cases in every run: so many in a whole one, a share of them by default; mark the test ``scaled``."""
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=share(cases), deadline=None, derandomize=True, database=None, suppress_health_check=slow, **options
    )


def nested(depth: int, mapping: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if mapping else [value]
    return value


STRANGE = [2**63, 10**30, -(10**30), 10**400, 1 << 20_000, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324]
STRANGE += [-0.0, "", "é\n", "a\r\nb", "\x00", "\x1b[2J", "\u2028", "\ud800", "x" * 5000, "null", "1e-3", "[", "{a: b"]
STRANGE += ["!!python/name:os.system", "${HOME}", "../../x", b"\xff\x00", datetime.date(2020, 1, 1)]
STRANGE += [datetime.datetime(2020, 1, 1, 1, 1), {1, 2}, (1, 2), OBJECT, {"__path__": 1}, {None: 1}, {(1, 2): 3}, [[]]]
STRANGE += [
    {"a": {"b": {"c": None}}},
    [0] * 3000,
    nested(50, True),
    nested(5000, True),
    nested(5000, False),
    1 + 2j,
    ...,
]

SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates() | st.binary(max_size=3)
)
KEYS = st.text(max_size=5) | st.integers(-3, 3) | st.none() | st.booleans()
ANYTHING = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=5
)
HOSTILE = st.sampled_from(STRANGE) | ANYTHING


def of_field(path: str) -> st.SearchStrategy:
    """Values of a field, most of them in range: one of its names, or of its type."""
    names = FIELDS[path].metadata.get("one_of")
    return st.sampled_from(list(names)) if names else of_type(FIELDS[path].type)


def of_type(annotation: Any) -> st.SearchStrategy:
    """Values of a field's type, most of them in range."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is tuple:
        return st.lists(of_type(args[0]), min_size=1, max_size=3)
    if origin is dict:
        if args[1] is Any:
            return st.dictionaries(st.sampled_from(["alpha", "depths", "activation", "é"]), OPTION_VALUES, max_size=2)
        return st.dictionaries(st.sampled_from(["stem", "gain", "bias", "weight"]), of_type(args[1]), max_size=2)
    if args:
        return st.one_of(*map(of_type, args))
    simple = {
        int: st.integers(1, 100) | st.integers(-1, 4),
        float: st.floats(0, 1, exclude_max=True) | st.floats(-1, 100) | st.integers(0, 3),
        str: st.sampled_from(["digits", "nf_resnet26_small", "imagefolder:a b", "cpu"]) | st.text(max_size=8),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[annotation]


OPTION_VALUES = st.sampled_from([0.2, 1, 2.25, True, None, "silu", "7x7", [1, 1, 1], [16, 16, 32], [8], {"a": [1]}])


@st.composite
def misspelt(draw, name: str) -> str:
    """A name with one letter too many, too few, another one, or two exchanged."""
    at = draw(st.integers(0, len(name) - 1))
    letter, kind = draw(st.sampled_from(LETTERS)), draw(st.integers(0, 3))
    if kind == 3:
        return name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :]
    return name[:at] + ("" if kind == 0 else letter) + name[at + (kind < 2) :]


def edits(a: str, b: str) -> int:
    """How many letters must be put in, taken out, replaced, or exchanged with the next."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y)))
            if i > 1 and j > 1 and (x, a[i - 2]) == (b[j - 2], y):
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]
