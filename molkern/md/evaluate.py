"""Energies, forces and stress of all structures of a file, in batches of bounded size."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.conditions import CONDITIONS, ConditionReader
from ..data.frames import entries, frames_for, units_of
from ..data.labels import choose, of_frame
from ..data.reading import energy_factor
from ..extras import require
from ..files import new_output, replacing, require_folder, require_not_inputs, writing
from ..graph import AtomicBatch
from ..models import Potential
from ..nn.precision import network_tensor
from ..progress import progress_bar
from ..structures import write_frame
from .parallel import run_pieces
from .source import ModelSource
from .trajectories import XYZ

if TYPE_CHECKING:
    from ase import Atoms

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Chunk:
    """Structures that are computed at once.

    Attributes:
        first: number of the first one's frame.
        systems: elements, positions, cells, periodicity, and conditions in ``info``, only.
        stress: whether theirs is wanted.
    """

    first: int
    systems: list[Atoms]
    stress: bool = False


@dataclass(frozen=True)
class Results:
    """What a model gave for a chunk, in eV and Å.

    Attributes:
        energies: ``[M]``.
        forces: ``[n_1 + … + n_M, 3]``.
        stress: ``[M, 3, 3]``, or None where it was not wanted.
    """

    energies: Array
    forces: Array
    stress: Array | None


def chunks(frames: Iterable[Atoms], max_atoms: int, stress: bool = False) -> Iterator[Chunk]:
    """Consecutive structures of one kind of periodicity, with at most so many atoms together.

    A structure with more atoms is a chunk of its own. How structures are shared out depends on
    nothing else, so results have the same bits for every number of workers.
    """
    held: list[Atoms] = []
    first, atoms, kind = 0, 0, None
    for index, frame in enumerate(frames):
        now = bool(frame.pbc.any()), stress and _has_stress(frame)
        if held and (now != kind or atoms + len(frame) > max_atoms):
            yield Chunk(first, held, bool(kind and kind[1]))
            held, first, atoms = [], index, 0
        kind = now
        held.append(_bare(frame))
        atoms += len(frame)
    if held:
        yield Chunk(first, held, bool(kind and kind[1]))


def _has_stress(frame: Atoms) -> bool:
    return bool(frame.pbc.all()) and abs(frame.cell.volume) > 0


def _bare(frame: Atoms) -> Atoms:
    from ase import Atoms

    info = {name: frame.info[name] for name in CONDITIONS if name in frame.info}
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc, info=info)


class EvaluateWorker:
    """Computes chunks.

    Args:
        source: the model.
        device: where.
        energy_unit: the model's unit of energy in eV.
        max_edges: with more of them than this a chunk is halved, again and again.
    """

    def __init__(
        self,
        source: ModelSource,
        device: str = "cpu",
        energy_unit: float = 1.0,
        max_edges: int = 2_000_000,
    ):
        self._model: Potential = source.load(device)
        self._unit, self._max_edges = energy_unit, max_edges
        self._conditions: dict[str, Any] = dict(source.conditions)

    def work(self, chunk: Chunk) -> tuple[bool, Results]:
        """Computes a chunk at once.

        Raises:
            ValueError: naming the frames: what the model refuses.
        """
        last = chunk.first + len(chunk.systems) - 1
        try:
            found = self._compute(chunk)
        except ValueError as error:
            frames = f"frame {last}" if last == chunk.first else f"frames {chunk.first} to {last}"
            raise ValueError(f"{frames}: {error}") from error
        self._require_finite(chunk, found)
        return True, found

    def _require_finite(self, chunk: Chunk, found: Results) -> None:
        """Refuses results that are no numbers, naming the frame."""
        owners = np.repeat(np.arange(len(chunk.systems)), [len(atoms) for atoms in chunk.systems])
        bad = ~np.isfinite(found.energies)
        bad[owners[~np.isfinite(found.forces).all(1)]] = True
        if not bad.any():
            return
        broken = any(not bool(p.isfinite().all()) for p in self._model.parameters())
        why = "weights of the model are NaN or infinite" if broken else "its atoms may be too close"
        raise ValueError(
            f"frame {chunk.first + int(bad.argmax())}: the energy or forces are not finite: {why}"
        )

    def pause(self) -> None:
        """Nothing is under way between chunks."""

    def _compute(self, chunk: Chunk) -> Results:
        weight = network_tensor(self._model)
        batch = AtomicBatch.from_ase(chunk.systems, weight.dtype, weight.device)
        neighbors = self._model.neighbors(batch)
        count = len(chunk.systems)
        if neighbors.num_edges > self._max_edges and count > 1:
            del neighbors, batch
            first, second = chunk.systems[: count // 2], chunk.systems[count // 2 :]
            return _joined(
                self._compute(Chunk(chunk.first, first, chunk.stress)),
                self._compute(Chunk(chunk.first + count // 2, second, chunk.stress)),
            )
        out = self._model(
            batch,
            forces=True,
            stress=chunk.stress,
            neighbors=neighbors,
            **self._conditions_of(chunk.systems, batch.positions.device),
        )
        found = {k: out[k].to("cpu", torch.float64).numpy() * self._unit for k in out}
        return Results(found["energy"], found["forces"], found.get("stress"))

    def _conditions_of(self, systems: list[Atoms], device: torch.device) -> dict[str, Any]:
        """What the systems carry, or what is given for all."""
        found = dict(self._conditions)
        for name in self._model.conditions:
            if all(name in atoms.info for atoms in systems):
                values = [float(atoms.info[name]) for atoms in systems]
                found[name] = torch.tensor(values, dtype=torch.float64, device=device)
        return found


def _joined(a: Results, b: Results) -> Results:
    stress = None
    if a.stress is not None and b.stress is not None:
        stress = np.concatenate([a.stress, b.stress])
    return Results(
        np.concatenate([a.energies, b.energies]), np.concatenate([a.forces, b.forces]), stress
    )


@dataclass
class Errors:
    """Differences to the energies and forces that a file has, as sums."""

    energies: list[float] = field(default_factory=list)
    per_atom: list[float] = field(default_factory=list)
    _absolute: float = 0.0
    _squares: float = 0.0
    _components: int = 0

    def add(self, frame: Atoms, energy: float, forces: Array, reference: Mapping[str, Any]) -> None:
        if "energy" in reference:
            self.energies.append(energy - float(reference["energy"]))
            self.per_atom.append(self.energies[-1] / max(len(frame), 1))
        if "forces" in reference:
            difference = forces - reference["forces"]
            self._absolute += float(np.abs(difference).sum())
            self._squares += float((difference**2).sum())
            self._components += difference.size

    def lines(self) -> list[str]:
        """Mean absolute and root mean square errors, for people; none without references."""
        text = []
        for values, what, unit in (
            (self.energies, "energy", "meV"),
            (self.per_atom, "energy per atom", "meV"),
        ):
            if values:
                table = np.array(values) * 1e3
                text.append(
                    f"{what}: MAE {np.abs(table).mean():.4g} {unit}, RMSE "
                    f"{np.sqrt((table**2).mean()):.4g} {unit} ({len(table)} frames)"
                )
        if self._components:
            mean = 1e3 * self._absolute / self._components
            root = 1e3 * np.sqrt(self._squares / self._components)
            text.append(f"forces: MAE {mean:.4g} meV/Å, RMSE {root:.4g} meV/Å")
        return text


class References:
    """Energies and forces that came with structures, in eV and Å.

    Args:
        path: the file.
        energy_unit: of its energies, where it does not say.

    Raises:
        ValueError: an unknown unit.
    """

    def __init__(self, path: Path, energy_unit: str):
        self._path, self._unit, self._units = path, energy_unit, units_of(path)
        energy_factor(energy_unit, path)

    def of(self, frame: Atoms) -> dict[str, Any]:
        """Those of a structure, by the names that training knows too."""
        content = {name: value for name, value in entries(frame).items() if value is not None}
        names = choose(content, {}, "")
        found: dict[str, Any] = {}
        for label in ("energy", "forces"):
            if label in names:
                name = names[label]
                with suppress(ValueError):  # of another shape: no reference
                    value = of_frame(label, name, content[name], len(frame))
                    if np.isfinite(value).all():
                        found[label] = value * self._factor(name)
        return found

    def _factor(self, name: str) -> float:
        return energy_factor(self._units.get(name, self._unit), self._path)


class Output(Protocol):
    """A file of results, to which structures are added in their order."""

    def add(
        self,
        frame: Atoms,
        energy: float,
        forces: Array,
        stress: Array | None,
        reference: Mapping[str, Any],
    ) -> None: ...

    def finish(self) -> bytes:
        """What is still to be written."""


class _Frames:
    """Extended XYZ, with a file's own energies and forces as ``reference_…``."""

    def __init__(self, file: TextIO, conditions: Sequence[str] = ()):
        self._file = file  # conditions are in the frames' info

    def add(
        self,
        frame: Atoms,
        energy: float,
        forces: Array,
        stress: Array | None,
        reference: Mapping[str, Any],
    ) -> None:
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        result = frame.copy()
        if "energy" in reference:
            result.info["reference_energy"] = float(reference["energy"])
        if "forces" in reference:
            result.arrays["reference_forces"] = np.asarray(reference["forces"])
        for name in ("energy", "forces", "stress"):  # write_xyz refuses what is there already
            result.info.pop(name, None)
            result.arrays.pop(name, None)
        voigt = {} if stress is None else {"stress": full_3x3_to_voigt_6_stress(stress)}
        result.calc = SinglePointCalculator(result, energy=energy, forces=forces, **voigt)
        write_frame(self._file, result)

    def finish(self) -> bytes:
        return b""


