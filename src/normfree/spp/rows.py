"""The numbers of a recording: rows, as a table, CSV, JSON."""

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass
from typing import Any, Self

from ..errors import UsageError
from .concatenation import Concatenation
from .weight_scale import ComputedWeight


@dataclass
class BlockTheory:
    """The expected variances of a Normalizer-Free block for the actual variance of its input.

    Attributes:
        beta: the block's; res_var: of its branch's end, losses to zero padding included.
        shortcut_var: of its projected shortcut; None where the shortcut is the signal.
        activations: number of them in the branch; gamma: the exact one.
    """

    beta: float
    res_var: float
    shortcut_var: float | None
    activations: int
    gamma: float


@dataclass
class Row:
    """Statistics of one residual block (or of one of its merges, as attention and MLP of a transformer).

    Attributes:
        block: dotted name; stage: 0-based, a new one begins where the shortcut is a projection or the shape changes.
        transition: the shortcut is a projection of the signal, or there is none.
        avg_sq_mean, avg_var: of the block's output.
        res_avg_var, res_avg_sq_mean: at the residual branch's end, before skip gain, alpha and layer scale.
        added_var: of the tensor that is added to the shortcut, behind them.
        shortcut_var: of the shortcut; None if it is the unchanged output of the row before; 0 if the block has none
            and is all branch.
        expected_var: the theory's ``avg_var``: the branch's and the shortcut's variance add up. Of a Normalizer-Free
            network without any measurement, from alpha, beta and skip gains alone; if its weights have a mean
            (:mod:`normfree.models.weight_schemes`), of ``avg_var + avg_sq_mean``. None behind an activation.
        expected_res_var: the theory's ``res_avg_var``, of Normalizer-Free networks.
        gate: mean of the gate (Squeeze-Excite) that the branch is multiplied with.
        activated: the sum was activated (or changed otherwise) before it left the block.
        normalized: the block has a normalization layer.
        shape: of the block's output, without the batch; values: of one channel in it, over the batch.
        avg_mean: mean of all values of the block's output (NF-ResNets, appendix G.2: less informative than
            ``avg_sq_mean``, since means of different channels cancel). As the next two, None in older files.
        pixel_norm: the output's norm over channels, averaged over images and places (the same appendix); unscaled, so
            that it grows with the root of the number of channels.
        cosine: mean over pairs of different examples of the cosine between their outputs (NFNets, section 2: their
            inner product). Near 1, all examples are alike. None with fewer than two examples that are not 0, with
            inputs that are alike themselves, and where the output's first dimension is not the batch.
        grad_var: mean square of the gradient of the block's output, which has no mean, for a cotangent of N(0, 1) at
            the network's output; ``grad_norm``: the norm of that gradient, root mean square over examples. Layers whose
            weights have variance 1 / fan-in keep the norm, also where the shape changes. None where no gradients were
            recorded.
        depth: convolutions and linear layers on the longest way from the network's input to the block's output.
        module: name of the module that merges.
        theory: of a Normalizer-Free block.
    """

    block: str
    stage: int
    transition: bool = False
    avg_sq_mean: float = float("nan")
    avg_var: float = float("nan")
    res_avg_var: float | None = None
    res_avg_sq_mean: float | None = None
    added_var: float | None = None
    shortcut_var: float | None = None
    expected_var: float | None = None
    expected_res_var: float | None = None
    gate: float | None = None
    activated: bool = False
    normalized: bool = False
    shape: tuple[int, ...] = ()
    values: int | None = None
    avg_mean: float | None = None
    pixel_norm: float | None = None
    cosine: float | None = None
    grad_var: float | None = None
    grad_norm: float | None = None
    depth: int | None = None
    module: str = ""
    theory: BlockTheory | None = None

    @property
    def branch_var(self) -> float:
        """``res_avg_var``; nan of a row without a branch."""
        return math.nan if self.res_avg_var is None else self.res_avg_var

    @property
    def ratio(self) -> float | None:
        """Measured over expected variance."""
        return self.avg_var / self.expected_var if self.expected_var else None


COLUMNS = [field.name for field in dataclasses.fields(Row) if field.name not in ("module", "theory")] + ["ratio"]


