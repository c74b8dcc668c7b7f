"""What errors in a model's matrices cost, from one run forwards and backwards.

The loss is the cross entropy to tokens that are drawn from the model's own answers (of a text encoder: one random
direction of each text's embedding). The mean of its squared gradients is then the curvature of the KL divergence (of
the squared distance of embeddings), so an error d in what a layer gives costs the mean of ``(g . d)**2 / 2``.

No weight gets a gradient. A layer y = x W^T tells what is needed by its inputs x and the gradients g of its outputs:
the mean squares of x, those of x weighted by |g|^2, and those of each output's g weighted by |x|^2. A table of rows
that are looked up tells the gradients of these. Only a matrix that is used in another way gets a gradient of its own.

Source: the Fisher information with labels of the model (not of the text), as in GuidedQuant (arXiv 2505.07004).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hhtld.errors import NonFiniteError, shown

__all__ = ["Seen", "answers_loss", "embedding_loss", "row_costs", "watched"]

_RARE = 0.01  # of the mean: what a row costs at least that the text hardly met


@dataclass
class Seen:
    """What the runs so far told of a matrix, summed over positions.

    Attributes
    ----------
    inputs : tensor of float64, shape (n_cols,), or None
        Squares of what the columns are multiplied by; None if nothing multiplies them.
    weighted_inputs : tensor of float64, shape (n_cols,)
        The same, weighted by the squared gradients of the outputs.
    outputs : tensor of float64, shape (n_rows,)
        Squared gradients of what each row gives, weighted by the squared inputs.
    looked_up : tensor of float64, shape (n_cols,)
        Squared gradients of rows that are looked up.
    squared : tensor of float32, shape (n_rows, n_cols), or None
        Squared gradients of the weights themselves, where they are used in another way.
    products : tensor of float32, shape (n_cols, n_cols), or None
        Products of the inputs, for heads; for others these weighted by the squared gradients of the outputs.
    """

    inputs: torch.Tensor | None = None
    weighted_inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None
    looked_up: torch.Tensor | None = None
    squared: torch.Tensor | None = None
    products: torch.Tensor | None = None


@dataclass
class _Watch:
    """Hooks on a model that add to what is seen of its matrices.

    Attributes
    ----------
    seen : dict of name to Seen
    names : mapping of a parameter's id to its name
    is_index : mapping of name to bool
        Whether products of a matrix's inputs are wanted without weights.
    with_products : set of str
        Matrices whose products are summed.
    """

    seen: dict[str, Seen]
    names: Mapping[int, str]
    is_index: Mapping[str, bool]
    with_products: set[str]
    handles: list[Any] = field(default_factory=list)

    def add_layer(self, name: str, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add what a product of one text told: inputs (n, n_cols) and gradients of the outputs (n, n_rows)."""
        seen = self.seen[name]
        input_squares, gradient_squares = (inputs * inputs), (gradients * gradients)
        of_position = gradient_squares.sum(1)
        seen.inputs = _added(seen.inputs, input_squares.sum(0, dtype=torch.float64))
        seen.weighted_inputs = _added(seen.weighted_inputs, (of_position.double() @ input_squares.double()))
        seen.outputs = _added(seen.outputs, (input_squares.sum(1) @ gradient_squares).double())
        if name in self.with_products:
            weighted = inputs if self.is_index[name] else inputs * of_position.sqrt()[:, None]
            seen.products = _added(seen.products, weighted.T @ weighted)

    def watch_layer(self, module: Any, transposed: bool) -> None:
        """Watch a layer y = x W^T, or y = x W if it keeps its weights transposed."""
        name = self.names[id(module.weight)]

        def forward(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs = args[0].detach().reshape(-1, args[0].shape[-1])

            def backward(gradient: torch.Tensor) -> None:
                gradients = gradient.detach().reshape(-1, gradient.shape[-1])
                self.add_layer(name, *((gradients, inputs) if transposed else (inputs, gradients)))

            if output.requires_grad:
                output.register_hook(backward)

        self.handles.append(module.register_forward_hook(forward))

    def watch_table(self, module: torch.nn.Embedding) -> None:
        """Watch a table whose rows are looked up; gradients begin at what it gives."""
        name = self.names.get(id(module.weight))

        def forward(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            looked_up = output.detach().requires_grad_()

            def backward(gradient: torch.Tensor) -> None:
                squares = gradient.detach().reshape(-1, gradient.shape[-1]).double().square().sum(0)
                self.seen[str(name)].looked_up = _added(self.seen[str(name)].looked_up, squares)

            if name is not None:
                looked_up.register_hook(backward)
            return looked_up

        self.handles.append(module.register_forward_hook(forward))


def _added(total: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    return part if total is None else total.add_(part)


@contextlib.contextmanager
def watched(
    model: Any,
    parameters: Mapping[str, torch.nn.Parameter],
    is_index: Mapping[str, bool],
    with_products: set[str],
) -> Iterator[tuple[dict[str, Seen], Callable[[torch.Tensor], None]]]:
    """Watch a model; give what is seen of each matrix, and a function that takes a text's loss backwards.

    Parameters
    ----------
    model : torch.nn.Module
    parameters : mapping of name to parameter
        The matrices to watch, of two dimensions or more.
    is_index, with_products
        See `_Watch`.
    """
    from transformers.pytorch_utils import Conv1D

    watch = _Watch(
        {name: Seen() for name in parameters}, {id(p): n for n, p in parameters.items()}, is_index, with_products
    )
    others = dict(parameters)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            watch.watch_table(module)
            others.pop(watch.names.get(id(module.weight), ""), None)
        elif isinstance(module, torch.nn.Linear | Conv1D) and id(module.weight) in watch.names:
            watch.watch_layer(module, isinstance(module, Conv1D))
            others.pop(watch.names[id(module.weight)], None)
    for parameter in others.values():
        parameter.requires_grad_()

    def backwards(loss: torch.Tensor) -> None:
        loss.backward()
        for name, parameter in others.items():
            if parameter.grad is not None:
                squares = parameter.grad.reshape(len(parameter), -1).square()
                watch.seen[name].squared = _added(watch.seen[name].squared, squares)
                parameter.grad = None

    try:
        yield watch.seen, backwards
    finally:
        for handle in watch.handles:
            handle.remove()
        model.requires_grad_(False)


def answers_loss(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the cross entropy of logits (n_positions, n_vocabulary) to tokens drawn from them."""
    with torch.no_grad():
        drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")


def embedding_loss(states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return how far the embedding of a text, the mean of states (n_tokens, n_dimensions), lies in a direction.

    The embedding has length 1, as cosines see it.
    """
    embedding = torch.nn.functional.normalize(states.mean(0), dim=0)
    return embedding @ torch.randn(len(embedding), generator=generator)


def row_costs(
    name: str, seen: Seen, weight: torch.Tensor, column_scale: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return what each row costs, a weight, if its error is as large as the row: float32 (n_rows,).

    The error is that of a code in the coded coordinates, the columns multiplied by their scale: alike in all of these.
    Rows that the text hardly met cost at least a hundredth of the mean.
    """
    n_rows, n_cols = weight.shape
    scale = torch.ones(n_cols) if column_scale is None else torch.from_numpy(column_scale)
    spread = 1 / scale.double().square()  # of an error in coded coordinates to the source's columns
    energy = torch.cat([(block * scale).double().square().mean(1) for block in weight.split(4096)])
    costs = torch.zeros(n_rows, dtype=torch.float64)
    use = torch.ones(n_rows, dtype=torch.float64)
    if seen.outputs is not None and seen.inputs is not None and seen.weighted_inputs is not None:
        use = seen.outputs + _RARE * seen.outputs.mean()
        share = float(seen.weighted_inputs @ spread) / max(float(seen.weighted_inputs.sum()), 1e-300)
        costs += use * share / n_cols
    if seen.looked_up is not None:
        # How often single rows are looked up, a short text does not tell: as often as a head names them, if it is one.
        costs += use / use.sum().clamp_min(1e-300) * float(seen.looked_up @ spread) / n_cols
    if seen.squared is not None:
        of_rows = (seen.squared.reshape(weight.shape).double() @ spread) / n_cols
        costs += of_rows + _RARE * of_rows.mean()
    costs *= energy
    if not torch.isfinite(costs).all():
        raise NonFiniteError(f"the model gives gradients at {shown(name)} that are infinite or not a number")
    row_cost: NDArray[np.float32] = costs.numpy().astype(np.float32)
    return row_cost
