"""Energy and forces in one pass without a tape, for inference with splines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..graph import AtomicBatch, NeighborList
from ..nn import AtomicReference, AtomwiseHead, ShiftedSoftplus
from ..nn.activations import fused_activation
from ..nn.plain import is_plain
from ..ops import segment_sum
from ..ops._arguments import checked
from ..ops._derivatives import mapped
from ..ops._library import operators
from ..ops.dense import DENSE_ACTIVATIONS
from ..ops.splines import SplineGrid
from .readout import Readout

if TYPE_CHECKING:
    from .schnet import SchNet


class LeanSchNet(nn.Module):
    """Energy and forces of a :class:`SchNet` with spline filters, in one operator (csrc/schnet).

    The forward pass keeps what the backward pass needs and nothing else, no graph is recorded, and
    memory is released layer by layer. Tensors in, tensors out: :func:`torch.compile`,
    :func:`torch.export.export` and AOTInductor take it as it is. ``model(batch, forces=True)``
    uses it by itself; make one to export it.

    Args:
        model: with ``filters="spline"``, ``prediction="energy"``, ``aggregation="sum"`` and
            ``readout="sum"``. Its parameters are shared; the tables are those of its weights now,
            until :meth:`refresh`.

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

    @checked
    def __init__(self, model: SchNet):
        super().__init__()
        self._source: list[SchNet] = [model]  # in a list, not to be a module of this one
        self.refresh()

    @staticmethod
    def serves(model: SchNet) -> bool:
        """Whether there is a lean path for the model as it is set now."""
        return model.lean() is not None

    @classmethod
    def of(cls, model: SchNet, grid: SplineGrid, tables: list[Tensor]) -> LeanSchNet | None:
        """That of the model's layers as they are and of these tables, if the operator does it."""
        layers = _composed(model, tables)
        if layers is None:
            return None
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._source = []
        made._take(model, grid, tables, layers)
        return made

    def refresh(self) -> None:
        """Takes the layers of the model as they are now, and the tables of its present weights.

        Raises:
            ValueError: a model that is of another kind now.
        """
        (model,) = self._source or (None,)
        found = None if model is None else model.lean()
        if found is None or model is None:
            raise ValueError(
                "the lean path is for a SchNet with filters='spline' that sums energies, of "
                "molkern's own layers: set model.filters = 'spline'; dipoles, extents and means "
                "have none, nor models whose layers are replaced, wrapped or hooked"
            )
        self._take(model, found.grid, found.tables, found._layers)

    def _take(self, model: SchNet, grid: SplineGrid, tables: list[Tensor], layers: _Layers) -> None:
        self.embedding, self.interactions = model.embedding, model.interactions
        self.head, self.reference = model.head, model.reference
        for k, table in enumerate(tables):
            self.register_buffer(f"table_{k}", table, persistent=False)
        self.grid, self._layers, self._count = grid, layers, len(tables)

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

        Edge tensors of a list with a capacity may be longer than ``row_ptr[N]``. No graph is
        recorded, for the weights neither.

        Raises:
            RuntimeError: positions or a cell that require a gradient or have a tangent.
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
        values, grad, grad_cell = operators.schnet_energy_grad.default(
            numbers,
            positions,
            cell,
            shifts,
            system,
            row_ptr,
            senders,
            None,
            *by_sender,
            self.embedding.weight,
            self.tables,
            self._layers.weights,
            self._layers.biases,
            self._layers.activations,
            self._layers.thresholds,
            self._layers.shifts,
            self.reference.scale,
            *self.grid.form,
            padded,
            need_cell,
        )
        energies = self.reference(values.squeeze(1), numbers)
        if torch.compiler.is_compiling() and system_ptr.shape[0] == 2:
            energy = energies.sum(0, keepdim=True)  # compiled code serves any number of atoms
        else:
            energy = segment_sum(energies.unsqueeze(1), system_ptr).squeeze(1)
        return energy, grad, grad_cell

    @property
    def tables(self) -> list[Tensor]:
        return [getattr(self, f"table_{k}") for k in range(self._count)]


