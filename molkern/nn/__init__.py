"""Layers: radial bases, filters, convolutions, interaction blocks, heads, pair energies."""

from .activations import Dense, ShiftedSoftplus
from .basis import BesselBasis, CutoffFunction, ExponentialBasis, GaussianBasis
from .dimenet import (
    DimeNetEmbedding,
    DimeNetInteraction,
    DimeNetOutput,
    DimeNetPlusPlusInteraction,
    DimeNetPlusPlusOutput,
    DimeNetResidual,
)
from .dispersion import D3Dispersion
from .dtnn import DTNNInteraction
from .electrostatics import ShieldedElectrostatics
from .heads import AtomicReference, AtomwiseHead
from .physnet import (
    ChargeCorrection,
    ElementScaling,
    PhysNetInteraction,
    PhysNetOutput,
    PreActivatedResidual,
)
from .properties import DipoleMoment, ElectronicSpatialExtent
from .schnet import CFConv, FilterNetwork, SchNetInteraction
from .spherical import SphericalRadialBasis, spherical_bessel_zeros
from .splines import SplineFilter, SplineReport, choose_grid, spline_tables

__all__ = [
    "AtomicReference",
    "AtomwiseHead",
    "BesselBasis",
    "CFConv",
    "ChargeCorrection",
    "CutoffFunction",
    "D3Dispersion",
    "DTNNInteraction",
    "Dense",
    "DimeNetEmbedding",
    "DimeNetInteraction",
    "DimeNetOutput",
    "DimeNetPlusPlusInteraction",
    "DimeNetPlusPlusOutput",
    "DimeNetResidual",
    "DipoleMoment",
    "ElectronicSpatialExtent",
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
    "SphericalRadialBasis",
    "SplineFilter",
    "SplineReport",
    "choose_grid",
    "spherical_bessel_zeros",
    "spline_tables",
]