class _Table:
    """Comma-separated: frame, atoms, energy, and conditions where there are some."""

    def __init__(self, file: TextIO, conditions: Sequence[str] = ()):
        self._file, self._conditions, self._count = file, conditions, 0
        file.write(",".join(["frame,atoms,energy_eV", *conditions]) + "\n")

    def add(
        self,
        frame: Atoms,
        energy: float,
        forces: Array,
        stress: Array | None,
        reference: Mapping[str, Any],
    ) -> None:
        values = [repr(float(frame.info[name])) for name in self._conditions]
        self._file.write(",".join([f"{self._count},{len(frame)},{energy!r}", *values]) + "\n")
        self._count += 1

    def finish(self) -> bytes:
        return b""


class _Arrays:
    """NumPy's archive: ``energies`` [M], ``forces`` [N, 3], ``atoms`` [M], ``stress`` [M, 3, 3],
    and conditions [M]."""

    def __init__(self, file: TextIO, conditions: Sequence[str] = ()):
        self._rows: list[tuple[int, float, Array, Array | None]] = []
        self._conditions: dict[str, list[float]] = {name: [] for name in conditions}

    def add(
        self,
        frame: Atoms,
        energy: float,
        forces: Array,
        stress: Array | None,
        reference: Mapping[str, Any],
    ) -> None:
        self._rows.append((len(frame), energy, forces, stress))
        for name, values in self._conditions.items():
            values.append(float(frame.info[name]))

    def finish(self) -> bytes:
        nothing = np.full((3, 3), np.nan)
        arrays: dict[str, Any] = {
            "atoms": np.array([row[0] for row in self._rows]),
            "energies": np.array([row[1] for row in self._rows]),
            "forces": np.concatenate([row[2] for row in self._rows]),
            **{name: np.array(values) for name, values in self._conditions.items()},
        }
        if any(row[3] is not None for row in self._rows):
            arrays["stress"] = np.array([nothing if r[3] is None else r[3] for r in self._rows])
        content = io.BytesIO()
        np.savez(content, **arrays)
        return content.getvalue()


