"""Layers refuse to change what other parts of them were made with."""

import copy
import pickle

import pytest
import torch

from molkern import nn
from molkern.models.readout import Readout

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


LAYERS = {
    "GaussianBasis": (lambda: nn.GaussianBasis(4, 5.0), ["cutoff", "cutoff_function"]),
    "ExponentialBasis": (lambda: nn.ExponentialBasis(4, 5.0), ["cutoff", "alpha"]),
    "BesselBasis": (lambda: nn.BesselBasis(4, 5.0), ["cutoff", "exponent", "cutoff_function"]),
    "SphericalRadialBasis": (lambda: nn.SphericalRadialBasis(2, 2, 5.0), ["cutoff", "exponent"]),
    "CutoffFunction": (lambda: nn.CutoffFunction("cosine", 5.0), ["cutoff", "name", "exponent"]),
    "FilterNetwork": (lambda: nn.FilterNetwork(4, 8, 5.0), ["cutoff"]),
    "CFConv": (lambda: nn.CFConv(4, 4, 4), ["aggregation"]),
    "ShieldedElectrostatics": (
        lambda: nn.ShieldedElectrostatics(2.5, 5.0),
        ["switch_range", "cutoff", "shielding", "coulomb_constant", "shift_shielded"],
    ),
    "Dense": (lambda: nn.Dense(3, 3, activation="silu"), ["activation"]),
    "ShiftedSoftplus": (lambda: nn.ShiftedSoftplus(), ["threshold", "shift"]),
    "Readout": (lambda: Readout("dipole_moment"), ["prediction", "readout"]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_fixed_attributes(name):
    make, attributes = LAYERS[name]
    layer = make()
    for attribute in attributes:
        value = getattr(layer, attribute)
        setattr(layer, attribute, value)  # no change
        message = rf"{attribute} of {name} is .* cannot be set to 7\.5, .* make a new layer with"
        with pytest.raises(AttributeError, match=message):
            setattr(layer, attribute, 7.5)
        for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)).double()):
            assert getattr(made, attribute) == value
            with pytest.raises(AttributeError, match="cannot be set"):
                setattr(made, attribute, 7.5)


def test_dispersion():
    pytest.importorskip("tad_dftd3")
    layer = nn.D3Dispersion(5.0)
    for attribute in ("cutoff", "switch_start", "bohr", "hartree"):
        with pytest.raises(AttributeError, match=f"{attribute} of D3Dispersion is"):
            setattr(layer, attribute, 2.5)


def test_compiled_layers():
    distances = torch.linspace(0.5, 4.5, 5)
    for make, _ in (LAYERS["GaussianBasis"], LAYERS["CutoffFunction"]):
        layer = make()
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(distances), layer(distances))
