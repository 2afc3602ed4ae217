"""What a run of molecular dynamics is: settings, replicas in groups, and the names of its files."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import require_folder
from .source import ModelSource
from .trajectories import TRAJ, XYZ

if TYPE_CHECKING:
    from ase import Atoms

#: Atoms that are computed at once where no size of groups is given.
_GROUP_ATOMS = {"cpu": 1024, "cuda": 65_536}


@dataclass(frozen=True)
class Settings:
    """How a run goes.

    Attributes:
        ensemble: ``"nve"`` or ``"nvt"``.
        steps: to be done in all.
        replicas: of the structure.
        temperature: of the first velocities, and of the thermostat, K.
        time_step: fs.
        friction: of the thermostat, 1/ps.
        seed: of velocities and noise.
        every: steps from frame to frame; the last state is a frame, too.
        checkpoint_every: steps from checkpoint to checkpoint.
        energy_unit: the model's unit of energy in eV.
        keep_velocities: whether the structure's own velocities are the first ones.
        dissociation: whether atoms of a molecule may leave all others.
    """

    ensemble: str = "nve"
    steps: int = 1000
    replicas: int = 1
    temperature: float = 300.0
    time_step: float = 0.5
    friction: float = 1.0
    seed: int = 0
    every: int = 10
    checkpoint_every: int = 1000
    energy_unit: float = 1.0
    keep_velocities: bool = False
    dissociation: bool = False

    def check(self) -> None:
        """Refuses what makes no run.

        Raises:
            ValueError: naming the value and what it must be.
        """
        if self.ensemble not in ("nve", "nvt"):
            raise ValueError(f"ensemble must be nve or nvt, got {self.ensemble!r}")
        for name in ("replicas", "every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("temperature", "friction"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}"
                )
        if not 0 < self.time_step < math.inf:
            raise ValueError(f"time step must be positive and finite, got {self.time_step} fs")

    @property
    def thermostat(self) -> bool:
        return self.ensemble == "nvt"


@dataclass(frozen=True)
class Plan:
    """A run, complete, as it is sent to those who compute it.

    Attributes:
        source: the model.
        atoms: the structure that all replicas start from.
        settings: how it goes.
        out: name of the trajectory, absolute; replicas are numbered before its ending.
        group_size: replicas that are computed at once. Where the evaluator's bits depend on what
            is computed beside a system, they depend on this, not on how many workers there are.
        device, threads: of those who compute.
    """

    source: ModelSource
    atoms: Atoms
    settings: Settings
    out: Path
    group_size: int
    device: str
    threads: int

    @property
    def groups(self) -> list[range]:
        """The replicas of each group."""
        every, count = self.group_size, self.settings.replicas
        return [range(first, min(first + every, count)) for first in range(0, count, every)]

    def trajectory(self, replica: int) -> Path:
        """``traj.xyz`` for one replica, ``traj_0.xyz``, ``traj_1.xyz``, … for several."""
        if self.settings.replicas == 1:
            return self.out
        return self.out.with_name(f"{self.out.stem}_{replica}{self.out.suffix}")

    def energies(self, group: int) -> Path:
        """A table of the energies of a group's replicas, beside the trajectory."""
        return self._beside(group, "csv")

    def checkpoint(self, group: int) -> Path:
        return self._beside(group, "checkpoint")

    @property
    def summary(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.json")

    @property
    def picture(self) -> Path:
        """Where the plot goes, if nothing else is said."""
        return self.summary.with_suffix(".png")

    def outputs(self, plot: Path | None = None) -> list[Path]:
        """All files that the run writes."""
        files = [self.trajectory(replica) for replica in range(self.settings.replicas)]
        for group in range(len(self.groups)):
            files += [self.energies(group), self.checkpoint(group)]
        return [*files, self.summary, plot or self.picture]

    def other_checkpoints(self) -> list[Path]:
        """Those of runs with other replicas whose other files go by the same names."""
        own = {self.checkpoint(group) for group in range(len(self.groups))}
        pattern = re.compile(re.escape(self.out.stem) + r"(\.group\d+)?\.checkpoint")
        beside = self.out.parent.iterdir()
        return sorted(p for p in beside if pattern.fullmatch(p.name) and p not in own)

    def _beside(self, group: int, ending: str) -> Path:
        middle = f".group{group}" if len(self.groups) > 1 else ""
        return self.out.with_name(f"{self.out.stem}{middle}.{ending}")

    def identity(self, group: int) -> dict[str, Any]:
        """What a checkpoint and the run that goes on from it must have in common."""
        settings = self.settings
        replicas = self.groups[group]
        return {
            "model": f"{self.source.name} ({self.source.digest[:12]})",
            "conditions": str(self.source.conditions),
            "filters": self.source.filters,
            "structure": f"{self.atoms.get_chemical_formula()} ({structure_digest(self.atoms)})",
            "ensemble": settings.ensemble,
            "temperature": settings.temperature,
            "time step": settings.time_step,
            "friction": settings.friction if settings.thermostat else 0.0,
            "seed": settings.seed,
            "every": settings.every,
            "energy unit": settings.energy_unit,
            "velocities": "of the structure" if settings.keep_velocities else "drawn",
            "replicas": f"{replicas.start} to {replicas.stop - 1} of {settings.replicas}",
            "out": self.out.suffix,
        }


def structure_digest(atoms: Atoms) -> str:
    """Tells structures apart, by elements, positions, cell, periodicity and velocities."""
    parts = [atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_momenta()]
    digest = hashlib.sha256()
    for part in [*parts, atoms.get_masses()]:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:12]


def output_path(out: str | Path) -> Path:
    """An absolute path with the ending of a format; ``.xyz`` where there is none.

    Raises:
        ValueError: another ending, or a folder that is not there.
    """
    path = Path(out)
    if not path.suffix:
        path = path.with_name(path.name + ".xyz")
    if path.suffix not in (*XYZ, *TRAJ):
        endings = ", ".join((*XYZ, *TRAJ))
        raise ValueError(f"{out} ends in {path.suffix!r}: trajectories end in one of {endings}")
    require_folder(path)
    return path.resolve()


def default_group(atoms: int, device: str) -> int:
    """Replicas to be computed at once, by their atoms and the kind of device only."""
    return max(1, _GROUP_ATOMS.get(device.split(":")[0], 1024) // max(atoms, 1))
