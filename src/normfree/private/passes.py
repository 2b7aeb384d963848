"""Two backward passes over one forward pass: the norm of each example's gradient, then a weighted sum of gradients."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .checks import trained_parameters
from .layers import Layer, bytes_per_example, each_gradient, places_are_cheaper, squared_norm
from .tape import Tape, Use
from .weights import Derived, Parts, Raw, Standardized

Loss = Callable[[Tensor], Tensor]  # of the output, a mean over its rows
MAX_BYTES = 2**26  # of the temporaries of one layer, in which gradients of several examples lie side by side


class ExamplePasses:
    """The gradients of the examples of one batch without holding them: first their norms, then any weighted sum.

    The loss must be a mean over examples, of which none depends on another one. Its gradient at the network's output
    then has a row for each example, and two backward passes go out from there (ghost clipping: Li et al. 2022,
    arXiv:2110.05679; Bu et al. 2022, arXiv:2205.10683). The first one notes norms and leaves ``grad`` alone.

    Args:
        model: the network; parameters that do not require a gradient are left alone.
        inputs: its arguments; tensors have a row for each example and view.
        views: so many rows one after the other are one example, whose gradient is the mean of theirs (augmentation
            multiplicity: De et al. 2022, arXiv:2204.13650).
        max_bytes: bound of the temporaries of a layer, or of those of one example if these are more.

    Raises:
        UsageError: BatchNorm; a parameter meets examples in a way for which no rule is known.

    Example:
        >>> model, x = nn.Linear(3, 1), torch.randn(4, 3)
        >>> passes = ExamplePasses(model, [x])
        >>> loss = passes.seed(lambda output: output.square().mean())
        >>> norms = passes.norms()
        >>> passes.accumulate((1.0 / norms).clamp(max=1.0))  # each example's gradient is at most 1 long
        >>> norms.shape, model.weight.grad.shape
        (torch.Size([4]), torch.Size([1, 3]))
    """

    def __init__(self, model: nn.Module, inputs: Iterable[Any], *, views: int = 1, max_bytes: int = MAX_BYTES):
        inputs = list(inputs)
        self.parameters = trained_parameters(model)
        self.rows, self.views, self.max_bytes = len(inputs[0]), views, max_bytes
        if self.rows % views:
            raise UsageError(f"{self.rows} rows must be divisible by views (={views})")
        self.tape = Tape(self.parameters, self.rows)
        self.output = self.tape.run(model, inputs)
        self._seeds: Tensor | None = None
        self._squares: dict[int, Tensor] = {}
        self._each: dict[int, Tensor] = {}

    def seed(self, loss: Loss) -> Tensor:
        """Compute the loss of the output, a mean over its rows; it is returned, without a graph."""
        output = self.output.detach().requires_grad_()
        value = loss(output)
        (gradient,) = torch.autograd.grad(value, [output])
        self._seeds = gradient * (self.rows / self.views)
        return value.detach()

    def norms(self) -> Tensor:
        """The norm of each example's gradient over all parameters: (examples,) float64."""
        return torch.stack(list(self.squared_norms().values())).sum(0).sqrt()

    def squared_norms(self) -> dict[str, Tensor]:
        """Squared norms of each example's gradient, by parameter: (examples,) float64 each."""
        self._squares, self._each = {}, {}
        with self.tape.measuring(self._measure):
            seeds, anchor = self._the_seeds(), [self.tape.anchor]
            torch.autograd.grad(self.output, anchor, seeds, retain_graph=True, allow_unused=True)
            added = self.tape.added
        for tensor, rows in added:
            self._back(tensor, self._summed(rows))
        zeros = torch.zeros(self.rows // self.views, dtype=torch.float64, device=self.output.device)
        squares = {name: self._squares.get(id(p), zeros) for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            if (rows := self._each.pop(id(p), None)) is not None:
                squares[name] = squares[name] + rows.reshape(len(rows), -1).double().square().sum(1)
        return squares

    def accumulate(self, factors: Tensor) -> None:
        """Add the sum of the examples' gradients, each times its factor (examples,), to ``grad`` of the parameters.

        The forward pass is used up by it.
        """
        seeds = self._the_seeds()
        each = factors.to(seeds.dtype).repeat_interleave(self.views).view(-1, *(1,) * (seeds.ndim - 1))
        torch.autograd.backward(self.output, seeds * each, inputs=list(self.parameters.values()))

    def _the_seeds(self) -> Tensor:
        if self._seeds is None:
            raise UsageError("seed() comes first: the gradients are those of a loss")
        return self._seeds

    def _summed(self, rows: Tensor) -> Tensor:
        """(rows, ...) summed over the views of each example."""
        return rows if self.views == 1 else rows.unflatten(0, (-1, self.views)).sum(1)

    def _measure(self, use: Use, x: Tensor, grad: Tensor) -> None:
        """Note what a layer's parameters have to do with the gradient of each example."""
        if use.bias is not None and self.tape.depends(use.bias):
            self.tape.add(use.bias, use.layer.over_places(grad.to(use.bias.dtype)))
        source = use.source
        if isinstance(source, Standardized):
            self._standardized(use, source, x, grad)
        elif isinstance(source, Raw):
            self._raw(use, source, x, grad)
        elif isinstance(source, Derived):
            for begin, (part, of_part) in self._chunks(use, x, grad, by_places=False):
                gradients = use.layer.shaped(
                    each_gradient(use.layer, part, of_part, use.weight, self.views), use.weight
                )
                for number, gradient in enumerate(gradients.to(source.weight.dtype)):
                    self._back_one(source.weight, gradient, begin + number)

    def _raw(self, use: Use, source: Raw, x: Tensor, grad: Tensor) -> None:
        layer, weight = use.layer, source.parameter.detach()
        shared, of_scale, squares = self._shared(source.parameter), [], []
        by_places = not shared and self._by_places(layer, weight, grad)
        for begin, (part, of_part) in self._chunks(use, x, grad, by_places):
            if by_places:
                square = squared_norm(layer, part, of_part, weight, self.views, None, centred=False)
                if source.scale is not None:
                    seen = layer.over_places(of_part * layer(part, weight.to(part.dtype), None))
                    of_scale.append(self._summed(seen.sum(1)))
            else:
                gradient = each_gradient(layer, part, of_part, weight, self.views)
                square = gradient.flatten(1).square().sum(1)
                if source.scale is not None:
                    of_scale.append((gradient * layer.ordered(weight)).sum((1, 2, 3)))
                if shared:
                    self._add_each(source.parameter, layer.shaped(gradient, weight) * source.total, begin)
            squares.append(square)
        if not shared and source.parameter.requires_grad:
            self._add_square(source.parameter, torch.cat(squares).double() * torch.as_tensor(source.total) ** 2)
        if source.scale is not None:
            self._back(source.scale, torch.cat(of_scale)[:, None] * source.factor)

    def _standardized(self, use: Use, source: Standardized, x: Tensor, grad: Tensor) -> None:
        parts = source.parts()
        shared, squares, dots = self._shared(source.parameter), [], []
        by_places = not shared and self._by_places(use.layer, parts.unit, grad)
        for begin, (part, of_part) in self._chunks(use, x, grad, by_places):
            square, dot, gradient = _projected(
                use.layer, part, of_part, parts, self.views, by_places=by_places, whole=shared
            )
            squares.append(square)
            dots.append(dot)
            if shared:
                assert gradient is not None
                self._add_each(source.parameter, use.layer.shaped(gradient, parts.unit), begin)
        along = torch.cat(dots)
        if not shared and source.parameter.requires_grad:
            self._add_square(source.parameter, torch.cat(squares).double())
        if source.gain is not None and source.gain.requires_grad:
            self._add_each(source.gain, along * parts.constant)
        if source.scale is not None and self.tape.depends(source.scale):
            self._back(source.scale, (along * parts.gain).sum(1, keepdim=True) * source.factor)

    def _shared(self, parameter: Tensor) -> bool:
        """Whether a weight is used more than once, so that the gradients of its uses must be added before a norm."""
        return self.tape.uses.get(id(parameter), 0) > 1

    def _by_places(self, layer: Layer, weight: Tensor, grad: Tensor) -> bool:
        return places_are_cheaper(layer, weight, self.views * layer.places(grad))

    def _chunks(
        self, use: Use, x: Tensor, grad: Tensor, by_places: bool
    ) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Input and output's gradient of a few examples, as memory allows, with the number of the first one."""
        each = bytes_per_example(use.layer, x, grad, use.weight, self.views, by_places)
        count = max(1, self.max_bytes // each)
        for begin in range(0, self.rows // self.views, count):
            rows = slice(begin * self.views, (begin + count) * self.views)
            yield begin, (x[rows], grad[rows])

    def _add_square(self, parameter: Tensor, square: Tensor) -> None:
        self._squares[id(parameter)] = self._squares.get(id(parameter), 0.0) + square

    def _add_each(self, parameter: Tensor, gradients: Tensor, begin: int = 0) -> None:
        """Add gradients (n, *shape) of a parameter for the examples from ``begin`` on."""
        if id(parameter) not in self._each:
            shape = self.rows // self.views, *parameter.shape
            self._each[id(parameter)] = gradients.new_zeros(shape)
        self._each[id(parameter)][begin : begin + len(gradients)] += gradients.reshape(-1, *parameter.shape)

    def _back(self, tensor: Tensor, gradients: Tensor) -> None:
        """From a tensor's gradients for each example (n, *shape) to those of the parameters that it depends on."""
        parameters = self.tape.parameters_of(tensor)
        gradients = gradients.to(tensor.dtype)
        if len(parameters) == 1 and parameters[0] is tensor:
            self._add_each(tensor, gradients)
            return
        found = torch.autograd.grad(
            tensor, parameters, gradients.reshape(-1, *tensor.shape), retain_graph=True, is_grads_batched=True
        )
        for parameter, each in zip(parameters, found, strict=True):
            self._add_each(parameter, each)

    def _back_one(self, weight: Tensor, gradient: Tensor, number: int) -> None:
        """The same for one example and a weight; of large parameters only the norm is kept."""
        parameters = self.tape.parameters_of(weight)
        found = torch.autograd.grad(weight, parameters, gradient, retain_graph=True)
        for parameter, one in zip(parameters, found, strict=True):
            if parameter.ndim < 2 or self._shared(parameter):
                self._add_each(parameter, one[None], number)
                continue
            if id(parameter) not in self._squares:
                count = self.rows // self.views
                self._squares[id(parameter)] = torch.zeros(count, dtype=torch.float64, device=one.device)
            self._squares[id(parameter)][number] += one.double().square().sum()


def _projected(
    layer: Layer, x: Tensor, grad: Tensor, parts: Parts, views: int, *, by_places: bool, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a standardized weight's gradient for each example: the raw weight's squared norm (n,), the product with the
    standardized weight by unit (n, out), and if ``whole`` the raw weight's gradient."""
    unit, rate, removed = parts.unit, parts.rate, parts.removed()
    if by_places:
        seen = layer.over_places(grad * layer(x, unit.to(x.dtype), None))
        along = seen if views == 1 else seen.unflatten(0, (-1, views)).sum(1)
        square = squared_norm(layer, x, grad, unit, views, rate, centred=True)
        return (square - (rate.square() * removed * along.square()).sum(1)).clamp(min=0), along, None
    gradient = each_gradient(layer, x, grad, unit, views).to(unit.dtype)
    gradient -= gradient.mean(3, keepdim=True)
    rows = layer.ordered(unit)
    along = (gradient * rows).sum(3)
    if not whole:
        square = torch.linalg.vector_norm(gradient, dim=3).square().flatten(1) - removed * along.flatten(1).square()
        return (rate.square() * square).sum(1).clamp(min=0), along.flatten(1), None
    gradient -= along.unsqueeze(3) * rows * parts.kept.view(layer.groups, -1, 1)
    gradient *= rate.view(layer.groups, -1, 1)
    return gradient.flatten(1).square().sum(1), along.flatten(1), gradient