@dataclass(frozen=True)
class Recording:
    """A signal propagation plot's numbers: one row per block, in the order of execution.

    Attributes:
        name: of the network.
        rows: one per block.
        stem: statistics of the first block's input.
        output: statistics of the network's output; None if it is no float tensor with a batch, or not recorded.
        lost: names of the parameters with values that are not finite.
        concatenations: what ``torch.cat`` joined along channels, in its order.
        weights: standardized weights of layers that are not of this library.
    """

    name: str
    rows: list[Row]
    stem: Row | None = None
    output: Row | None = None
    lost: tuple[str, ...] = ()
    concatenations: tuple[Concatenation, ...] = ()
    weights: tuple[ComputedWeight, ...] = ()

    @property
    def blocks(self) -> list[str]:
        """Dotted names of the blocks."""
        return [row.block for row in self.rows]

    @property
    def avg_sq_mean(self) -> list[float]:
        """Average channel squared mean of each block's output."""
        return [row.avg_sq_mean for row in self.rows]

    @property
    def avg_var(self) -> list[float]:
        """Average channel variance of each block's output."""
        return [row.avg_var for row in self.rows]

    @property
    def res_avg_var(self) -> list[float | None]:
        """Average channel variance at the end of each residual branch."""
        return [row.res_avg_var for row in self.rows]

    @property
    def avg_mean(self) -> list[float | None]:
        """Mean of all values of each block's output."""
        return [row.avg_mean for row in self.rows]

    @property
    def pixel_norm(self) -> list[float | None]:
        """Norm over channels of each block's output, averaged over images and places."""
        return [row.pixel_norm for row in self.rows]

    @property
    def cosine(self) -> list[float | None]:
        """Mean cosine between the outputs of different examples, of each block."""
        return [row.cosine for row in self.rows]

    @property
    def grad_var(self) -> list[float | None]:
        """Mean square of the gradient of each block's output."""
        return [row.grad_var for row in self.rows]

    @property
    def grad_norm(self) -> list[float | None]:
        """Norm of the gradient of each block's output, root mean square over examples."""
        return [row.grad_norm for row in self.rows]

    @property
    def expected_var(self) -> list[float | None]:
        """The variance that theory expects of each block's output."""
        return [row.expected_var for row in self.rows]

    @property
    def stage_ends(self) -> list[int]:
        """Indices of the last block of each stage."""
        stages = [row.stage for row in self.rows]
        return [i for i, stage in enumerate(stages) if i + 1 == len(stages) or stages[i + 1] != stage]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; :meth:`from_dict` reads it."""
        rows = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in self.rows]
        stem, output = (dataclasses.asdict(row) if row else None for row in (self.stem, self.output))
        joined = [dataclasses.asdict(one) for one in self.concatenations]
        weights = [dataclasses.asdict(one) for one in self.weights]
        content = dict(name=self.name, stem=stem, rows=rows, output=output, lost=list(self.lost))
        return content | dict(concatenations=joined, weights=weights)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """From the result of :meth:`to_dict`.

        Raises:
            UsageError: it is no such result.
        """
        try:
            stem, output = (_row(row) if row else None for row in (content["stem"], content.get("output")))
            rows = [_row(row) for row in content["rows"]]
            joined = tuple(_concatenation(one) for one in content.get("concatenations", ()))
            weights = tuple(ComputedWeight(**one) for one in content.get("weights", ()))
            return cls(content["name"], rows, stem, output, tuple(content.get("lost", ())), joined, weights)
        except (TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"not a recorded signal propagation plot: {error}") from error

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def to_csv(self) -> str:
        """A line per block, the stem first; missing values are empty."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        for row in ([self.stem] if self.stem else []) + self.rows:
            table.writerow(dataclasses.asdict(row) | {"ratio": row.ratio})
        return text.getvalue()


def _concatenation(content: dict[str, Any]) -> Concatenation:
    """From lists, as JSON has them."""
    channels, variances = tuple(content["channels"]), tuple(content["variances"])
    return Concatenation(content["module"], channels, variances, content["normalized"])


def _row(content: dict[str, Any]) -> Row:
    fields = {name: value for name, value in content.items() if name != "ratio"}
    theory, shape = fields.pop("theory"), tuple(fields.pop("shape"))
    return Row(**fields, shape=shape, theory=BlockTheory(**theory) if theory else None)
