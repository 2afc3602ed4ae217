"""Layers: radial bases, filters, convolutions, interaction blocks, heads, pair energies."""

from .activations import ShiftedSoftplus
from .basis import BesselBasis, CutoffFunction, ExponentialBasis, GaussianBasis
from .dispersion import D3Dispersion
from .electrostatics import ShieldedElectrostatics
from .heads import AtomicReference, AtomwiseHead
from .physnet import (
    ChargeCorrection,
    ElementScaling,
    PhysNetInteraction,
    PhysNetOutput,
    PreActivatedResidual,
)
from .schnet import CFConv, FilterNetwork, SchNetInteraction

__all__ = [
    "AtomicReference",
    "AtomwiseHead",
    "BesselBasis",
    "CFConv",
    "ChargeCorrection",
    "CutoffFunction",
    "D3Dispersion",
    "ElementScaling",
    "ExponentialBasis",
    "FilterNetwork",
    "GaussianBasis",
    "PhysNetInteraction",
    "PhysNetOutput",
    "PreActivatedResidual",
    "SchNetInteraction",
    "ShieldedElectrostatics",
    "ShiftedSoftplus",
]
