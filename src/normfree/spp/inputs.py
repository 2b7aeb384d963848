"""What a network is recorded on: given tensors, or noise of given shapes, as positional and keyword inputs."""

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..nn import SameConv
from .examples import likeness
from .finding import ALIKE
from .origin import tensors_in

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SameConv)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a network, of which at least one is a tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return list(tensors_in((self.args, self.kwargs)))

    @property
    def main(self) -> Tensor:
        """The first tensor of numbers that are not integers, or the first one."""
        tensors = self.tensors
        return next((x for x in tensors if x.is_floating_point()), tensors[0])

    @property
    def signals(self) -> list[Tensor]:
        """Tensors that a signal comes from: masks of truth values are none beside others."""
        return [x for x in self.tensors if x.dtype != torch.bool] or self.tensors

    @property
    def alike(self) -> bool:
        """Whether all examples are the same, in every tensor that has one for each."""
        return all(bool((x == x[:1]).all()) for x in self.tensors if x.ndim and len(x) == len(self.main))

    @property
    def examples(self) -> int:
        """How many examples the inputs are; 0 where they are alike themselves, so that nothing can tell them apart."""
        x = self.main
        if not x.ndim or self.alike:
            return 0
        cosine = likeness(x, 1).cosine if x.ndim > 1 and not x.is_complex() else None
        return len(x) if cosine is None or cosine < ALIKE or len(self.tensors) > 1 else 0

    def copied(self, *, backward: bool) -> "Inputs":
        """A copy that the network may change in place; ``backward``: gradients reach the tensors."""

        def copy(x: Tensor) -> Tensor:
            x = x.clone()
            return x.requires_grad_().clone() if backward and x.is_floating_point() else x

        with torch.set_grad_enabled(backward):  # the last copy is no leaf, which could not be changed in place
            args, kwargs = _changed((self.args, self.kwargs), copy)
        return Inputs(args, kwargs)


def inputs_of(model: nn.Module, batch_or_shape: Any, seed: int) -> Inputs:
    """The inputs that a description stands for, see :func:`normfree.spp.record`.

    Raises:
        UsageError: it is none; they do not fit the network's ``forward``.
    """
    if not isinstance(seed, int) or abs(seed) >= 2**63:
        raise UsageError(f"seed (={named(seed)}) must be an integer below 2**63")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    maker = _Maker(like, torch.Generator().manual_seed(seed))
    if isinstance(batch_or_shape, Tensor) or not _holds_several(batch_or_shape):
        return Inputs((maker.tensor(batch_or_shape, "batch_or_shape"),), {})
    if isinstance(batch_or_shape, Mapping):
        args, kwargs = (), batch_or_shape
    else:
        *args, last = batch_or_shape
        args, kwargs = (args, last) if isinstance(last, Mapping) else ([*args, last], {})
    made = Inputs(
        tuple(maker(value, f"batch_or_shape[{i}]") for i, value in enumerate(args)),
        {str(key): maker(value, f"batch_or_shape[{key!r}]") for key, value in kwargs.items()},
    )
    if not made.tensors:
        raise UsageError(f"batch_or_shape (={named(batch_or_shape)}) has no tensor and no shape in it")
    _check_fit(model, made)
    return made


@dataclass(frozen=True)
class _Maker:
    """Makes inputs: tensors as they are, noise in place of shapes, containers of these."""

    like: Tensor
    generator: torch.Generator

    def __call__(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: self(item, f"{name}[{key!r}]") for key, item in value.items()}
        if not isinstance(value, Tensor) and _holds_several(value):
            return [self(item, f"{name}[{i}]") for i, item in enumerate(value)]
        if value is None or isinstance(value, str | bool | int | float):
            return value  # a setting
        return self.tensor(value, name)

    def tensor(self, value: Any, name: str) -> Tensor:
        if isinstance(value, Tensor):
            if value.is_meta or not value.numel():
                raise UsageError(f"{name} (a tensor of shape {tuple(value.shape)}) has no values")
            return value.to(self.like.device)
        try:
            shape = tuple(operator.index(n) for n in value if not isinstance(n, bool))
        except TypeError:
            shape = ()
        if not shape or min(shape) < 1 or len(shape) != len(value):
            raise UsageError(f"{name} (={named(value)}) must be a tensor or a shape such as (4, 3, 224, 224)")
        return torch.randn(shape, generator=self.generator).to(self.like.device, self.like.dtype)


def _holds_several(value: Any) -> bool:
    """Whether it is a container of inputs, not a shape."""
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and bool(value) and not all(isinstance(n, Number) for n in value)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same containers with changed tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _changed(item, change) for key, item in value.items()}
    return value


def _check_fit(model: nn.Module, inputs: Inputs) -> None:
    """Refuse inputs that ``forward`` does not have; what has no signature is tried."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise UsageError(f"batch_or_shape does not fit {type(model).__name__}.forward{signature}: {error}") from error


def named(value: Any) -> str:
    """A value for an error message, in a few words."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


@contextmanager
def batches_only(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Check that the first convolution gets a batch: torch's also accept one image, whose channels look like images."""
    shape = inputs.main.shape
    if len(shape) < 2 and len(inputs.tensors) == 1:
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
