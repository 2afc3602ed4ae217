"""Energy and forces in one pass without a tape, for inference with splines."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..graph import AtomicBatch, NeighborList
from ..nn import ShiftedSoftplus
from ..ops import segment_sum
from ..ops._arguments import checked
from ..ops._derivatives import mapped
from ..ops._library import operators
from ..ops.dense import DENSE_ACTIVATIONS

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
        if not self.serves(model):
            raise ValueError(
                "the lean path is for a SchNet with filters='spline' that sums energies: set "
                "model.filters = 'spline'; dipoles, extents and means have none"
            )
        self._source = [model]  # in a list, not to be a module of this one
        self._tables: list[Tensor] | None = None
        self.refresh()

    @staticmethod
    def serves(model: SchNet) -> bool:
        """Whether there is a lean path for the model as it is set now."""
        return (
            model.filters == "spline"
            and model.readout.prediction == "energy"
            and model.readout.readout == "sum"
            and all(conv.aggregation == "sum" for conv in _convolutions(model))
        )

    def refresh(self) -> None:
        """Takes the tables of the model's present weights."""
        (model,) = self._source
        self.grid, tables = model._splines.constant(model)
        if tables is self._tables:
            return
        # Layers may have been replaced
        self.embedding, self.interactions = model.embedding, model.interactions
        self.head, self.reference = model.head, model.reference
        for k, table in enumerate(tables):
            self.register_buffer(f"table_{k}", table, persistent=False)
        self._compose()
        self._tables = tables

    def _compose(self) -> None:
        """Layers as the operator takes them: modules take long to give their tensors."""
        layers: list[nn.Linear] = []
        bends: list[nn.Module | None] = []
        interactions: list[Any] = list(self.interactions)
        for block in interactions:
            layers += [block.conv.lin_in, block.conv.lin_out, block.lin]
            bends.append(block.activation)
        head: list[Any] = list(self.head.layers)
        layers += head[::2]
        bends += [*head[1::2], None]
        dtype = layers[0].weight.dtype
        kinds, thresholds, shifts = zip(*(_bend(bend, dtype) for bend in bends), strict=True)
        self._weights = [layer.weight for layer in layers]
        self._biases = [layer.bias for layer in layers]
        self._bends = list(kinds), list(thresholds), list(shifts)

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
            self._weights,
            self._biases,
            *self._bends,
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
        return [getattr(self, f"table_{k}") for k in range(len(self.interactions))]


@torch.library.register_fake("molkern::schnet_energy_grad")
def _(numbers: Tensor, positions: Tensor, cell: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    systems = 0 if cell is None or not rest[-1] else cell.shape[0]
    values = positions.new_empty(positions.shape[0], 1)
    return values, positions.new_empty(positions.shape), positions.new_empty(systems, 3, 3)


mapped("schnet_energy_grad")


def _convolutions(model: SchNet) -> list[Any]:
    blocks: list[Any] = list(model.interactions)
    return [block.conv for block in blocks]


def below_autograd() -> AbstractContextManager[Any]:
    """Calls operators without the part of them that would record a graph, where torch can."""
    guard = getattr(torch._C, "_AutoDispatchBelowAutograd", None)
    return nullcontext() if guard is None or torch.compiler.is_compiling() else guard()


#: The operator's number for a shifted softplus whose threshold and shift are given.
_OWN_SOFTPLUS = 4


def _bend(activation: nn.Module | None, dtype: torch.dtype) -> tuple[int, float, float]:
    """The operator's number for an activation, and a softplus's threshold and shift."""
    if activation is None:
        return 0, 0.0, 0.0
    if isinstance(activation, ShiftedSoftplus):
        plain = ShiftedSoftplus()
        own = activation.threshold, activation.shift
        # In float32 all shifted softpluses round alike
        same = own == (plain.threshold, plain.shift) or dtype == torch.float32
        return DENSE_ACTIVATIONS.index("ssp") if same else _OWN_SOFTPLUS, *own
    return DENSE_ACTIVATIONS.index("silu" if isinstance(activation, nn.SiLU) else "tanh"), 0.0, 0.0
