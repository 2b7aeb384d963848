"""What a study is and costs, in lines for the terminal."""

from collections.abc import Sequence

from ..report.axes import compact
from ..words import counted
from .cost import Planned, total
from .study import Study

SHOWN = 5  # cells that cannot be run, unless all are listed


def described(study: Study, planned: Sequence[Planned], *, whole: bool) -> list[str]:
    """The axes, the sums, and with ``whole`` each combination of values."""
    width = max(len("seeds"), *(len(axis.name) for axis in study.axes))
    lines = [f"{study.title}: recipe {study.base}"]
    lines += [f"  {axis.name:{width}}  {', '.join(value.name for value in axis.values)}" for axis in study.axes]
    lines += [f"  {'seeds':{width}}  {', '.join(map(str, study.seeds))}"]
    if whole:
        lines += ["", *_rows([one for one in planned if one.cell.seed == study.seeds[0]]), ""]
    sums = total(planned)
    lines.append(
        f"{counted(sums['runs'], 'run')}: {counted(sums['steps'], 'step')}, {compact(sums['images'])} images, "
        f"{_operations(sums['operations'])} operations of training (2 per multiply-add, 3 forward passes per step)"
    )
    if missing := next((one.missing for one in planned if one.missing), ""):
        lines.append(f"the number of images is the study's, since they are not there: {missing}")
    refused = [one for one in planned if one.refused]
    lines += [f"cannot be run: {one.cell.name}: {one.refused}" for one in refused[: None if whole else SHOWN]]
    return lines


def _rows(planned: Sequence[Planned]) -> list[str]:
    """The cost of one run of each combination of values, in columns."""
    rows: list[tuple[str, ...]] = [("one run of each", "steps", "batch", "images", "parameters", "operations")]
    for one in planned:
        name, cost = one.cell.name.rpartition(",")[0], one.cost
        if cost is None:
            rows.append((name, "cannot be run", *[""] * 4))
            continue
        numbers = f"{cost.steps:,}", f"{cost.batch:,}", compact(cost.images), compact(cost.parameters)
        rows.append((name, *numbers, _operations(cost.operations)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([f"{r[0]:{widths[0]}}", *(f"{t:>{w}}" for t, w in zip(r[1:], widths[1:], strict=True))]) for r in rows
    ]


def _operations(count: float | None) -> str:
    return "not counted" if count is None else f"{count:.2e}"
