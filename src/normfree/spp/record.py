"""Recording a signal propagation plot: one forward pass, statistics of every residual block."""

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, nearest
from ..models import InvertedBlock
from .backward import GradientEdge, fill_gradients
from .inputs import Inputs, batches_only, inputs_of, named
from .moments import Moments, row_moments
from .observed import Observed
from .origin import tensors_in
from .predict import predict
from .result import SPP
from .rows import Row
from .trace import Frame, Tracer

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_LOCK = threading.Lock()  # a recording changes hooks, modes and buffers of its model


def record(
    model: nn.Module,
    batch_or_shape: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    blocks: str | None = None,
    batch_stats: bool = True,
    backward: bool = False,
    seed: int = 0,
    name: str = "",
) -> SPP:
    """The three statistics of a signal propagation plot, for every residual block of any network.

    In one forward pass without gradients: average channel squared mean and average channel variance of each block's
    output, and the variance at the end of its residual branch, before skip gain, alpha and layer scale (NF-ResNets,
    section 3). Rows also have the plain mean, the pixel norm and the mean cosine between different examples. A block is
    found by its addition of a branch to a shortcut. Dropout and stochastic depth are off. Afterwards the model, its
    buffers and its mode are unchanged.

    >>> spp = record(normfree.create_model("nf_resnet50", num_classes=10), (4, 3, 64, 64))
    >>> spp.blocks[:3], len(spp.avg_var)
    (['stages.0.0', 'stages.0.1', 'stages.0.2'], 16)
    >>> class Two(nn.Linear):
    ...     def forward(self, a, *, b):
    ...         return a + super().forward(b)
    >>> record(Two(8, 8), [(4, 8), {"b": torch.ones(4, 8)}], backward=True).grad_var[0] > 0.5
    True

    Args:
        model: any module. One made by ``torch.compile`` is measured uncompiled.
        batch_or_shape: inputs, or their shape (N, ...) for unit Gaussian noise drawn from ``seed``. Of several inputs,
            a list of these (a list within it is one input, made of several tensors); of keyword inputs, a dict, which
            may also be the last item of the list. Other values in them (None, numbers, text) are passed on.
        blocks: names of the modules to take as blocks instead of those found: a shell pattern per part of the dotted
            name, for example ``"features.*"``.
        batch_stats: BatchNorm normalizes by the batch, as in training; False: by its running statistics.
        backward: also run the backward pass, from a cotangent of N(0, 1) at every number of the output, and measure the
            gradient of each block's output. It needs memory for all activations, as a training step does; parameters
            get no gradient.
        name: of the network, in plots and sentences.

    Raises:
        UsageError: not a module, or one without hooks (TorchScript) or values (meta device); not a tensor or shape, or
            one without a batch dimension; inputs that do not fit ``model.forward``; no residual block was found; no
            module matches ``blocks``; too few inputs for batch statistics; a backward pass that fails.
    """
    model = _recordable(model)
    chosen = None if blocks is None else _matching(model, blocks)
    inputs = inputs_of(model, batch_or_shape, seed)
    with _LOCK, torch.inference_mode(False), torch.no_grad(), _measuring(model, batch_stats), _seeded(model, seed):
        rows, stem, output, observed = _forward(model, inputs, chosen, backward, seed)
        lost = _lost(model)
    if not rows:
        raise UsageError(
            f"no residual block was found in {type(model).__name__}; name its blocks, for example "
            f"blocks={_example(model)!r}"
        )
    _count_stages(rows)
    predict(model, rows, stem)
    name = str(name) or type(model).__name__
    return SPP(name, rows, stem, output, lost, observed.concatenations, observed.weights)


def _forward(
    model: nn.Module, inputs: Inputs, blocks: set[str] | None, backward: bool, seed: int
) -> tuple[list[Row], Row | None, Row | None, Observed]:
    """One pass: the rows of the blocks, of the first block's input, and of the output; what else was met."""
    timed: list[tuple[int, Row]] = []
    edges: list[tuple[Row, GradientEdge | None]] = []
    stems: list[Row] = []
    whole = {name for name, m in model.named_modules() if isinstance(m, InvertedBlock) and not m.has_skip}

    def on_block(frame: Frame, alone: Moments | None, shape: torch.Size) -> None:
        times = [merge.time for merge in frame.merges] or [tracer.origins.time]
        rows = _rows(frame, alone, shape, frame.name in whole)
        timed.extend(zip(times, rows, strict=True))
        edges.extend(zip(rows, [merge.edge for merge in frame.merges] or [frame.edge], strict=True))

    def on_stem(moments: Moments, depth: int, edge: GradientEdge | None) -> None:
        stems.append(_row("stem", moments, depth=depth))
        edges.append((stems[-1], edge))

    examples, alike = inputs.examples, inputs.alike
    tracer = Tracer(on_block, on_stem, blocks, whole, examples)
    given = inputs.copied(backward=backward)
    watching = tracer.watching(model, given.signals)
    with _enough_values(), torch.set_grad_enabled(backward), watching, batches_only(model, given):
        y = model(*given.args, **given.kwargs)
    rows = [row for _, row in sorted(timed, key=itemgetter(0))]  # in the order of the merges, not of the returns
    if backward and rows:
        fill_gradients(edges, y, len(inputs.main), seed, type(model).__name__)
    return rows, stems[0] if stems else None, _output(y, inputs, alike, examples), tracer.observed


