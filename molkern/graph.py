"""What travels between layers: neighbor lists and batches of molecules."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .centering import far_parts, shifted
from .graph_checks import check_indices, check_layout
from .ops import geometry, neighbors
from .ops._arguments import explained
from .ops._library import Adjacency, as_tensor, is_recorded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ase import Atoms


@dataclass(eq=False)
class NeighborList:
    """A graph of directed edges j→i in compressed sparse rows, sorted by receiver i.

    Made by :func:`neighbor_list`, where edges are sorted by (receiver, sender, shift) and every
    edge has its reverse, or by :meth:`from_edge_index` from any list of pairs. All indices are
    int32. Every sum over neighbors is a sum over a row, in order: no float atomics, so results are
    the same bits on every run.

    Attributes:
        row_ptr: first edge of each receiver, ``[N + 1]``.
        senders: atom j of each edge, ``[E]``.
        receivers: atom i of each edge, ``[E]``.
        shifts: whole cells between the images, ``[E, 3]``, relative to the positions as given;
            None without periodicity. The vector of an edge is ``x_j + shift · cell − x_i``.
        reverse: the edge i→j with the opposite shift, ``[E]``; None for a graph that is not
            symmetric, which has its transpose in ``transposed`` instead.
        transposed: for such a graph its edges by sender: row pointers, receivers and edge numbers.
        system: system of each atom, ``[N]``; None for a single system.
        num_systems: number of systems.
        cutoff: the cutoff it was made with; None where the graph was given.
        permutation: place of each edge in the ``edge_index`` it was made from; None otherwise.
        status: what the search found, on the device, for lists with a capacity, else None: the
            edges needed and an error, read by :meth:`check`.
        padded: whether there may be edges beyond ``row_ptr[N]``: padding up to a fixed capacity,
            with senders, receivers and reverse −1. Layers neither read nor sum them.

    Raises:
        ValueError, TypeError: where a list is made by hand (or by :func:`dataclasses.replace`),
            what :meth:`check` raises; on CUDA, whose indices are read by :meth:`check` alone, for
            shapes, types and devices.
    """

    row_ptr: Tensor
    senders: Tensor
    receivers: Tensor
    shifts: Tensor | None = None
    reverse: Tensor | None = None
    transposed: tuple[Tensor, Tensor, Tensor] | None = None
    system: Tensor | None = None
    num_systems: int = 1
    cutoff: float | None = None
    permutation: Tensor | None = None
    status: Tensor | None = None
    padded: bool = False
    _reverse_edges: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_layout(self)
        if self.row_ptr.is_cpu and not is_recorded(self.row_ptr):
            check_indices(self)

    @classmethod
    def _made(cls, **values: Any) -> NeighborList:
        """A list of fields that are right by the way they were made: nothing is checked."""
        made = cls.__new__(cls)
        made.__dict__.update(values)
        return made

    def _with(self, **changes: Any) -> NeighborList:
        """This list with some fields changed, as :meth:`_made`."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return self._made(**{**kept, **changes})

    @property
    def num_atoms(self) -> int:
        return self.row_ptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges, padding not counted; waits for the device if there is a capacity."""
        return int(self.row_ptr[-1]) if self.padded else self.senders.shape[0]

    @property
    def edge_index(self) -> Tensor:
        """Senders (row 0) and receivers (row 1), ``[2, E]``, int64, as in PyTorch Geometric."""
        count = self.num_edges
        return torch.stack([self.senders[:count], self.receivers[:count]]).long()

    @property
    def by_receiver(self) -> Adjacency:
        return self.row_ptr, self.senders, None

    @property
    def by_sender(self) -> Adjacency:
        if self.transposed is not None:
            return self.transposed
        return self.row_ptr, self.senders, self.reverse

    def reverse_edges(self) -> Tensor:
        """The same pair seen from the other end for each edge, ``[E]``, −1 where there is none.

        That is :attr:`reverse`; a graph that is not symmetric is searched, once.
        """
        if self.reverse is not None:
            return self.reverse
        if self._reverse_edges is None:
            self._reverse_edges = _find_reverse(self.senders, self.receivers, self.shifts)
        return self._reverse_edges

    @explained
    def vectors(self, positions: Tensor, cell: Tensor | None = None) -> Tensor:
        """Vectors ``x_j + shift · cell − x_i`` of all edges, ``[E, 3]``.

        Differentiable twice (and beyond) in ``positions`` ``[N, 3]`` and ``cell`` ``[3, 3]`` or
        ``[B, 3, 3]``, which may differ from those that the list was made with.
        """
        return geometry.edge_vectors(*self._geometry(positions, cell))

    @explained
    def distances(self, positions: Tensor, cell: Tensor | None = None) -> Tensor:
        """Lengths of :meth:`vectors`, ``[E]``, twice differentiable (at length zero: zero)."""
        return geometry.edge_distances(*self._geometry(positions, cell))

    def _geometry(self, positions: Tensor, cell: Tensor | None) -> tuple[Any, ...]:
        """The arguments of the operators of geometry, checked."""
        if positions.dim() != 2 or positions.shape != (self.num_atoms, 3):
            raise ValueError(
                f"positions must have shape [{self.num_atoms}, 3], the atoms of this neighbor "
                f"list, got {list(positions.shape)}"
            )
        if self.shifts is None:
            cell = None
        elif cell is None:
            raise ValueError("this neighbor list is periodic: pass the cell too")
        else:
            cell = _cells(cell, self.num_systems)
        sides = self.by_receiver, self.by_sender
        return positions, cell, self.shifts, self.system, *sides, self.padded

    @explained
    def sort_edges(self, values: Tensor) -> Tensor:
        """Brings edge values from the order of the given ``edge_index`` into this list's order."""
        return values if self.permutation is None else values[self.permutation]

    @explained
    def counts(self, edges: Tensor) -> Tensor:
        """How many of each receiver's edges are marked, ``[N]``, given bools ``[E]``."""
        before = torch.cat([edges.new_zeros(1, dtype=torch.int64), edges.cumsum(0)])
        ends = before[self.row_ptr.long()]
        return ends[1:] - ends[:-1]

    @explained
    def within(self, cutoff: float, positions: Tensor, cell: Tensor | None = None) -> NeighborList:
        """The edges shorter than ``cutoff``, as a list of their own.

        Edges and their reverse stay together, so one a rounding error longer may stay too. A list
        with a capacity or without ``reverse``, or with no longer edges, is returned as it is.
        """
        if self.padded or self.reverse is None:
            return self
        if self.cutoff is not None and self.cutoff <= cutoff:
            return self
        with torch.no_grad():
            keep = self.distances(positions, cell) < cutoff
        keep = keep | keep[self.reverse.long()]
        if bool(keep.all()):
            return self
        return self.only(keep)._with(cutoff=cutoff)

    @property
    def can_be_cut(self) -> bool:
        """Whether :meth:`only` can take edges out of it, now that nothing is compiled."""
        return not (self.padded or self.reverse is None or torch.compiler.is_compiling())

    def only(self, keep: Tensor) -> NeighborList:
        """The edges that are marked, bools ``[E]``, each with its reverse, as a list of their own.

        Raises:
            ValueError: a list with a capacity or without ``reverse``.
        """
        if not self.can_be_cut or self.reverse is None:
            raise ValueError("only lists without a capacity, of symmetric graphs, can be cut")
        counts = self.counts(keep).int()
        place = keep.cumsum(0) - 1
        return self._with(
            row_ptr=torch.cat([counts.new_zeros(1), counts.cumsum(0).int()]),
            senders=self.senders[keep],
            receivers=self.receivers[keep],
            shifts=None if self.shifts is None else self.shifts[keep],
            reverse=place[self.reverse[keep].long()].int(),
            permutation=None if self.permutation is None else self.permutation[keep],
        )

    def check(self) -> None:
        """Raises what is wrong with the list. Waits for the device.

        Raises:
            ValueError: for lists with a capacity, what the search found wrong; for lists made by
                hand, an index out of range, rows that decrease, a reverse edge that is none, or
                shapes and devices that do not fit, with the name, the value and its place.
            TypeError: indices that are not int32.
        """
        self._check_search()
        check_layout(self)
        check_indices(self)

    def _check_search(self) -> None:
        """Raises what the search found wrong; of :meth:`check` what models need in each step."""
        if self.status is not None:
            neighbors.check_status(self.status, capacity=self.senders.shape[0])

    def __repr__(self) -> str:
        edges = self.senders.shape[0]
        parts = [
            f"{self.num_atoms} atoms",
            f"room for {edges} edges" if self.padded else f"{edges} edges",
            f"{self.num_systems} system{'' if self.num_systems == 1 else 's'}",
            "cutoff unknown" if self.cutoff is None else f"cutoff {float(self.cutoff):g}",
            "not periodic" if self.shifts is None else "periodic",
            f"{self.senders.dtype} on {self.senders.device}",
        ]
        return f"NeighborList({', '.join(parts)})"

    def to(self, device: torch.device | str) -> NeighborList:
        """The same list on another device."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return self._made(**tree_map_only(Tensor, lambda tensor: tensor.to(device), kept))

    @classmethod
    @explained
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_atoms: int,
        shifts: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> NeighborList:
        """A graph from pairs, ``[2, E]``: row 0 senders j, row 1 receivers i, in any order.

        The graph need not be symmetric. Edges are sorted; :meth:`sort_edges` brings edge values
        along.

        Args:
            edge_index: ``[2, E]``, int64 or int32.
            num_atoms: number of atoms N.
            shifts: whole cells as in :attr:`shifts`, ``[E, 3]``, integers. Packages that keep
                offsets in Å need them divided by the cell.
            batch: system of each atom, ``[N]``, not decreasing; None for a single system.

        Raises:
            ValueError: wrong shapes, an index outside ``[0, num_atoms)``, a shift beyond int32, or
                an edge between two systems.
            TypeError: indices or shifts that are not integers.

        >>> import torch, molkern
        >>> molkern.NeighborList.from_edge_index(torch.tensor([[2, 0], [0, 1]]), 3).row_ptr
        tensor([0, 1, 2, 2], dtype=torch.int32)
        """
        edge_index = _checked_pairs(edge_index, num_atoms)
        _check_shifts(shifts, edge_index.shape[1])
        permutation = _sort_edges(edge_index[1], edge_index[0], num_atoms, shifts)
        senders, receivers = edge_index[:, permutation]
        if shifts is not None:
            shifts = shifts[permutation].int().contiguous()
        mirrored = None if shifts is None else -shifts
        by_sender = _sort_edges(senders, receivers, num_atoms, mirrored)
        symmetric = torch.equal(senders[by_sender], receivers) and torch.equal(
            receivers[by_sender], senders
        )
        if shifts is not None and mirrored is not None:
            symmetric = symmetric and torch.equal(mirrored[by_sender], shifts)
        transpose = (_row_ptr(senders, num_atoms), receivers[by_sender].int(), by_sender.int())
        return cls._made(
            row_ptr=_row_ptr(receivers, num_atoms),
            senders=senders.int(),
            receivers=receivers.int(),
            shifts=shifts,
            reverse=by_sender.int() if symmetric else None,
            transposed=None if symmetric else transpose,
            system=None if batch is None else _checked_systems(batch, num_atoms, edge_index),
            num_systems=neighbors.count_systems(None, batch),
            permutation=permutation,
        )


@explained
def neighbor_list(
    positions: Tensor,
    cutoff: float,
    cell: Tensor | None = None,
    pbc: Tensor | Sequence[bool] | bool | None = None,
    batch: Tensor | None = None,
    *,
    num_systems: int | None = None,
    capacity: int | None = None,
    algorithm: str = "auto",
) -> NeighborList:
    """All pairs of atoms and periodic images closer than ``cutoff``, as a sorted list.

    An edge j→i exists for every image with ``0 ≤ d < cutoff``, except an atom with itself in the
    same image. Any cell, cutoffs beyond half the box and atoms outside the cell are fine. The
    result is the same to the bit for every algorithm, thread count and device; it is not
    differentiable itself: :meth:`NeighborList.vectors` and ``distances`` are.

    Args:
        positions: ``[N, 3]``, float32 or float64, any unit of length.
        cutoff: in the unit of the positions.
        cell: lattice vectors as rows, ``[3, 3]``, or ``[B, 3, 3]`` for a batch. Rows of
            axes that are not periodic may be zero.
        pbc: periodicity per axis: bool, ``[3]``, or ``[B, 3]`` for a batch; by default all axes
            are periodic where a cell is given.
        batch: system of each atom, ``[N]``, not decreasing; None for a single system.
        num_systems: number of systems, where it is known (it may exceed ``batch.max() + 1``).
        capacity: fixed number of edges to make room for; the list is padded, and nothing waits for
            the device. On the CPU exceeding it is an error at once, on CUDA in
            :meth:`NeighborList.check`.
        algorithm: ``"auto"``, ``"direct"`` (all pairs) or ``"cell_list"``; the list is the same.

    Raises:
        ValueError: positions or a cell that are not finite, a singular cell, ``cutoff ≤ 0``, shapes
            that do not fit, a capacity exceeded (the message says which one is needed).
        TypeError: types other than float32 and float64, or two different ones.

    >>> import torch, molkern
    >>> line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0]])
    >>> molkern.neighbor_list(line, cutoff=2.0).edge_index
    tensor([[1, 0, 2, 1],
            [0, 1, 1, 2]])
    """
    return NeighborList._made(
        **neighbors.neighbor_arrays(
            positions, cutoff, cell, pbc, batch, num_systems, capacity, algorithm
        )
    )


@dataclass(eq=False)
class _Noted:
    """What was read of atomic numbers on a GPU, which has to be waited for.

    Attributes:
        numbers: the tensor, and
        version: how often it had been written.
        range: smallest and largest number, once they were asked for.
        elements: those that there are, sorted, likewise.
    """

    numbers: Tensor
    version: int
    range: tuple[int, int] | None = None
    elements: tuple[int, ...] | None = None


class AtomicBatch:
    """One or several molecules or crystals, side by side.

    Args:
        numbers: atomic numbers (or types), ``[N]``, integers.
        positions: ``[N, 3]``, float32 or float64.
        batch: system of each atom, ``[N]``, not decreasing; None for a single system.
        cell: lattice vectors as rows, ``[B, 3, 3]`` (or ``[3, 3]`` for one system).
        pbc: periodicity per axis, ``[B, 3]`` (or ``[3]``, or a bool); by default all axes where
            there is a cell.
        num_systems: number of systems; by default from ``cell`` or ``batch``.

    Attributes:
        offsets: what a conversion to float32 took off the positions (see :meth:`to`), ``[N, 3]``
            float64; None where there was none or it took nothing. What depends on the origin, as
            the dipole of an ion does, adds it to the positions.
        exact_cell: the cell before it became float32, ``[B, 3, 3]`` float64, by which an evaluator
            counts cells; None where it was not converted.
        moved_by_cells: whether whole cells are among it; False also where that is on a GPU.

    Raises:
        ValueError: shapes, devices or a ``batch`` that do not fit, several systems without a
            ``batch``, or periodicity without a cell.
        TypeError: positions, numbers or a batch of a wrong type, or a cell of another type than
            the positions.
    """

    @explained
    def __init__(
        self,
        numbers: Tensor,
        positions: Tensor,
        batch: Tensor | None = None,
        cell: Tensor | None = None,
        pbc: Tensor | Sequence[bool] | bool | None = None,
        num_systems: int | None = None,
    ):
        _check_atoms(numbers, positions, batch, cell, pbc)
        if num_systems is None:
            num_systems = neighbors.count_systems(cell, batch)
        if batch is None and num_systems != 1:
            raise ValueError(
                f"num_systems is {num_systems} but batch is missing: pass the system of each atom"
            )
        if batch is not None and len(batch):
            _check_order(batch, num_systems)
        self.numbers = numbers.long()
        self.positions = positions
        self.batch = batch
        self.num_systems = num_systems
        self.cell = None if cell is None else _cells(cell, num_systems)
        self.pbc = self._periodicity(pbc)
        self.offsets: Tensor | None = None
        self.exact_cell: Tensor | None = None
        self.moved_by_cells = False
        #: First atom of each system, ``[B + 1]``, int32.
        self.system_ptr = self._first_atoms()
        self._noted: _Noted | None = None

    def _first_atoms(self) -> Tensor:
        device = self.positions.device
        if self.batch is None:
            return torch.tensor([0, self.num_atoms], dtype=torch.int32, device=device)
        systems = torch.arange(self.num_systems + 1, device=device)
        return torch.searchsorted(self.batch.long().contiguous(), systems).int()

    def _periodicity(self, pbc: Tensor | Sequence[bool] | bool | None) -> Tensor | None:
        if self.cell is None:
            if pbc is not None and neighbors.any_axis(pbc):
                raise ValueError("pbc is set but there is no cell: pass the lattice vectors")
            return None
        value = as_tensor(True if pbc is None else pbc, torch.bool, self.positions.device)
        if value.shape not in ((), (3,), (self.num_systems, 3)):
            raise ValueError(
                f"pbc must be a bool, [3] or [{self.num_systems}, 3], got {list(value.shape)}"
            )
        return value.expand(self.num_systems, 3).contiguous()

    @property
    def num_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def number_range(self) -> tuple[int, int]:
        """Smallest and largest atomic number.

        On a GPU, which it waits for, it is read again only after the numbers have changed.
        """
        noted = self._notes()
        if noted is None:
            return _value_range(self.numbers)
        if noted.range is None:
            noted.range = _value_range(self.numbers)
        return noted.range

    @property
    def elements(self) -> tuple[int, ...]:
        """The atomic numbers that there are, sorted.

        On a GPU read again only after the numbers have changed, together with the range.
        """
        noted = self._notes()
        if noted is None:
            return _distinct(self.numbers)
        if noted.elements is None:
            found = noted.elements = _distinct(self.numbers)
            noted.range = (found[0], found[-1]) if found else (0, 0)
        return noted.elements

    def _notes(self) -> _Noted | None:
        """What was read of the numbers as they are; None where they are read anew each time."""
        numbers = self.numbers
        # NumPy may change what the CPU holds, and of inference tensors torch counts no changes
        if numbers.is_cpu or numbers.is_inference():
            return None
        noted = self._noted
        if noted is None or noted.numbers is not numbers or noted.version != numbers._version:
            noted = self._noted = _Noted(numbers, numbers._version)
        return noted

    @explained
    def neighbors(self, cutoff: float, **options: Any) -> NeighborList:
        """The neighbor list of the batch; options as for :func:`neighbor_list`."""
        return neighbor_list(
            self.positions.detach(),
            cutoff,
            None if self.cell is None else self.cell.detach(),
            self.pbc,
            self.batch,
            num_systems=self.num_systems,
            **options,
        )

    @explained
    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> AtomicBatch:
        """The same batch on another device or with another floating-point type.

        Nothing is checked again, which would wait for the device.

        float64 positions far from the origin lose digits as float32, and forces with them. So they
        are moved near it before: a system as a whole, by whole units of length, and where its atoms
        lie far outside of their periodic cell, each of them by whole cells. That is done where
        rounding would change the positions, and the largest coordinate of a system is beyond 15 and
        gets at least 3 times smaller; otherwise they are only rounded. What was taken off is in
        :attr:`offsets`. A neighbor list of the positions as they were does not fit atoms that were
        moved by cells: make one of this batch.

        Args:
            device: by default the present one.
            dtype: of positions and cells, float32 or float64; by default the present one.
            non_blocking: copies from pinned memory (:meth:`pin_memory`) to a GPU without waiting
                for it; what is copied must not be changed meanwhile.

        Raises:
            TypeError: another type than these.
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise TypeError(f"positions must be float32 or float64, got {dtype}")

        narrows = dtype == torch.float32 and self.positions.dtype == torch.float64
        batch = self._near_origin() if narrows else self

        kept = batch.offsets, batch.exact_cell

        def move(value: Tensor) -> Tensor:
            changes = value.is_floating_point() and not any(value is other for other in kept)
            kind = dtype if changes else None
            return value.to(device=device, dtype=kind, non_blocking=non_blocking)

        made = batch._mapped(move)
        if narrows and self.cell is not None:
            made.exact_cell = self.cell.detach().to(device=device, non_blocking=non_blocking)
        return made

    @property
    def owners(self) -> Tensor:
        """System of each atom, ``[N]``, int64, also of a single system."""
        return torch.zeros_like(self.numbers) if self.batch is None else self.batch.long()

    def _near_origin(self) -> AtomicBatch:
        """The batch with float64 positions as :meth:`to` moves them; itself if it moves none."""
        owner = self.owners
        with torch.no_grad():
            offset, cells = far_parts(self.positions, self.cell, self.pbc, self.system_ptr, owner)
            taken = offset[owner]
            if cells is not None and self.cell is not None:
                taken = taken + shifted(cells, self.cell, owner)
            # On a GPU looking would wait for it
            known = taken.is_cpu and not is_recorded(taken)
            if known and not bool(taken.any()):
                return self
        moved = self._mapped(lambda value: value)
        moved.positions = self.positions - taken
        moved.offsets = taken if self.offsets is None else self.offsets + taken
        moved.moved_by_cells = self.moved_by_cells or (
            known and cells is not None and bool(cells.any())
        )
        return moved

    def pin_memory(self) -> AtomicBatch:
        """The same batch in memory that a GPU can copy from by itself, see :meth:`to`.

        Raises:
            RuntimeError: torch's, where there is no GPU.
        """
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> AtomicBatch:
        """The batch of what a function gives for each tensor, without the constructor's checks."""

        def mapped(value: Tensor | None) -> Tensor | None:
            return None if value is None else function(value)

        made = AtomicBatch.__new__(AtomicBatch)
        made.numbers = function(self.numbers).long()
        made.positions = function(self.positions)
        made.batch, made.cell, made.pbc = map(mapped, (self.batch, self.cell, self.pbc))
        made.exact_cell = mapped(self.exact_cell)
        made.offsets, made.moved_by_cells = mapped(self.offsets), self.moved_by_cells
        made.num_systems = self.num_systems
        made.system_ptr = function(self.system_ptr)
        made._noted = None
        if (there := made._notes()) is not None:
            if (here := self._notes()) is not None:
                there.range, there.elements = here.range, here.elements
            elif self.numbers.is_cpu:  # where reading takes no waiting
                there.range, there.elements = self.number_range, self.elements
        return made

    def __repr__(self) -> str:
        return (
            f"AtomicBatch({self.num_atoms} atoms, {self.num_systems} "
            f"system{'' if self.num_systems == 1 else 's'}, "
            f"{'not periodic' if self.cell is None else 'periodic'}, "
            f"{self.positions.dtype} on {self.positions.device})"
        )

    @classmethod
    @explained
    def from_ase(
        cls,
        atoms: Atoms | Sequence[Atoms],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> AtomicBatch:
        """A batch from ``ase.Atoms`` or a list of them, in Å; with cells if one is periodic.

        As float32, positions far from the origin are moved near it, see :meth:`to`.

        Raises:
            ValueError: an empty list.
            TypeError: a type other than float32 and float64.
        """
        from ase import Atoms

        systems = [atoms] if isinstance(atoms, Atoms) else list(atoms)
        if not systems:
            raise ValueError("from_ase needs at least one Atoms object, got an empty list")
        numbers = torch.cat([as_tensor(a.numbers, torch.int64) for a in systems])
        positions = torch.cat([as_tensor(a.get_positions(), torch.float64) for a in systems])
        on: Any = {"device": "cpu"}  # whatever the default device
        lengths = torch.tensor([len(a) for a in systems], **on)
        batch = None
        if len(systems) > 1:
            batch = torch.repeat_interleave(torch.arange(len(systems), **on), lengths)
        cell = pbc = None
        if any(a.pbc.any() for a in systems):
            cell = torch.stack([as_tensor(a.cell.array, torch.float64) for a in systems])
            pbc = torch.stack([as_tensor(a.pbc) for a in systems])
        made = cls(numbers, positions, batch, cell, pbc, num_systems=len(systems))
        return made.to(dtype=dtype).to(device)


def _check_atoms(
    numbers: Tensor, positions: Tensor, batch: Tensor | None, cell: Tensor | None, pbc: Any
) -> None:
    """Refuses shapes, types and devices of a batch that do not fit; waits for no device."""
    if positions.dim() != 2 or positions.shape[1] != 3:
        raise ValueError(
            f"positions must have shape [N, 3], got {list(positions.shape)}: the order is "
            "AtomicBatch(numbers, positions)"
        )
    if positions.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"positions must be float32 or float64, got {positions.dtype}")
    count = positions.shape[0]
    if numbers.shape != (count,):
        raise ValueError(f"numbers must have shape [{count}], got {list(numbers.shape)}")
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"numbers must be integers, got {numbers.dtype}")
    if batch is not None and batch.shape != (count,):
        raise ValueError(f"batch must have shape [{count}], got {list(batch.shape)}")
    if batch is not None and batch.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"batch must be int64 or int32, got {batch.dtype}")
    if cell is not None and cell.dtype != positions.dtype:
        raise TypeError(
            f"cell is {cell.dtype} but positions is {positions.dtype}; convert one of them "
            "with .to()"
        )
    for name, value in dict(numbers=numbers, batch=batch, cell=cell, pbc=pbc).items():
        if isinstance(value, Tensor) and value.device != positions.device:
            raise ValueError(
                f"{name} is on {value.device} but positions is on {positions.device}; "
                "move one of them with .to()"
            )


