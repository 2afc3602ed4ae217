"""From a number per atom to what a model predicts for each system."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..nn.fixed import FixedModule
from ..nn.properties import DipoleMoment, ElectronicSpatialExtent
from ..ops._library import is_recorded
from .structure import Structure

#: Properties that a number per atom can be summed to.
PREDICTIONS = ("energy", "dipole_moment", "electronic_spatial_extent")
#: What becomes of the atoms' numbers: extensive properties are sums, intensive ones means.
READOUTS = ("sum", "mean")


class Readout(FixedModule):
    """From a number per atom to the energy, the dipole moment or the electronic spatial extent.

    A model holds one as a submodule, calls it at the end of ``predict``, and sets
    ``self.differentiated = readout.prediction``, so that ``forces=True`` gives minus the gradient
    of what it predicts. For the energy it has no tensors.

    Args:
        prediction: ``"energy"``, ``"dipole_moment"`` or ``"electronic_spatial_extent"``.
        masses: for the last two, see :class:`molkern.nn.DipoleMoment`.
        readout: ``"sum"`` over the atoms of a system, or their ``"mean"`` for an energy that does
            not grow with the system (an orbital's, say).

    Raises:
        ValueError: another prediction or readout, or a mean of what is not an energy.
    """

    fixed = frozenset({"prediction", "readout"})

    def __init__(
        self,
        prediction: str = "energy",
        masses: Tensor | Sequence[float] | None = None,
        readout: str = "sum",
    ):
        super().__init__()
        if prediction not in PREDICTIONS:
            allowed = ", ".join(repr(name) for name in PREDICTIONS)
            raise ValueError(f"prediction must be one of {allowed}, got {prediction!r}")
        check_readout(readout)
        if readout == "mean" and prediction != "energy":
            raise ValueError(
                f"readout='mean' is for prediction='energy', got {prediction!r}: use readout='sum'"
            )
        self.prediction, self.readout = prediction, readout
        self.layer: DipoleMoment | ElectronicSpatialExtent | None = None
        if prediction == "dipole_moment":
            self.layer = DipoleMoment(masses)
        elif prediction == "electronic_spatial_extent":
            self.layer = ElectronicSpatialExtent(masses)

    def forward(self, values: Tensor, structure: Structure) -> dict[str, Tensor]:
        """values ``[N]``: energies of the atoms, or their charges.

        Returns:
            ``{"energy": [B]}``, ``{"dipole_moment": [B], "dipole": [B, 3], "charges": [N]}`` (the
            magnitude first) or ``{"electronic_spatial_extent": [B]}``.

        Raises:
            ValueError: a dipole or an extent of a periodic system, which has no centre.
        """
        batch, positions = structure.batch, structure.positions
        if self.layer is None:
            energy = structure.sum_atoms(values)
            return {"energy": energy / structure.counts() if self.readout == "mean" else energy}
        if batch.pbc is not None and not is_recorded(batch.pbc) and bool(batch.pbc.any()):
            system = int(batch.pbc.any(1).nonzero()[0])
            raise ValueError(
                f"system {system} is periodic, where {self.prediction} depends on the choice of "
                "the cell: it is for molecules only"
            )
        if isinstance(self.layer, DipoleMoment):
            vector, magnitude = self.layer(values, batch, positions)
            return {"dipole_moment": magnitude, "dipole": vector, "charges": values}
        return {self.prediction: self.layer(values, batch, positions)}


def check_readout(readout: str) -> None:
    """Refuses, with a ValueError, readouts other than ``"sum"`` and ``"mean"``."""
    if readout not in READOUTS:
        choices = " or ".join(map(repr, READOUTS))
        raise ValueError(f"readout must be {choices}, got {readout!r}")
