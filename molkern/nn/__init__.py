"""Layers: radial bases, filters, convolutions, interaction blocks, heads."""

from .activations import ShiftedSoftplus
from .basis import BesselBasis, CutoffFunction, ExponentialBasis, GaussianBasis
from .dtnn import DTNNInteraction
from .heads import AtomicReference, AtomwiseHead
from .properties import DipoleMoment, ElectronicSpatialExtent
from .schnet import CFConv, FilterNetwork, SchNetInteraction

__all__ = [
    "AtomicReference",
    "AtomwiseHead",
    "BesselBasis",
    "CFConv",
    "CutoffFunction",
    "DTNNInteraction",
    "DipoleMoment",
    "ElectronicSpatialExtent",
    "ExponentialBasis",
    "FilterNetwork",
    "GaussianBasis",
    "SchNetInteraction",
    "ShiftedSoftplus",
]
