"""Which systems are trained on, and in what order."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import Dataset
from ..files import read_arrays, write_whole
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


def make_split(options: Split, keep: Indices, digest: str) -> dict[str, Indices]:
    """Systems for training, validation and test, at random by seed or from a file.

    Args:
        options: sizes and seed, or a file, which counts more.
        keep: the systems to be shared out.
        digest: of the data, which that of the file must be.

    Raises:
        ValueError: more systems wanted than there are, or a file of other data.
    """
    if options.file is not None:
        given = load_split(options.file, digest)
        return {part: members[np.isin(members, keep)] for part, members in given.items()}
    sizes = [_count(getattr(options, part), len(keep)) for part in PARTS[:2]]
    rest = len(keep) - sum(sizes)
    wanted = rest if options.test is None else _count(options.test, len(keep))
    if rest < 0 or wanted > rest:
        raise ValueError(
            f"data.split: {sizes[0]:,} for training, {sizes[1]:,} for validation"
            + (f" and {wanted:,} for the test" if options.test else "")
            + f" are more than the {len(keep):,} systems that there are"
        )
    for part, size in zip(PARTS, sizes, strict=False):
        if size < 1:
            raise ValueError(f"data.split.{part}: none of {len(keep):,} systems")
    order = np.random.default_rng(options.seed).permutation(keep)
    ends = np.cumsum([0, *sizes, wanted])
    return {part: order[ends[k] : ends[k + 1]] for k, part in enumerate(PARTS)}


def _count(wanted: float | None, all_of_them: int) -> int:
    if wanted is None:
        return 0
    return round(wanted * all_of_them) if 0 < wanted < 1 else int(wanted)


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
        digest: of the data.
        systems: how many there are.

    Raises:
        ValueError: no such file, one that is damaged, or a split of other data.
    """
    try:
        found = read_arrays(path, (*PARTS, "digest"))
        made, parts = str(found.pop("digest")), {}
        for part, members in found.items():
            if members.ndim != 1 or members.dtype.kind not in "iu":
                raise ValueError(f"{part} is no list of whole numbers")
            parts[part] = members.astype(np.int64)
    except ValueError as error:
        raise ValueError(f"{path} is not a split that a run saved: {error}") from error
    if digest is not None and made != digest:
        raise ValueError(
            f"{path} was made for other data: give the data of that run, or another split"
        )
    for part, members in parts.items():
        most = np.inf if systems is None else systems
        if len(members) and not 0 <= members.min() <= members.max() < most:
            raise ValueError(f"{path} is damaged: {part} has systems that there are none of")
    return parts


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
