"""Edge vectors and distances (csrc/geometry)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._arguments import explained
from ._derivatives import differentiable, no_third_derivative
from ._library import Adjacency, full_precision, operators


def edge_vectors(
    positions: Tensor,
    cell: Tensor | None,
    shifts: Tensor | None,
    system: Tensor | None,
    by_receiver: Adjacency,
    by_sender: Adjacency,
    padded: bool = False,
) -> Tensor:
    """Vectors ``v_e = x_j + s_e C − x_i`` of the edges j→i, twice differentiable (and beyond).

    The values of the indices (``system`` and the graph) are not checked here but where the graph
    is made.

    Args:
        positions: ``[N, 3]``, float32 or float64, any unit of length.
        cell: ``[B, 3, 3]``, rows are lattice vectors; None without periodicity.
        shifts: whole cells between the images, ``[E, 3]``, int32; None without periodicity.
        system: system of each atom, ``[N]``, int32; None for a single system.
        by_receiver, by_sender: the graph from both sides.
        padded: whether the graph has edges that belong to no row; their vectors are zero.

    Returns:
        ``[E, 3]``.

    Raises:
        ValueError: shapes or devices that do not fit together, or indices that are not contiguous.
        TypeError: positions or a cell of types other than float32 and float64, or of two different
            ones, or indices that are not int32. Under ``torch.autocast`` 16-bit types are taken,
            as float32.
    """
    images = _contiguous(cell), shifts, system
    graph = *by_receiver, *by_sender, padded
    return operators.edge_vectors(positions.contiguous(), *images, *graph)


def edge_distances(
    positions: Tensor,
    cell: Tensor | None,
    shifts: Tensor | None,
    system: Tensor | None,
    by_receiver: Adjacency,
    by_sender: Adjacency,
    padded: bool = False,
) -> Tensor:
    """Distances ``|v_e|`` of :func:`edge_vectors`, which are not stored, twice differentiable.

    Takes the same arguments and raises the same errors. Where the distance is zero its derivatives
    are zero. The backward pass computes the vectors anew.

    Returns:
        ``[E]``.

    Raises:
        ValueError, TypeError: as :func:`edge_vectors`.
        RuntimeError: when a third derivative is taken.
    """
    images = _contiguous(cell), shifts, system
    graph = *by_receiver, *by_sender, padded
    return operators.edge_distances(positions.contiguous(), *images, *graph)


@explained
def edge_norm(vectors: Tensor) -> Tensor:
    """Lengths of vectors ``[E, 3]``, twice differentiable; derivatives at zero length are zero.

    Returns:
        ``[E]``.

    Raises:
        ValueError: another shape.
        TypeError: types other than float32 and float64. Under ``torch.autocast`` 16-bit types are
            taken, as float32.
        RuntimeError: when a third derivative is taken.
    """
    return operators.edge_norm(vectors.contiguous())


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _fake_geometry(*per_edge: int) -> Callable[..., Tensor]:
    """Shapes of an operator with ``per_edge`` numbers for each edge."""

    def fake(
        positions: Tensor,
        cell: Any,
        shifts: Any,
        system: Any,
        row_ptr: Tensor,
        neighbors: Tensor,
        *rest: Any,
    ) -> Tensor:
        return positions.new_empty(neighbors.shape[0], *per_edge)

    return fake


torch.library.register_fake("molkern::edge_vectors", _fake_geometry(3))
torch.library.register_fake("molkern::edge_distances", _fake_geometry())


@torch.library.register_fake("molkern::edge_vectors_adjoint")
def _(
    grad: Tensor,
    shifts: Any,
    system: Any,
    systems: int,
    need_cell: bool,
    row_ptr: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    positions = grad.new_empty(row_ptr.shape[0] - 1, 3)
    return positions, grad.new_empty(systems if need_cell else 0, 3, 3)


@torch.library.register_fake("molkern::edge_norm")
def _(vectors: Tensor) -> Tensor:
    return vectors.new_empty(vectors.shape[0])


@torch.library.register_fake("molkern::edge_norm_grad")
def _(grad: Tensor, vectors: Tensor) -> Tensor:
    return torch.empty_like(vectors)


@torch.library.register_fake("molkern::edge_norm_hvp")
def _(h: Tensor, grad: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad), torch.empty_like(vectors)


# edge_vectors is linear in positions and cell: it and its adjoint are each other's derivatives.


def _vectors_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cell, shifts, system, *graph, padded = inputs
    ctx.save_for_backward(shifts, system, *graph)
    ctx.systems = 0 if cell is None else cell.shape[0]
    ctx.padded = padded


def _vectors_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    shifts, system, *graph = ctx.saved_tensors
    need_cell = ctx.needs_input_grad[1]
    positions, cell = operators.edge_vectors_adjoint(
        g.contiguous(), shifts, system, ctx.systems, need_cell, *graph, ctx.padded
    )
    return (positions, cell if need_cell else None, *[None] * 9)


def _distances_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    positions, cell, *graph, padded = inputs
    ctx.save_for_backward(positions, cell, *graph)
    ctx.padded = padded


def _distances_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    positions, cell, shifts, system, *graph = ctx.saved_tensors
    need_cell = ctx.needs_input_grad[1]
    vectors = operators.edge_vectors(positions, cell, shifts, system, *graph, ctx.padded)
    grad_positions, grad_cell = operators.edge_vectors_adjoint(
        operators.edge_norm_grad(g.contiguous(), vectors),
        shifts,
        system,
        0 if cell is None else cell.shape[0],
        need_cell,
        *graph,
        ctx.padded,
    )
    return (grad_positions, grad_cell if need_cell else None, *[None] * 9)


def _adjoint_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, shifts, system, _, need_cell, *graph, padded = inputs
    ctx.save_for_backward(shifts, system, *graph)
    ctx.need_cell, ctx.padded = need_cell, padded


def _adjoint_backward(ctx: Any, h_positions: Tensor, h_cell: Tensor) -> tuple[Any, ...]:
    shifts, system, *graph = ctx.saved_tensors
    cell = h_cell.contiguous() if ctx.need_cell else None
    grad = operators.edge_vectors(
        h_positions.contiguous(), cell, shifts, system, *graph, ctx.padded
    )
    return (grad, *[None] * 11)


def _norm_setup(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _norm_backward(ctx: Any, g: Tensor) -> Tensor:
    return operators.edge_norm_grad(g.contiguous(), *ctx.saved_tensors)


def _norm_grad_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _norm_grad_backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor]:
    return operators.edge_norm_hvp(h.contiguous(), *ctx.saved_tensors)


def _norm_hvp_backward(ctx: Any, *grads: Tensor) -> None:
    no_third_derivative("edge_norm")


differentiable("edge_vectors", _vectors_backward, _vectors_setup)
differentiable("edge_distances", _distances_backward, _distances_setup)
differentiable("edge_vectors_adjoint", _adjoint_backward, _adjoint_setup)
differentiable("edge_norm", _norm_backward, _norm_setup)
differentiable("edge_norm_grad", _norm_grad_backward, _norm_grad_setup)
differentiable("edge_norm_hvp", _norm_hvp_backward)
full_precision("edge_vectors", "edge_distances", "edge_vectors_adjoint")
full_precision("edge_norm", "edge_norm_grad", "edge_norm_hvp")