def _check_order(batch: Tensor, num_systems: int) -> None:
    """Refuses systems that are none, or not one after the other."""
    low, high = int(batch[0]), int(batch[-1])
    if low < 0 or high >= num_systems or bool((batch[1:] < batch[:-1]).any()):
        raise ValueError(
            f"batch must not decrease and lie in [0, {num_systems}); sort the atoms by "
            f"system (it runs from {int(batch.min())} to {int(batch.max())})"
        )


def _cells(cell: Tensor, num_systems: int) -> Tensor:
    """``[3, 3]`` or ``[B, 3, 3]`` as ``[B, 3, 3]``."""
    if cell.shape == (3, 3):
        return cell.expand(num_systems, 3, 3)
    if cell.shape != (num_systems, 3, 3):
        raise ValueError(
            f"cell must have shape [3, 3] or [{num_systems}, 3, 3], got {list(cell.shape)}"
        )
    return cell


def _value_range(values: Tensor) -> tuple[int, int]:
    """Smallest and largest value; zeros if there is none."""
    if values.numel() == 0:
        return 0, 0
    if values.is_cpu and values.numel() <= 1024:
        listed = values.flatten().tolist()
        return min(listed), max(listed)
    low, high = torch.stack(values.aminmax()).tolist()
    return low, high


