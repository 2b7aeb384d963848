"""A recorded signal propagation plot: its rows, and what is made of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .diagnose import Finding, diagnose
from .plot import plot
from .rows import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SPP(Recording):
    """A signal propagation plot: numbers (:class:`~normfree.spp.rows.Recording`), pictures, sentences."""

    def save(self, path: str | Path) -> Path:
        """Write a table (.csv, .json) or a picture (.png, .svg, .pdf).

        Raises:
            UsageError: another suffix.
        """
        path = Path(path)
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
        """Three panels, other networks overlaid; see :func:`normfree.spp.plot`."""
        return plot(self, *others, **options)

    def diagnose(self) -> list[Finding]:
        """What is wrong with the signal, in sentences; see :func:`normfree.spp.diagnose`."""
        return diagnose(self)

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.rows)} residual blocks in {self.rows[-1].stage + 1} stages"]
        width = max(len("block"), *(len(row.block) for row in self.rows))
        lines.append(f"{'block':{width}}  squared mean   variance  branch var.  expected")
        for row in ([self.stem] if self.stem else []) + self.rows:
            numbers = (row.avg_sq_mean, row.avg_var, row.res_avg_var, row.expected_var)
            cells = zip(numbers, (12, 9, 11, 8), strict=True)
            lines.append(f"{row.block:{width}}  " + "  ".join(_number(*cell) for cell in cells))
        return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.4g}"