_OUTPUTS: dict[str, Any] = {**dict.fromkeys(XYZ, _Frames), ".csv": _Table, ".npz": _Arrays}


def evaluate(
    structures: Path,
    source: ModelSource,
    out: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    energy_unit: float = 1.0,
    max_atoms: int = 4096,
    max_edges: int = 2_000_000,
    stress: bool = False,
    workers: int = 0,
    ray_address: str | None = None,
    restart: bool = False,
    reference_unit: str = "eV",
) -> tuple[int, list[str]]:
    """Evaluates all structures of a file and writes results in their order.

    Args:
        structures: a file that ASE reads, one structure after the other.
        source: the model.
        out: ``.extxyz`` or ``.xyz`` (energies, forces, stress), ``.npz`` (the same as arrays) or
            ``.csv`` (energies); appears when all is done.
        device, threads: where, and the threads of each worker.
        energy_unit: the model's unit of energy in eV; results are in eV.
        max_atoms, max_edges: of a batch.
        stress: whether stress is wanted, of structures that are periodic along all axes.
        workers: Ray's workers that share the batches; 0: this process does all.
        ray_address: of a cluster.
        restart: whether a file that is there already is written anew.
        reference_unit: of energies and forces (per Å) that are in the file, where it does not say.

    Returns:
        How many structures there were, and lines: about structures without the stress that was
        wanted, about errors where the file has references, and about conditions: models that take a
        total charge are given what :func:`molkern.data.conditions.stated` finds in a frame, or 0,
        unless the source has one.

    Raises:
        ValueError: files that are missing, empty or cannot be read, elements that the model does
            not know (naming frame and atom), structures that cannot be computed (naming the
            frame) or that the model refuses, results that are not finite, stress in a format
            without; an output that is there already or that another process is at.
        OSError: naming a file that cannot be written.
    """
    require("md", "ase", "tqdm")
    _check_arguments(out, max_atoms, max_edges)
    require_not_inputs([out], {"the file of structures": structures, "the model": source.path})
    if stress and out.suffix == ".csv":
        raise ValueError(f"{out} holds energies only: with --stress results end in .extxyz or .npz")
    without: list[int] = []
    references = References(structures, reference_unit)
    model = source.load()
    conditions = ConditionReader(model.conditions, dict(source.conditions))
    kept: dict[int, Atoms] = {}

    def frames() -> Iterator[Atoms]:
        given = frames_for(model, structures, source.name, conditions)
        for index, frame in enumerate(given):
            if stress and not _has_stress(frame):
                without.append(index)
            kept[index] = frame
            yield frame

    factory = functools.partial(EvaluateWorker, source, device, energy_unit, max_edges)
    results = run_pieces(
        factory,
        chunks(frames(), max_atoms, stress),
        lambda chunk, answer: None,
        workers=workers,
        threads=threads,
        gpus=int(device.startswith("cuda")),
        address=ray_address,
    )
    with new_output(out, restart):
        count, lines = _write(out, results, kept, conditions.wanted, references)
    return count, [*_without_stress(without, count), *lines, *conditions.notes()]