@torch.library.register_fake("molkern::schnet_energy_grad")
def _(numbers: Tensor, positions: Tensor, cell: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    systems = 0 if cell is None or not rest[-1] else cell.shape[0]
    values = positions.new_empty(positions.shape[0], 1)
    return values, positions.new_empty(positions.shape), positions.new_empty(systems, 3, 3)


mapped("schnet_energy_grad")


@dataclass(frozen=True)
class _Layers:
    """Layers as the operator takes them: modules take long to give their tensors."""

    weights: list[Tensor]
    biases: list[Tensor | None]
    activations: list[int]
    thresholds: list[float]
    shifts: list[float]


def _composed(model: SchNet, tables: list[Tensor]) -> _Layers | None:
    """The layers of a model, if calling them is what the operator does; else None."""
    blocks: list[Any] = list(model.interactions)
    if len(blocks) != len(tables) or model.spline_obstacle() or not _ends_are_plain(model):
        return None
    if any(block.conv.aggregation != "sum" for block in blocks):
        return None
    head: list[Any] = list(model.head.layers)
    layers = [layer for b in blocks for layer in (b.conv.lin_in, b.conv.lin_out, b.lin)]
    layers += head[::2]
    bends = [*(block.activation for block in blocks), *head[1::2], None]
    if not all(is_plain(layer, nn.Linear) for layer in layers):
        return None
    like = model.embedding.weight
    widths = [like.shape[1]]
    for block, table in zip(blocks, tables, strict=True):
        widths += [table.shape[1], block.lin.weight.shape[1], like.shape[1]]
    widths += [layer.weight.shape[0] for layer in head[::2]]
    if widths[-1] != 1 or not _fit_together(layers, widths, like):
        return None
    codes = [_bend(bend, layers[0].weight.dtype) for bend in bends]
    if None in codes:
        return None
    activations, thresholds, shifts = zip(*codes, strict=True)  # type: ignore[arg-type]
    return _Layers(
        [layer.weight for layer in layers],
        [layer.bias for layer in layers],
        list(activations),
        list(thresholds),
        list(shifts),
    )


def _ends_are_plain(model: SchNet) -> bool:
    """Whether what is before and after the blocks is what the operator has there."""
    embedding, head, readout = model.embedding, model.head, model.readout
    return (
        is_plain(embedding, nn.Embedding)
        and embedding.max_norm is None
        and is_plain(head, AtomwiseHead)
        and is_plain(head.layers, nn.Sequential)
        and len(head.layers) % 2 == 1
        and is_plain(model.reference, AtomicReference)
        and model.reference.scale.dim() == 0
        and is_plain(readout, Readout)
        and (readout.prediction, readout.readout) == ("energy", "sum")
    )


def _fit_together(layers: list[Any], widths: list[int], like: Tensor) -> bool:
    """Whether layers follow upon each other, of one type and on one device: calls tell, if not."""
    for layer, (inputs, outputs) in zip(layers, pairwise(widths), strict=True):
        weight, bias = layer.weight, layer.bias
        for tensor, shape in ((weight, (outputs, inputs)), (bias, (outputs,))):
            if tensor is None:
                continue
            if (tensor.shape, tensor.dtype, tensor.device) != (shape, like.dtype, like.device):
                return False
    return True


#: The operator's number for a shifted softplus whose threshold and shift are given.
_OWN_SOFTPLUS = 4


def _bend(activation: nn.Module | None, dtype: torch.dtype) -> tuple[int, float, float] | None:
    """The operator's number for an activation, if it has one, and a softplus's own numbers."""
    if activation is None:
        return 0, 0.0, 0.0
    if isinstance(activation, ShiftedSoftplus) and is_plain(activation, ShiftedSoftplus):
        plain = ShiftedSoftplus()
        own = activation.threshold, activation.shift
        # In float32 all shifted softpluses round alike
        same = own == (plain.threshold, plain.shift) or dtype == torch.float32
        return DENSE_ACTIVATIONS.index("ssp") if same else _OWN_SOFTPLUS, *own
    name = fused_activation(activation)
    return None if name is None else (DENSE_ACTIVATIONS.index(name), 0.0, 0.0)