def _row(block: str, moments: Moments, **more: Any) -> Row:
    """A row with the statistics of its activations."""
    alike = moments.likeness
    return Row(
        block,
        0,
        avg_sq_mean=moments.avg_sq_mean,
        avg_var=moments.avg_var,
        avg_mean=moments.avg_mean,
        pixel_norm=alike.pixel_norm if alike else None,
        cosine=alike.cosine if alike else None,
        **more,
    )


def _output(output: Any, inputs: Inputs, alike: bool, examples: int) -> Row | None:
    """The network's output, for example logits; with inputs that are all ``alike`` it does not have to vary.

    Of several outputs it is the first one with a batch.
    """
    several = [y for y in tensors_in(output) if y.ndim > 1 and len(y) == len(inputs.main)]
    y = output if isinstance(output, Tensor) else next((y for y in several if y.is_floating_point()), None)
    if y is None or y.ndim < 2 or not y.is_floating_point() or not y.numel():
        return None
    moments = row_moments(y.detach(), 1, examples)
    return _row("output", moments, shape=tuple(y.shape[1:]), values=1 if alike else moments.values)


def _lost(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters with values that are not finite."""
    return tuple(name for name, p in model.named_parameters() if p.dtype in _FLOATS and not bool(p.isfinite().all()))


def _rows(frame: Frame, alone: Moments | None, shape: torch.Size, whole: bool) -> list[Row]:
    """A row for each merge of a module; for a named module without merges, one row of its output.

    A ``whole`` block has no skip: its output is the branch's end, added to nothing.
    """
    if alone is not None:
        row = _row(
            frame.name,
            alone,
            normalized=frame.normalized,
            shape=tuple(shape[1:]),
            values=alone.values,
            depth=frame.deepest,
            module=frame.name,
        )
        if whole:
            row.transition, row.shortcut_var, row.added_var = True, 0.0, alone.avg_var
            row.res_avg_var, row.res_avg_sq_mean = alone.avg_var, alone.avg_sq_mean
        return [row]
    rows = []
    for merge in frame.merges:
        output = merge.settle()
        parts = [frame.name, merge.child] if len(frame.merges) > 1 else [frame.name]
        rows.append(
            _row(
                ".".join(part for part in parts if part) or "(model)",
                output,
                transition=merge.transition,
                res_avg_var=merge.branch.avg_var,
                res_avg_sq_mean=merge.branch.avg_sq_mean,
                added_var=merge.added.avg_var,
                shortcut_var=merge.shortcut_var,
                gate=merge.gate,
                activated=merge.activated,
                normalized=frame.normalized,
                shape=tuple(merge.shape[1:]),
                values=output.values,
                depth=merge.depth,
                module=frame.name,
            )
        )
    return rows


def _count_stages(rows: list[Row]) -> None:
    """A stage begins where the shortcut is not the signal itself, or where the shape changes."""
    stage = 0
    for index, row in enumerate(rows):
        if index and (row.transition or not _alike(row.shape, rows[index - 1].shape)):
            stage += 1
        row.stage = stage


def _alike(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """One shape, or a map and its tokens."""
    return a == b or (len(a) != len(b) and math.prod(a) == math.prod(b))


def _recordable(model: Any) -> nn.Module:
    """The module to record."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise UsageError(f"record takes a torch.nn.Module, not {named(model)}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} is TorchScript, without hooks; record the module it was made from")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UsageError(f"{type(model).__name__} is on the meta device, without values; create it on another")
    return model


@contextmanager
def _enough_values() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "BatchNorm needs more than one value per channel; give larger inputs or more of them, or batch_stats=False"
        ) from error


@contextmanager
def _measuring(model: nn.Module, batch_stats: bool) -> Iterator[None]:
    """Evaluation mode, except for batch statistics; modes and buffers are restored."""
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in modes}
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.eval()
        if batch_stats:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                    module.training = True
        yield
    finally:
        for module, training in modes.items():
            module.training = training
            module._buffers.clear()
            module._buffers.update(buffers[module])
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):  # an unchanged one may be expanded, which cannot be written
                    buffer.copy_(value)


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers of the model come from ``seed``; the state of the generators is restored."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed devices that are not restored
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


def _matching(model: nn.Module, pattern: str) -> set[str]:
    if not isinstance(pattern, str):
        raise UsageError(f"blocks (={named(pattern)}) must be a pattern of names, for example {_example(model)!r}")
    part = r"[^.]*"
    expression = re.escape(pattern).replace(r"\*", part).replace(r"\?", "[^.]")
    names = [name for name, _ in model.named_modules() if name]
    matches = {name for name in names if re.fullmatch(expression, name)}
    if not matches:
        near = nearest(pattern, names) or names[:3]
        raise UsageError(f"blocks (={pattern!r}) matches no module of {type(model).__name__}; it has {', '.join(near)}")
    return matches


def _example(model: nn.Module) -> str:
    """A pattern for the model: the children of its largest container."""
    sizes = {name: len(list(module.children())) for name, module in model.named_modules() if name}
    largest = max(sizes, key=sizes.__getitem__, default="")
    return f"{largest}.*" if sizes.get(largest) else "*"