def _without_stress(frames: list[int], count: int) -> list[str]:
    if not frames:
        return []
    named = ", ".join(map(str, frames[:5])) + (", …" if len(frames) > 5 else "")
    return [
        f"no stress of {len(frames)} of {count} structure(s), whose cells are not periodic along "
        f"three axes: frame(s) {named}"
    ]


def _check_arguments(out: Path, max_atoms: int, max_edges: int) -> None:
    for name, value in (("batch size", max_atoms), ("max edges", max_edges)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if out.suffix not in _OUTPUTS:
        endings = ", ".join(_OUTPUTS)
        raise ValueError(f"{out} ends in {out.suffix!r}: results end in one of {endings}")
    require_folder(out)


def _write(
    out: Path,
    results: Iterator[Results],
    kept: dict[int, Atoms],
    conditions: Sequence[str],
    references: References,
) -> tuple[int, list[str]]:
    errors, count = Errors(), 0
    with replacing(out) as stream, progress_bar(desc="evaluating", unit="frame") as bar:
        file = io.TextIOWrapper(stream, encoding="utf-8")
        output: Output = _OUTPUTS[out.suffix](file, conditions)
        for result in results:
            with writing(out):
                added = _add(output, result, kept, count, errors, references)
            count += added
            bar.update(added)
        with writing(out):
            file.detach().write(output.finish())
    return count, errors.lines()


def _add(
    output: Output,
    result: Results,
    kept: dict[int, Atoms],
    first: int,
    errors: Errors,
    references: References,
) -> int:
    """Adds the structures of a chunk; how many there were."""
    start = 0
    for k, energy in enumerate(result.energies.tolist()):
        frame = kept.pop(first + k)
        forces = result.forces[start : start + len(frame)]
        start += len(frame)
        stress = None if result.stress is None else result.stress[k]
        reference = references.of(frame)
        output.add(frame, energy, forces, stress, reference)
        errors.add(frame, energy, forces, reference)
    return len(result.energies)
