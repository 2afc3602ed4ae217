"""Layers: radial bases, filters, convolutions, interaction blocks, heads."""

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
from .heads import AtomicReference, AtomwiseHead
from .schnet import CFConv, FilterNetwork, SchNetInteraction
from .spherical import SphericalRadialBasis, spherical_bessel_zeros

__all__ = [
    "AtomicReference",
    "AtomwiseHead",
    "BesselBasis",
    "CFConv",
    "CutoffFunction",
    "Dense",
    "DimeNetEmbedding",
    "DimeNetInteraction",
    "DimeNetOutput",
    "DimeNetPlusPlusInteraction",
    "DimeNetPlusPlusOutput",
    "DimeNetResidual",
    "ExponentialBasis",
    "FilterNetwork",
    "GaussianBasis",
    "SchNetInteraction",
    "ShiftedSoftplus",
    "SphericalRadialBasis",
    "spherical_bessel_zeros",
]
