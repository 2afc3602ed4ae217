"""Molecules or crystals with their properties, side by side in a few arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..graph import AtomicBatch
from ..structures import fault
from .indices import Index, as_indices

Array = NDArray[Any]
#: Properties of atoms rather than of systems; all others have one row for each system.
PER_ATOM = ("forces", "charges")


@dataclass
class Sample:
    """A batch with its labels.

    Attributes:
        batch: the systems.
        targets: labels by name, float64: ``[B]`` or ``[B, ...]`` for properties of systems,
            ``[N]`` or ``[N, 3]`` for those of atoms.
        indices: of the systems in their data set, ``[B]``.
    """

    batch: AtomicBatch
    targets: dict[str, Tensor]
    indices: Tensor

    def __repr__(self) -> str:
        labels = ", ".join(f"{k} {list(v.shape)}" for k, v in self.targets.items())
        return f"Sample({self.batch!r}; {labels or 'no labels'})"

    def to(self, device: torch.device | str) -> Sample:
        targets = {k: v.to(device, non_blocking=True) for k, v in self.targets.items()}
        return Sample(self.batch.to(device, non_blocking=True), targets, self.indices)

    def pin_memory(self) -> Sample:
        """The same in pinned memory, from which copies to a GPU need not wait."""
        targets = {k: v.pin_memory() for k, v in self.targets.items()}
        return Sample(self.batch.pin_memory(), targets, self.indices)


@dataclass(eq=False)
class Dataset:
    """Systems of any sizes; arrays may be memory-mapped.

    All atoms lie side by side, so that a batch is gathered by a few operations on arrays, whatever
    the number of its systems; neighbor lists are made of whole batches.

    Args:
        numbers: atomic numbers of all atoms, ``[A]``.
        positions: of all atoms, ``[A, 3]``.
        ptr: first atom of each system and the end, ``[M + 1]``.
        properties: arrays by name; those of :data:`PER_ATOM` have a row for each atom, all others
            for each system.
        units: of the properties, and of ``"positions"`` where it is not Å.
        cell, pbc: lattice vectors ``[M, 3, 3]`` and periodicity ``[M, 3]``, or None.
        ids: what the source calls the systems, ``[M]``; by default they count from 0.
        reference: energies of free atoms by property, ``[Z]`` each, in the property's unit.
        name: of the source, for messages.
        sources: what the source calls properties that have another name here.
        unused: what else the source holds, by its names there.
        notes: sentences about how the source was understood.

    ``data[index]``, :meth:`subset` and :meth:`collate` take what NumPy takes: integers, negative
    ones from the end, slices, ranges, masks; see :func:`molkern.data.indices.as_indices`.

    Raises:
        ValueError: arrays that do not fit together, or atomic numbers that are none.

    >>> import numpy as np
    >>> from molkern.data import Dataset
    >>> data = Dataset(
    ...     numbers=np.array([1, 1, 8, 1, 1]),
    ...     positions=np.random.rand(5, 3),
    ...     ptr=np.array([0, 2, 5]),
    ...     properties={"energy": np.array([-1.0, -2.0])},
    ...     units={"energy": "eV"},
    ... )
    >>> sample = data.collate([1, 0])
    >>> sample.batch.numbers, sample.targets["energy"]
    (tensor([8, 1, 1, 1, 1]), tensor([-2., -1.], dtype=torch.float64))
    """

    numbers: Array
    positions: Array
    ptr: Array
    properties: Mapping[str, Array]
    units: Mapping[str, str] = field(default_factory=dict)
    cell: Array | None = None
    pbc: Array | None = None
    ids: Array | None = None
    reference: Mapping[str, Array] = field(default_factory=dict)
    name: str = "data"
    sources: Mapping[str, str] = field(default_factory=dict)
    unused: Sequence[str] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        atoms, systems = len(self.numbers), len(self.ptr) - 1
        if self.ptr.ndim != 1 or self.ptr.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: ptr must hold integers, got {self.ptr.dtype}")
        if systems < 0 or (np.diff(self.ptr) < 0).any() or self.ptr[0] != 0:
            raise ValueError(f"{self.name}: ptr must start at 0 and not decrease")
        if self.ptr[-1] != atoms or self.positions.shape != (atoms, 3):
            raise ValueError(
                f"{self.name}: {atoms} numbers, positions {list(self.positions.shape)} and "
                f"{self.ptr[-1]} atoms by ptr do not fit together"
            )
        if self.numbers.dtype.kind not in "iu" or (atoms and int(self.numbers.min()) < 0):
            raise ValueError(
                f"{self.name}: atomic numbers must be integers that are not negative, got "
                f"{self.numbers.dtype} from {self.numbers.min() if atoms else 'none'}"
            )
        for name, values in {"positions": self.positions, **self.properties}.items():
            if values.dtype.kind not in "fiub":
                raise ValueError(f"{self.name}: {name} must be real numbers, got {values.dtype}")
        for name, values in self.properties.items():
            rows = atoms if name in PER_ATOM else systems
            if len(values) != rows:
                raise ValueError(f"{self.name}: {name} has {len(values)} rows, needs {rows}")
        for name, value, shape in (
            ("cell", self.cell, (systems, 3, 3)),
            ("pbc", self.pbc, (systems, 3)),
            ("ids", self.ids, (systems,)),
        ):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{self.name}: {name} must have shape {list(shape)}, got {list(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def __repr__(self) -> str:
        names = ", ".join(f"{k} ({self.units.get(k, 'no unit')})" for k in self.properties)
        return f"Dataset({self.name}: {len(self):,} systems, {len(self.numbers):,} atoms; {names})"

    def __getitem__(self, index: Index) -> Dataset:
        if isinstance(index, tuple):
            raise TypeError("data sets have one axis, their systems: give a list of them")
        return self.subset(index)

    @cached_property
    def sizes(self) -> Array:
        """Atoms of each system, ``[M]``."""
        return np.diff(self.ptr)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that is learned from."""
        found = hashlib.sha256()
        arrays: dict[str, Array | None] = dict(
            numbers=self.numbers, positions=self.positions, ptr=self.ptr, cell=self.cell
        )
        arrays |= {"pbc": self.pbc, **self.properties}
        for name, values in sorted(arrays.items()):
            if values is None:
                continue
            found.update(f"{name}{values.dtype.str}{values.shape}".encode())
            found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()

    def label(self, system: int) -> str:
        """What the source calls a system."""
        (place,) = as_indices(int(system), len(self))
        return str(place if self.ids is None else self.ids[place])

    def where(self, system: int) -> str:
        """Which system of the source this is, for messages."""
        return f"{self.name}: {'frame' if self.ids is None else 'system'} {self.label(system)}"

    def atoms_of(self, indices: Index) -> Array:
        """Where the atoms of some systems lie, one system after the other."""
        return self._atoms_of(as_indices(indices, len(self)))

    def _atoms_of(self, indices: Array) -> Array:
        starts, counts = self.ptr[indices], self.sizes[indices]
        ends = np.cumsum(counts)
        return np.repeat(starts - ends + counts, counts) + np.arange(counts.sum())

    def rows(self, name: str, indices: Index) -> Array:
        """A property of some systems, or of their atoms."""
        indices = as_indices(indices, len(self))
        places = self._atoms_of(indices) if name in PER_ATOM else indices
        return np.asarray(self.properties[name][places])

    def collate(
        self,
        indices: Index,
        targets: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Sample:
        """Some systems as a batch.

        Args:
            indices: of the systems.
            targets: names of the labels; None for all.
            dtype: of positions and cells.

        Raises:
            KeyError: a label that the data lacks.
            IndexError, TypeError: indices that are none, see :class:`Dataset`.
        """
        indices = as_indices(indices, len(self))
        atoms = self._atoms_of(indices)
        counts = torch.from_numpy(self.sizes[indices].astype(np.int64))
        cell = pbc = None
        if self.cell is not None:
            cell = torch.from_numpy(np.asarray(self.cell[indices])).to(dtype)
            pbc = None if self.pbc is None else torch.from_numpy(np.asarray(self.pbc[indices]))
        single = len(indices) == 1
        batch = AtomicBatch(
            torch.from_numpy(self.numbers[atoms].astype(np.int64)),
            torch.from_numpy(np.asarray(self.positions[atoms])).to(dtype),
            None
            if single
            else torch.repeat_interleave(torch.arange(len(indices), device=counts.device), counts),
            cell,
            pbc,
            num_systems=len(indices),
        )
        labels = {}
        for name in self.properties if targets is None else targets:
            rows = atoms if name in PER_ATOM else indices
            labels[name] = torch.from_numpy(np.asarray(self.properties[name][rows])).double()
        return Sample(batch, labels, torch.from_numpy(indices))

    def subset(self, indices: Index, name: str | None = None) -> Dataset:
        """Some systems as a data set of their own.

        Raises:
            IndexError, TypeError: indices that are none, see :class:`Dataset`.
        """
        indices = as_indices(indices, len(self))
        atoms = self._atoms_of(indices)
        labels = np.arange(len(self)) if self.ids is None else self.ids
        return Dataset(
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            ptr=np.concatenate([[0], np.cumsum(self.sizes[indices])]),
            properties={
                key: values[atoms if key in PER_ATOM else indices]
                for key, values in self.properties.items()
            },
            units=self.units,
            cell=None if self.cell is None else self.cell[indices],
            pbc=None if self.pbc is None else self.pbc[indices],
            ids=labels[indices],
            reference=self.reference,
            name=name or self.name,
            sources=self.sources,
            unused=self.unused,
            notes=self.notes,
        )

    def faults(self, indices: Index) -> dict[int, str]:
        """Systems for which nothing can be computed, and why: see
        :func:`molkern.structures.fault`."""
        chosen = as_indices(indices, len(self))
        atoms = ~np.isfinite(self.positions).all(1) | (self.numbers < 1) | (self.numbers > 118)
        suspect = (self.sizes == 0) | (np.add.reduceat(np.append(atoms, False), self.ptr[:-1]) > 0)
        if self.cell is not None:
            suspect = suspect | ~_spans(np.asarray(self.cell, dtype=np.float64))
        found = {}
        for system in chosen[suspect[chosen]]:
            of_it = slice(self.ptr[system], self.ptr[system + 1])
            cell = None if self.cell is None else self.cell[system]
            pbc = None if self.pbc is None else self.pbc[system]
            if self.cell is not None and pbc is None:
                pbc = np.ones(3, dtype=bool)
            reason = fault(self.numbers[of_it], self.positions[of_it], cell, pbc)
            if reason is not None:
                found[int(system)] = reason
        return found

    def incomplete(self, targets: Sequence[str]) -> dict[str, Array]:
        """Systems with labels that are NaN or infinite, by target; only those that have some."""
        found = {}
        for name in targets:
            values = np.asarray(self.properties[name])
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if name in PER_ATOM:
                owners = np.repeat(np.arange(len(self)), self.sizes)
                systems = np.unique(owners[bad])
            else:
                systems = np.flatnonzero(bad)
            if len(systems):
                found[name] = systems
        return found


def _spans(cells: Array) -> Array:
    """Which cells surely span space, ``[M]``: the others are to be looked at one by one."""
    with np.errstate(all="ignore"):
        volumes = np.abs(np.linalg.det(cells))
        most = np.linalg.norm(cells, axis=2).prod(1)
        return np.asarray(volumes > 1e-7 * most)
