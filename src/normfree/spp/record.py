"""Recording a signal propagation plot: one forward pass, statistics of every residual block."""

import math
import operator
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, nearest
from ..models import InvertedBlock
from ..nn import SameConv
from .examples import likeness
from .finding import ALIKE
from .moments import Moments, row_moments
from .predict import predict
from .result import SPP
from .rows import Row
from .trace import Frame, Tracer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SameConv)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_LOCK = threading.Lock()  # a recording changes hooks, modes and buffers of its model


def record(
    model: nn.Module,
    batch_or_shape: Tensor | Sequence[int],
    *,
    blocks: str | None = None,
    batch_stats: bool = True,
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

    Args:
        model: any module that takes one tensor. One made by ``torch.compile`` is measured uncompiled.
        batch_or_shape: inputs, or their shape (N, ...) for unit Gaussian noise drawn from ``seed``.
        blocks: names of the modules to take as blocks instead of those found: a shell pattern per part of the dotted
            name, for example ``"features.*"``.
        batch_stats: BatchNorm normalizes by the batch, as in training; False: by its running statistics.
        name: of the network, in plots and sentences.

    Raises:
        UsageError: not a module, or one without hooks (TorchScript) or values (meta device); not a tensor or shape, or
            one without a batch dimension; no residual block was found; no module matches ``blocks``; too few inputs for
            batch statistics.
    """
    model = _recordable(model)
    named = None if blocks is None else _matching(model, blocks)
    x = _inputs(model, batch_or_shape, seed)
    with _LOCK, torch.inference_mode(False), torch.no_grad(), _measuring(model, batch_stats), _seeded(model, seed):
        rows, stem, output = _forward(model, x, named)
        lost = _lost(model)
    if not rows:
        raise UsageError(
            f"no residual block was found in {type(model).__name__}; name its blocks, for example "
            f"blocks={_example(model)!r}"
        )
    _count_stages(rows)
    predict(model, rows, stem)
    return SPP(str(name) or type(model).__name__, rows, stem, output, lost)


def _forward(model: nn.Module, x: Tensor, named: set[str] | None) -> tuple[list[Row], Row | None, Row | None]:
    """One forward pass: the rows of the blocks, of the first block's input, and of the output."""
    timed: list[tuple[int, Row]] = []
    stems: list[Moments] = []

    whole = {name for name, m in model.named_modules() if isinstance(m, InvertedBlock) and not m.has_skip}

    def on_block(frame: Frame, alone: Moments | None, shape: torch.Size) -> None:
        times = [merge.time for merge in frame.merges] or [tracer.origins.time]
        timed.extend(zip(times, _rows(frame, alone, shape, frame.name in whole), strict=True))

    alike = bool((x == x[:1]).all()) if x.ndim else True
    examples = 0 if alike else _told_apart(x)
    tracer = Tracer(on_block, stems.append, named, whole, examples)
    x = x.clone()  # the model may change it in place
    with _enough_values(), tracer.watching(model, x), _batches_only(model, x.shape):
        y = model(x)
    rows = [row for _, row in sorted(timed, key=itemgetter(0))]  # in the order of the merges, not of the returns
    stem = _row("stem", stems[0]) if stems else None
    return rows, stem, _output(y, alike, examples)


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


def _told_apart(x: Tensor) -> int:
    """How many examples the inputs are; 0 where they are alike themselves, so that nothing can tell them apart."""
    cosine = likeness(x, 1).cosine if x.ndim > 1 and not x.is_complex() else None
    return len(x) if cosine is None or cosine < ALIKE else 0


def _output(y: Any, alike: bool, examples: int) -> Row | None:
    """The network's output, for example logits; with inputs that are all ``alike`` it does not have to vary."""
    if not isinstance(y, Tensor) or y.ndim < 2 or not y.is_floating_point() or not y.numel():
        return None
    moments = row_moments(y, 1, examples)
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
        raise UsageError(f"record takes a torch.nn.Module, not {_named(model)}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} is TorchScript, without hooks; record the module it was made from")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UsageError(f"{type(model).__name__} is on the meta device, without values; create it on another")
    return model


def _named(value: Any) -> str:
    """A value for an error message, in a few words."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


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
def _batches_only(model: nn.Module, shape: torch.Size) -> Iterator[None]:
    """Check that the first convolution gets a batch: torch's also accept one image, whose channels look like images."""
    if len(shape) < 2:
        raise _without_batch(shape)

    def check(module: nn.Module, args: tuple[Any, ...]) -> None:
        for handle in handles:
            handle.remove()
        if not args or not isinstance(args[0], Tensor) or not isinstance(module, _CONVOLUTIONS):
            return
        if args[0].ndim < module.weight.ndim:
            raise _without_batch(shape)

    convolutions = [module for module in model.modules() if isinstance(module, _CONVOLUTIONS)]
    handles = [module.register_forward_pre_hook(check) for module in convolutions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without_batch(shape: Sequence[int]) -> UsageError:
    return UsageError(
        f"batch_or_shape (of shape {tuple(shape)}) has no batch dimension; give {(4, *shape)}, for example"
    )


def _inputs(model: nn.Module, batch_or_shape: Tensor | Sequence[int], seed: int) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if isinstance(batch_or_shape, Tensor):
        if batch_or_shape.is_meta or not batch_or_shape.numel():
            raise UsageError(f"batch_or_shape (a tensor of shape {tuple(batch_or_shape.shape)}) has no values")
        return batch_or_shape.to(like.device)
    try:
        shape = tuple(operator.index(n) for n in batch_or_shape if not isinstance(n, bool))
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1 or len(shape) != len(batch_or_shape):
        raise UsageError(
            f"batch_or_shape (={_named(batch_or_shape)}) must be a tensor or a shape such as (4, 3, 224, 224)"
        )
    if not isinstance(seed, int) or abs(seed) >= 2**63:
        raise UsageError(f"seed (={_named(seed)}) must be an integer below 2**63")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(like.device, like.dtype)


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
        raise UsageError(f"blocks (={_named(pattern)}) must be a pattern of names, for example {_example(model)!r}")
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
