"""Which systems are trained on, and in what order."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Dataset
from ..data.conditions import require_finite
from ..data.indices import as_indices
from ..data.reading import Archive
from ..files import write_whole
from .config import Split

Indices = NDArray[np.int64]
PARTS = ("train", "validation", "test")


def usable(data: Dataset, labels: list[str]) -> tuple[Indices, list[str]]:
    """Systems whose labels are all finite numbers, and sentences about the others."""
    bad = data.incomplete(labels)
    notes = []
    for name, systems in bad.items():
        first = ", ".join(data.label(system) for system in systems[:5])
        more = ", …" if len(systems) > 5 else ""
        notes.append(
            f"{len(systems):,} of {len(data):,} systems have a {name} that is NaN or infinite and "
            f"are left out ({first}{more})"
        )
    keep = np.setdiff1d(np.arange(len(data)), np.concatenate([*bad.values(), []]))
    return keep.astype(np.int64), notes


def check_systems(data: Dataset, members: Indices) -> None:
    """Refuses systems for which nothing can be computed.

    Raises:
        ValueError: naming the first ones by their numbers in the file, and what is wrong.
    """
    found = data.faults(np.sort(members))
    if found:
        (first, reason), *others = found.items()
        raise ValueError(f"{data.where(first)}: {reason}{_and_others(data, others)}")


def check_conditions(data: Dataset, members: Indices, wanted: Iterable[str]) -> None:
    """Refuses conditions that a model depends on and that are no numbers.

    Raises:
        ValueError: naming the first system.
    """
    for name in wanted:
        if name in data.properties:
            chosen = np.sort(members)
            bad = chosen[~np.isfinite(data.properties[name][chosen])]
            for system in bad[:1]:
                require_finite(name, float(data.properties[name][system]), data.where(system))


def _and_others(data: Dataset, others: list[Any]) -> str:
    if not others:
        return ""
    shown = ", ".join(data.label(system) for system, _ in others[:5])
    return f" (and {len(others):,} more: {shown}{', …' if len(others) > 5 else ''})"


def make_split(
    options: Split, keep: Indices, digest: str, systems: int | None = None
) -> dict[str, Indices]:
    """Systems for training, validation and test, at random by seed or from a file.

    Args:
        options: sizes and seed, or a file, which counts more.
        keep: the systems to be shared out.
        digest: of the data, which that of the file must be.
        systems: of the data, where it is known, see :func:`load_split`.

    Raises:
        ValueError: more systems wanted than there are, or a file of other data.
    """
    if options.file is not None:
        given = load_split(options.file, digest, systems)
        return {part: members[np.isin(members, keep)] for part, members in given.items()}
    sizes = part_sizes((options.train, options.validation, options.test), len(keep))
    order = np.random.default_rng(options.seed).permutation(keep)
    ends = np.cumsum([0, *sizes])
    return {part: order[ends[k] : ends[k + 1]] for k, part in enumerate(PARTS)}


def part_sizes(wanted: tuple[float, float, float | None], count: int) -> list[int]:
    """Systems for training, validation and test.

    Fractions are of all; together they get as many systems as their sum is nearest to, by largest
    remainders, and each at least one.

    Args:
        wanted: numbers of systems, or fractions below 1; the last may be None for the rest.
        count: how many systems there are.

    Raises:
        ValueError: more than there are.

    >>> part_sizes((0.8, 0.1, 0.1), 15)
    [12, 2, 1]
    """
    fractions = {k: Fraction(str(w)) for k, w in enumerate(wanted) if w is not None and 0 < w < 1}
    total = sum(fractions.values(), Fraction(0))
    if abs(total - 1) <= Fraction(1, 10**6):  # 0.333 and the like
        fractions = {k: fraction / total for k, fraction in fractions.items()}
    sizes = [0 if w is None or k in fractions else int(w) for k, w in enumerate(wanted)]
    exact = {k: fraction * count for k, fraction in fractions.items()}
    sizes = [math.floor(exact[k]) if k in exact else size for k, size in enumerate(sizes)]
    left = round(sum(exact.values())) - sum(sizes[k] for k in exact)
    by_remainder = sorted(exact, key=lambda k: (math.floor(exact[k]) - exact[k], k))
    for k in by_remainder[:left]:
        sizes[k] += 1
    for k in exact:
        if sizes[k] == 0:  # the largest can spare one
            largest = max(exact, key=lambda j: sizes[j])
            sizes[k] = 1
            sizes[largest] -= sizes[largest] > 1
    if wanted[2] is None:
        sizes[2] = max(0, count - sizes[0] - sizes[1])
    if sum(sizes) > count:
        raise ValueError(
            f"data.split: {sizes[0]:,} for training, {sizes[1]:,} for validation"
            + (f" and {sizes[2]:,} for the test" if sizes[2] else "")
            + f" are more than the {count:,} systems that there are"
        )
    return sizes


def save_split(path: Path, split: dict[str, Indices], digest: str) -> None:
    """Writes a split with the digest of its data, for :func:`load_split`."""
    parts: dict[str, Any] = dict(split)
    content = io.BytesIO()
    np.savez(content, digest=np.array(digest), **parts)
    write_whole(path, content.getvalue())


def load_split(
    path: str | Path, digest: str | None, systems: int | None = None
) -> dict[str, Indices]:
    """A split that :func:`save_split` wrote; without a digest, of any data.

    Args:
        path: the file.
        digest: of the data, which that in the file must be.
        systems: of the data; with them masks and negative numbers are understood as a data set
            understands them, without them refused.

    Raises:
        ValueError: no such file, a damaged one, a split of other data, or parts that are no
            indices or have systems in common.
    """
    try:
        archive = Archive(path)
        missing = [name for name in (*PARTS, "digest") if name not in archive]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        made = archive.text("digest")
        if digest is None or made == digest:
            found = {part: _members(archive.numbers(part, "fiub"), systems) for part in PARTS}
            _require_disjoint(found)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not a split that a run saved: {error}") from error
    if digest is not None and made != digest:
        raise ValueError(
            f"{path} was made for other data: give the data of that run, or another split"
        )
    return found


def _members(values: NDArray[Any], systems: int | None) -> Indices:
    """A part in a file as indices from 0."""
    if values.size == 0:
        return np.empty(0, dtype=np.int64)
    if systems is None and (values.dtype.kind == "b" or values.min() < 0):
        raise ValueError("it has masks or negative numbers")
    return as_indices(values, int(values.max()) + 1 if systems is None else systems)


def _require_disjoint(parts: dict[str, Indices]) -> None:
    members = np.concatenate([*parts.values()])
    seen, counts = np.unique(members, return_counts=True)
    if (counts > 1).any():
        system = int(seen[counts.argmax()])
        where = [part for part, some in parts.items() if system in some]
        raise ValueError(f"system {system} is there twice (in {' and '.join(where)})")


@dataclass
class Share:
    """What one process does of a batch.

    Attributes:
        indices: of its systems.
        systems, atoms: of the whole batch, which averages are over.
    """

    indices: Indices
    systems: int
    atoms: int


class BatchStream:
    """Batches of one interval between validations, as shares of a process.

    Batch k of a run is what an endless row of permutations, each by (seed, pass), has at
    ``[k B, (k + 1) B)``: a function of k alone, so that a run goes on where it stopped, for any
    length of the interval. The processes of a distributed run take turns in a batch.

    Args:
        members: the systems to choose from.
        sizes: atoms of every system of the data.
        batch_size: systems of a batch, of all processes together.
        steps: batches of an interval.
        seed: of the permutations.
        rank, world: this process, and how many there are.
    """

    def __init__(
        self,
        members: Indices,
        sizes: NDArray[Any],
        batch_size: int,
        steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.members, self.sizes, self.batch_size, self.steps = members, sizes, batch_size, steps
        self.seed, self.rank, self.world = seed, rank, world
        self.interval = 0
        self._passes: dict[int, Indices] = {}

    def set_epoch(self, epoch: int) -> None:
        """Which interval comes next; Lightning calls this."""
        self.interval = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Share]:
        first = self.interval * self.steps
        for step in range(first, first + self.steps):
            yield self.share(step)

    def share(self, step: int) -> Share:
        """This process's share of a batch of the run."""
        chosen = self._at(step * self.batch_size, (step + 1) * self.batch_size)
        atoms = int(self.sizes[chosen].sum())
        return Share(chosen[self.rank :: self.world], len(chosen), atoms)

    def _at(self, first: int, last: int) -> Indices:
        count, parts = len(self.members), []
        for turn in range(first // count, (last - 1) // count + 1):
            start = turn * count
            parts.append(self._pass(turn)[max(0, first - start) : last - start])
        return np.concatenate(parts)

    def _pass(self, turn: int) -> Indices:
        if turn not in self._passes:
            order = np.random.default_rng((self.seed, turn)).permutation(self.members)
            kept = {t: p for t, p in self._passes.items() if t == turn - 1}
            self._passes = {**kept, turn: order}
        return self._passes[turn]


class Portions:
    """All systems of a part in order, in batches, shared by the processes."""

    def __init__(
        self,
        members: Indices,
        sizes: NDArray[Any],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.members, self.sizes, self.batch_size = members, sizes, batch_size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-len(self.members) // self.batch_size)

    def __iter__(self) -> Iterator[Share]:
        for first in range(0, len(self.members), self.batch_size):
            chosen = self.members[first : first + self.batch_size]
            atoms = int(self.sizes[chosen].sum())
            yield Share(chosen[self.rank :: self.world], len(chosen), atoms)