#: Atomic numbers below this are looked for at once; larger ones, types of beads say, are rare.
_LARGEST = 255


def _distinct(values: Tensor) -> tuple[int, ...]:
    """The values that there are, sorted; waits for a GPU once."""
    if values.is_cpu and values.numel() <= 1024:
        return tuple(sorted(set(values.tolist())))
    seen = torch.zeros(_LARGEST + 2, dtype=torch.bool, device=values.device)
    below, *inside, above = seen.index_fill_(0, values.clamp(-1, _LARGEST) + 1, True).tolist()
    if below or above:
        return tuple(torch.unique(values).tolist())
    return tuple(value for value, found in enumerate(inside) if found)


def _row_ptr(rows: Tensor, count: int) -> Tensor:
    """Row pointers of sorted or unsorted row numbers."""
    lengths = torch.bincount(rows, minlength=count)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


def _sort_edges(first: Tensor, second: Tensor, num_atoms: int, shifts: Tensor | None) -> Tensor:
    """Stable order by (first, second, shift)."""
    pairs = first * num_atoms + second
    if shifts is None or not len(pairs):
        return torch.argsort(pairs, stable=True)
    shifts = shifts.long()
    low = int(shifts.min())
    span = int(shifts.max()) - low + 1
    if num_atoms**2 * span**3 < 2**63:  # all in one key
        for shift in (shifts - low).unbind(1):
            pairs = pairs * span + shift
        return torch.argsort(pairs, stable=True)
    order = torch.arange(len(pairs), device=pairs.device)
    for key in reversed([pairs, *shifts.unbind(1)]):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _find_reverse(senders: Tensor, receivers: Tensor, shifts: Tensor | None) -> Tensor:
    """Edge i→j with the opposite shift for every edge j→i, int32, −1 where there is none."""
    columns = [senders.unsqueeze(1), receivers.unsqueeze(1)]
    back = [receivers.unsqueeze(1), senders.unsqueeze(1)]
    if shifts is not None:
        columns, back = [*columns, shifts], [*back, -shifts]
    edges = senders.shape[0]
    _, names = torch.unique(
        torch.cat([torch.cat(columns, 1), torch.cat(back, 1)]), dim=0, return_inverse=True
    )
    place = torch.full((2 * edges,), -1, dtype=torch.int32, device=senders.device)
    place[names[:edges]] = torch.arange(edges, dtype=torch.int32, device=senders.device)
    return place[names[edges:]]


