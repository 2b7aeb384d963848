"""The axes of a study: what is varied, and the values that it takes."""

import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, did_you_mean, listed
from ..recipes import field_paths, nearest_fields
from ..words import shown

MOST_VALUES = 1000  # of an axis
RANGE = ("from", "to", "times", "plus")


@dataclass(frozen=True)
class Value:
    """One value of an axis.

    Attributes:
        name: as tables show it.
        number: the same as a number, for plots; None: it is none.
        fields: what the recipe says for it, by dotted path.
    """

    name: str
    number: float | None
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """What is varied: a field of the recipe, or a name for several fields."""

    name: str
    values: tuple[Value, ...]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(value.number is not None for value in self.values)

    def find(self, value: Any, where: str) -> Value:
        """A value of the axis by its name.

        Raises:
            UsageError: the axis has no such value; ``where`` says who asks.
        """
        found = next((one for one in self.values if one.name == label(value)), None)
        if found is None:
            names = [one.name for one in self.values]
            hint = did_you_mean(label(value), names, f"it has {', '.join(names)}")
            raise UsageError(f"{where}: the axis {self.name} has no value {shown(value)}; {hint}")
        return found


def label(value: Any) -> str:
    """A value as text, the same for 8 and 8.0.

    >>> label(0.05), label(8.0), label(None), label("relu"), label([1, 2])
    ('0.05', '8', 'null', 'relu', '[1,2]')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, separators=(",", ":"))


def check_keys(content: Any, known: Iterable[str], where: str) -> None:
    """Refuse what is not a mapping with known keys.

    Raises:
        UsageError: a key is unknown; the nearest one is suggested.
    """
    known = list(known)
    if not isinstance(content, Mapping):
        raise UsageError(f"{where} (={shown(content)}) must be a mapping of {', '.join(known)}")
    for key in content:
        if key not in known:
            hint = did_you_mean(str(key), known, f"there are {', '.join(known)}")
            raise UsageError(f"{where}: key {shown(key)} is unknown; {hint}")


def check_field(path: Any, where: str) -> None:
    """Refuse what is not the dotted path of a field of a recipe.

    Raises:
        UsageError: it is none; the nearest one is suggested.
    """
    known = field_paths()
    mappings = [f"{name}." for name, item in known.items() if typing.get_origin(item.type) is dict]
    if path in known or (isinstance(path, str) and any(path.startswith(name) and path != name for name in mappings)):
        return
    near = nearest_fields(str(path), known)
    hint = f"did you mean {listed(near)}?" if near else "`normfree train --help` lists them"
    raise UsageError(f"{where}: {shown(path)} is no field of a recipe; {hint}")


def parse_axis(name: Any, content: Any, where: str) -> Axis:
    """An axis as a study's file writes it.

    >>> [value.name for value in parse_axis("train.batch_size", {"from": 1, "to": 64, "times": 4}, "study").values]
    ['1', '4', '16', '64']
    >>> parse_axis("clipping", {"on": {"optim.clipping": 0.01}, "off": {"optim.clipping": None}}, "study").values[0]
    Value(name='on', number=None, fields={'optim.clipping': 0.01})

    Args:
        content: of a field a list or a range; of another name a mapping of values to fields.
        where: the study, for messages.

    Raises:
        UsageError: it is neither; a field is unknown; a value is there twice.
    """
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: the name of an axis (={shown(name)}) must be text")
    where = f"{where}, axis {name}"
    if "." in name:
        check_field(name, where)
        values = [Value(label(value), _number(value), {name: value}) for value in _several(content, where)]
    elif isinstance(content, Mapping) and content and not set(content) <= set(RANGE):
        values = [Value(label(key), _number(key), _fields(fields, where, key)) for key, fields in content.items()]
    else:
        near = nearest_fields(name, field_paths())
        hint = f"did you mean the field {listed(near)}?" if near else "a field has a dot in its name"
        wanted = "a mapping of names to fields, as in nf: {model.name: nf_resnet50}"
        raise UsageError(f"{where} (={shown(content)}) must be {wanted}; {hint}")
    names = [value.name for value in values]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{where} has the value {twice} twice; leave one of them out")
    return Axis(name, tuple(values))


def _fields(fields: Any, where: str, key: Any) -> dict[str, Any]:
    """The fields of a named value; none where it is empty."""
    if fields is None:
        return {}
    if not isinstance(fields, Mapping):
        raise UsageError(f"{where}: {key} (={shown(fields)}) must be a mapping of dotted fields to values")
    for path in fields:
        check_field(path, f"{where}: {key}")
    return dict(fields)


def _several(content: Any, where: str) -> list[Any]:
    if isinstance(content, Mapping):
        return _range(content, where)
    if not isinstance(content, list) or not content:
        raise UsageError(
            f"{where} (={shown(content)}) must be a list of values, or a range: {{from: 1, to: 4096, times: 4}}"
        )
    if len(content) > MOST_VALUES:
        raise UsageError(f"{where} has {len(content):,} values; there can be {MOST_VALUES:,}")
    return content


def _range(content: Mapping[str, Any], where: str) -> list[int | float]:
    """All numbers from the first to the last, each ``times`` or ``plus`` so much of the one before."""
    check_keys(content, RANGE, where)
    steps = [key for key in ("times", "plus") if key in content]
    lacking = [key for key in ("from", "to") if key not in content]
    if lacking or len(steps) != 1:
        wrong = f"lacks {' and '.join(lacking)}" if lacking else "must have one of times and plus"
        raise UsageError(f"{where}: the range {wrong}, as in {{from: 1, to: 4096, times: 4}}")
    for key, value in content.items():
        if _number(value) is None:
            raise UsageError(f"{where}: {key} (={shown(value)}) must be a number")
    (how,), first, last = steps, content["from"], content["to"]
    step, least = content[how], 1 if how == "times" else 0
    if not step > least:
        raise UsageError(f"{where}: {how} (={shown(step)}) must be above {least}")
    if how == "times" and not first > 0:
        raise UsageError(f"{where}: from (={shown(first)}) must be above 0, since it is multiplied")
    found, value, count = [], first, 0
    while value <= last * (1 + 1e-9) if last > 0 else value <= last:
        found.append(value if isinstance(value, int) else float(f"{value:.10g}"))
        count += 1
        value = first * step**count if how == "times" else first + step * count
        if count > MOST_VALUES:
            raise UsageError(f"{where}: the range has more than {MOST_VALUES:,} values")
    if not found:
        raise UsageError(f"{where}: to (={shown(last)}) must be at least from (={shown(first)})")
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
