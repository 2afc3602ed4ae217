"""Layers: radial bases, filters, convolutions, interaction blocks, heads."""

from ..ops._standins import Dense, SphericalRadialBasis
from .activations import ShiftedSoftplus
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
]