def _checked_pairs(edge_index: Tensor, num_atoms: int) -> Tensor:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must have shape [2, E], got {list(edge_index.shape)}")
    if edge_index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"edge_index must be int64 or int32, got {edge_index.dtype}")
    if not 0 <= num_atoms < 2**31:
        raise ValueError(f"num_atoms must be from 0 to {2**31 - 1}, got {num_atoms}")
    if edge_index.shape[1] >= 2**31:
        raise ValueError(
            f"edge_index has {edge_index.shape[1]} edges, more than the {2**31 - 1} that int32 "
            "counts: split the graph"
        )
    edge_index = edge_index.long()
    outside = (edge_index < 0) | (edge_index >= num_atoms)
    if bool(outside.any()):
        edge = int(outside.any(0).nonzero()[0])
        raise ValueError(
            f"edge {edge} joins atoms {edge_index[:, edge].tolist()}, but there are "
            f"{num_atoms} atoms (0 to {num_atoms - 1})"
        )
    return edge_index


def _check_shifts(shifts: Tensor | None, edges: int) -> None:
    if shifts is None:
        return
    if shifts.shape != (edges, 3):
        raise ValueError(f"shifts must have shape [{edges}, 3], got {list(shifts.shape)}")
    if shifts.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise TypeError(
            f"shifts count whole cells and must be integers, got {shifts.dtype}: round those that "
            "are whole numbers, and divide offsets in units of length by the cell first"
        )
    low, high = _value_range(shifts)
    if low <= -(2**31) or high >= 2**31:
        raise ValueError(
            f"shifts must fit int32, got one of {low if low <= -(2**31) else high} cells"
        )


def _checked_systems(batch: Tensor, num_atoms: int, edge_index: Tensor) -> Tensor:
    if batch.shape != (num_atoms,):
        raise ValueError(f"batch must have shape [{num_atoms}], got {list(batch.shape)}")
    if batch.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"batch must be int64 or int32, got {batch.dtype}")
    if num_atoms and (int(batch[0]) < 0 or bool((batch[1:] < batch[:-1]).any())):
        raise ValueError("batch must be sorted and not negative: sort the atoms by system first")
    across = batch[edge_index[0]] != batch[edge_index[1]]
    if bool(across.any()):
        edge = int(across.nonzero()[0])
        raise ValueError(
            f"edge {edge} joins atoms {edge_index[:, edge].tolist()} of different systems"
        )
    return batch.int()
