"""The models of PyTorch Geometric that are trained beside molkern's compute the same."""

import pytest
import torch

pytest.importorskip("torch_geometric")
pytest.importorskip("pydantic")

from pyg_models import PyGPotential

from molkern.data import load_dataset
from molkern.interop import from_pyg
from molkern.models import DimeNetPlusPlus, SchNet

SIZES = dict(
    SchNet=dict(hidden_channels=16, num_filters=16, num_interactions=2, num_basis=8),
    DimeNetPlusPlus=dict(
        hidden_channels=16,
        num_blocks=1,
        int_emb_size=8,
        out_emb_size=8,
        num_targets=2,
        readout=["sum", "mean"],
        output_init="glorot_orthogonal",
    ),
)


def with_its_weights(like, peer):
    """molkern's model with the weights of the peer, the scales and means of the first."""
    converted = from_pyg(peer.network)
    like.load_state_dict({**converted.state_dict(), **_standards(like)}, strict=False)
    return like


def _standards(model):
    return {k: v for k, v in model.state_dict().items() if k.startswith("reference.")}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SchNet, dict(scale=0.5, mean=-2.0, reference=[0.1 * z for z in range(100)])),
        (SchNet, dict(scale=0.5, mean=-2.0, readout="mean")),
        (SchNet, dict(prediction="dipole_moment")),
        (DimeNetPlusPlus, dict(scale=[0.5, 2.0], mean=[-1.0, 3.0])),
    ],
)
def test_the_same_numbers(kind, options):
    torch.manual_seed(0)
    like = kind(cutoff=5.0, **SIZES[kind.__name__], **options).double()
    peer = PyGPotential(like).double()
    model = with_its_weights(like, peer)
    batch = load_dataset(format="ethanol").collate([0, 5, 9], dtype=torch.float64).batch
    forces = "dipole_moment" not in options.values()
    # PyTorch Geometric rounds its Gaussians and zeros of Bessel functions to float32
    found, wanted = peer(batch, forces=forces), model(batch, forces=forces)
    torch.testing.assert_close(found[peer.output], wanted[peer.output], rtol=1e-6, atol=1e-6)
    if forces:
        torch.testing.assert_close(found["forces"], wanted["forces"], rtol=1e-5, atol=1e-6)
