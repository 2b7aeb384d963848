"""A recorded signal propagation plot: its rows, with tables, pictures and findings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..words import counted
from .diagnose import diagnose
from .finding import Finding
from .plot import plot
from .rows import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SPP(Recording):
    """A signal propagation plot: numbers (:class:`~normfree.spp.rows.Recording`), pictures, sentences."""

    def save(self, path: str | Path) -> Path:
        """Write a table (.csv, .json) or a picture (.png, .svg, .pdf).

        Raises:
            UsageError: another suffix; the folder does not exist; ``path`` is a folder.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path}: folder {path.parent} does not exist")
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder")
        if path.suffix == ".csv":
            path.write_text(self.to_csv(), encoding="utf-8")
        elif path.suffix == ".json":
            path.write_text(self.to_json() + "\n", encoding="utf-8")
        elif path.suffix in (".png", ".svg", ".pdf"):
            self.plot().savefig(path)
        else:
            raise UsageError(f"{path} must end in .csv, .json, .png, .svg or .pdf")
        return path

    def plot(self, *others: "SPP", **options: Any) -> "Figure":
        """Three panels, four with gradients, or those of ``columns``; see :func:`normfree.spp.plot`."""
        return plot(self, *others, **options)

    def diagnose(self, **options: Any) -> list[Finding]:
        """The faults of the signal, in sentences; see :func:`normfree.spp.diagnose`."""
        return diagnose(self, **options)

    def __str__(self) -> str:
        blocks, stages = counted(len(self.rows), "residual block"), counted(self.rows[-1].stage + 1, "stage")
        lines = [f"{self.name}: {blocks} in {stages}"]
        width = max(len("block"), *(len(row.block) for row in self.rows))
        backward = any(row.grad_var is not None for row in self.rows)
        lines.append(f"{'block':{width}}  squared mean   variance  branch var.  expected   cosine")
        lines[1] += "  gradient var." if backward else ""
        for row in ([self.stem] if self.stem else []) + self.rows:
            numbers = (row.avg_sq_mean, row.avg_var, row.res_avg_var, row.expected_var, row.cosine)
            numbers += (row.grad_var,) if backward else ()
            cells = zip(numbers, (12, 9, 11, 8, 7, 13)[: len(numbers)], strict=True)
            lines.append(f"{row.block:{width}}  " + "  ".join(_number(*cell) for cell in cells))
        return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.4g}"
