"""By what OpenMM-ML finds molkern: the entry point of the group ``openmmml.potentials``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .openmmml import MolkernPotential


class MolkernPotentialFactory:
    """What ``openmmml.MLPotential("molkern", ...)`` is made by.

    OpenMM-ML loads and calls it while it is being imported itself, perhaps by the module that
    defines the potential. So nothing is imported here before a potential is wanted, and there is
    no base class: OpenMM-ML asks for this method alone.
    """

    def createImpl(self, name: str, **args: Any) -> MolkernPotential:
        """The potential; arguments as of :class:`molkern.md.MolkernPotential`."""
        from .openmmml import MolkernPotential

        return MolkernPotential(**args)
