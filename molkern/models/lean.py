"""Energy and forces in one pass without a tape, for inference with splines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..graph import AtomicBatch, NeighborList
from ..nn import ShiftedSoftplus
from ..ops import segment_sum
from ..ops._library import operators
from ..ops.dense import DENSE_ACTIVATIONS

if TYPE_CHECKING:
    from .schnet import SchNet


class LeanSchNet(nn.Module):
    """Energy and forces of a :class:`SchNet` with spline filters, written out by hand.

    The forward pass keeps what the backward pass needs and nothing else, no graph is recorded, and
    memory is released layer by layer. Tensors in, tensors out: :func:`torch.compile`,
    :func:`torch.export.export` and AOTInductor take it as it is. ``model(batch, forces=True)``
    uses it by itself; make one to export it.

    Args:
        model: with ``filters="spline"``, ``prediction="energy"`` and ``aggregation="sum"``. Its
            parameters are shared; the tables are those of its weights now, until :meth:`refresh`.

    Raises:
        ValueError: a model of another kind.

    >>> import torch, molkern
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0, filters="spline").eval()
    >>> water = molkern.AtomicBatch(
    ...     torch.tensor([8, 1, 1]), torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ... )
    >>> lean = molkern.models.LeanSchNet(model)
    >>> energy, forces = lean(*lean.inputs(water, model.neighbors(water)))
    >>> inputs = lean.inputs(water, model.neighbors(water))
    >>> shapes = lean.dynamic_shapes(inputs)
    >>> program = torch.export.export(lean, inputs, dynamic_shapes=shapes)
    """

    def __init__(self, model: SchNet):
        super().__init__()
        if not self.serves(model):
            raise ValueError(
                "the lean path is for a SchNet with filters='spline' that sums energies: set "
                "model.filters = 'spline'; dipoles, extents and mean aggregation have none"
            )
        self._source = [model]  # in a list, not to be a module of this one
        self.embedding, self.interactions = model.embedding, model.interactions
        self.head, self.reference = model.head, model.reference
        self._tables: list[Tensor] | None = None
        self.refresh()

    @staticmethod
    def serves(model: SchNet) -> bool:
        """Whether there is a lean path for the model as it is set now."""
        return (
            model.filters == "spline"
            and model.readout.prediction == "energy"
            and all(conv.aggregation == "sum" for conv in _convolutions(model))
        )

    def refresh(self) -> None:
        """Takes the tables of the model's present weights."""
        (model,) = self._source
        self.grid, tables = model._splines.constant(model)
        if tables is self._tables:
            return
        for k, table in enumerate(tables):
            self.register_buffer(f"table_{k}", table, persistent=False)
        self.steps = self._compose()
        self._tables = tables

    def _compose(self) -> tuple[list[Any], list[Any]]:
        """Weights, biases and activations of the layers: modules take long to give them."""
        blocks = []
        interactions: list[Any] = list(self.interactions)
        for k, block in enumerate(interactions):
            conv = block.conv
            kind = _fused(block.activation, conv.lin_out.weight.dtype)
            layers = [_tensors(layer) for layer in (conv.lin_in, conv.lin_out, block.lin)]
            blocks.append((f"table_{k}", *layers, kind))
        modules: list[Any] = list(self.head.layers)
        head = [
            (_tensors(layer), _fused(bend, layer.weight.dtype))
            for layer, bend in zip(modules[::2], [*modules[1::2], None], strict=True)
        ]
        return blocks, head

    def inputs(self, batch: AtomicBatch, neighbors: NeighborList) -> tuple[Tensor | None, ...]:
        """The arguments of :meth:`forward` for a batch and its list."""
        cell = None if neighbors.shifts is None else batch.cell
        return (
            batch.numbers,
            batch.positions,
            batch.system_ptr,
            *neighbors.by_receiver[:2],
            *neighbors.by_sender,
            neighbors.shifts,
            cell,
            neighbors.system,
        )

    def dynamic_shapes(self, inputs: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        """For :func:`torch.export.export`: any number of atoms and edges in as many systems."""
        atoms, edges = torch.export.Dim("atoms", min=2), torch.export.Dim("edges", min=2)
        sizes = atoms, atoms, None, atoms + 1, edges, atoms + 1, edges, edges, edges, None, atoms
        return tuple(
            None if tensor is None or size is None else {0: size}
            for tensor, size in zip(inputs, sizes, strict=True)
        )

    def forward(
        self,
        numbers: Tensor,
        positions: Tensor,
        system_ptr: Tensor,
        row_ptr: Tensor,
        senders: Tensor,
        sender_ptr: Tensor,
        receivers: Tensor,
        edges: Tensor | None,
        shifts: Tensor | None = None,
        cell: Tensor | None = None,
        system: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Energies ``[B]``, float64, and forces ``[N, 3]``; arguments as :meth:`inputs` gives them.

        Edge tensors of a list with a capacity may be longer than ``row_ptr[N]``.
        """
        inputs = (
            numbers, positions, system_ptr, row_ptr, senders, sender_ptr, receivers, edges,
            shifts, cell, system,
        )  # fmt: skip
        energy, grad, _ = self.evaluate(*inputs, padded=True)
        return energy, -grad

    def evaluate(
        self, *inputs: Any, padded: bool, need_cell: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, and their derivatives by positions ``[N, 3]`` and cells ``[B, 3, 3]``.

        The arguments of :meth:`forward`, whether edges may be padding, and whether the cells'
        derivatives are wanted; else they are empty.
        """
        numbers, positions, system_ptr, row_ptr, senders, *by_sender, shifts, cell, system = inputs
        sides = row_ptr, senders, None, *by_sender
        images = cell, shifts, system
        positions = positions.contiguous()
        distances = operators.edge_distances.default(positions, *images, *sides, padded)
        spline = None, *self.grid.form, padded
        blocks, head = self.steps
        x = self.embedding.weight.index_select(0, numbers)
        kept = []
        for table, lin_in, lin_out, lin, kind in blocks:
            table = getattr(self, table)
            v = _linear(lin_in, x)
            y = operators.spline_cfconv.default(v, table, distances, *sides, *spline)
            h, slope = _activated(lin_out, kind, y)
            x = _linear(lin, h, x)
            kept.append((v, slope))
        slopes = []
        for layer, kind in head:
            x, slope = _activated(layer, kind, x)
            slopes.append(slope)
        energies = self.reference(x.squeeze(1), numbers)
        if torch.compiler.is_compiling() and system_ptr.shape[0] == 2:
            energy = energies.sum(0, keepdim=True)  # compiled code serves any number of atoms
        else:
            energy = segment_sum(energies.unsqueeze(1), system_ptr).squeeze(1)

        g = self.reference.scale.to(x.dtype).expand(x.shape[0], 1)
        for (weight, _), _ in reversed(head):
            g = operators.dense_input_grad.default(g, slopes.pop(), weight, None)
        gd = None
        for table, lin_in, lin_out, lin, _ in reversed(blocks):
            v, slope = kept.pop()
            gh = operators.dense_input_grad.default(g, None, lin[0], None)
            gy = operators.dense_input_grad.default(gh, slope, lin_out[0], None)
            gv, gd, _ = operators.spline_cfconv_grad.default(
                gy, v, getattr(self, table), distances, gd, *sides, *spline, False
            )
            if kept:  # the first features do not depend on the positions
                g = operators.dense_input_grad.default(gv, None, lin_in[0], g)
        vectors = operators.edge_vectors.default(positions, *images, *sides, padded)
        pulls = operators.edge_norm_grad.default(gd, vectors)
        systems = 0 if cell is None else cell.shape[0]
        grad, grad_cell = operators.edge_vectors_adjoint.default(
            pulls, shifts, system, systems, need_cell, *sides, padded
        )
        return energy, grad, grad_cell


def _convolutions(model: SchNet) -> list[Any]:
    blocks: list[Any] = list(model.interactions)
    return [block.conv for block in blocks]


def below_autograd() -> AbstractContextManager[Any]:
    """Calls operators without the part of them that would record a graph, where torch can."""
    guard = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
    return nullcontext() if guard is None or torch.compiler.is_compiling() else guard()


def _fused(activation: nn.Module | None, dtype: torch.dtype) -> int | ShiftedSoftplus:
    """The code of a fused activation; in float32 all shifted softpluses round alike."""
    if activation is None:
        return 0
    if isinstance(activation, ShiftedSoftplus):
        plain = ShiftedSoftplus()
        same = (activation.threshold, activation.shift) == (plain.threshold, plain.shift)
        return DENSE_ACTIVATIONS.index("ssp") if same or dtype == torch.float32 else activation
    return DENSE_ACTIVATIONS.index("silu" if isinstance(activation, nn.SiLU) else "tanh")


#: Weight and bias of a layer.
Layer = tuple[Tensor, Tensor | None]


def _tensors(layer: nn.Linear) -> Layer:
    return layer.weight, layer.bias


def _linear(layer: Layer, x: Tensor, residual: Tensor | None = None) -> Tensor:
    return operators.dense.default(x, *layer, residual, None, None, 0, False, False)[0]


def _activated(
    layer: Layer, kind: int | ShiftedSoftplus, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """A layer's output and the slope of its activation, None for 1."""
    if isinstance(kind, ShiftedSoftplus):
        z = _linear(layer, x)
        slope = torch.where(z > kind.threshold, 1.0, torch.sigmoid(z))
        return kind(z), slope.to(z.dtype)
    y, slope, _ = operators.dense.default(x, *layer, None, None, None, kind, kind != 0, False)
    return y, slope if kind else None
