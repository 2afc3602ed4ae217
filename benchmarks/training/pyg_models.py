"""PyTorch Geometric's models behind the calls of molkern's, so that one trainer trains both.

Everything but the model is the same: data, batches, loss, optimizer, averages, validation. The
models are given molkern's neighbor lists, whose search costs next to nothing (their own needs
pyg-lib, and that of triplets torch-sparse, neither of which has wheels for every torch), and lists
of triplets by a few operations on whole batches. Forces are the gradient that autograd gives.
"""

from __future__ import annotations

import torch
from torch import nn
from torch_geometric.nn import DimeNetPlusPlus, SchNet
from torch_geometric.nn.models import dimenet

import molkern
from molkern.models import Potential
from molkern.ops import segment_sum


def radius_graph(positions, r, batch=None, max_num_neighbors=32):
    """What ``torch_geometric.nn.radius_graph`` gives, of molkern's search."""
    return molkern.neighbor_list(positions.detach(), r, batch=batch).edge_index


def triplets(edge_index, num_nodes):
    """What PyTorch Geometric's function of this name gives, for edges sorted by receiver."""
    senders, receivers = edge_index
    incoming = torch.bincount(receivers, minlength=num_nodes)
    first = incoming.cumsum(0) - incoming
    counts = incoming[senders]
    ji = torch.arange(len(senders)).repeat_interleave(counts)
    within = torch.arange(len(ji)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    kj = first[senders].repeat_interleave(counts) + within
    kept = senders[kj] != receivers[ji]
    ji, kj = ji[kept], kj[kept]
    return receivers, senders, receivers[ji], senders[ji], senders[kj], kj, ji


dimenet.radius_graph = radius_graph
dimenet.triplets = triplets


def interaction_graph(cutoff):
    """Edges and their lengths, as ``torch_geometric.nn.models.schnet.RadiusInteractionGraph``."""

    def graph(positions, batch):
        edges = radius_graph(positions, cutoff, batch)
        return edges, (positions[edges[0]] - positions[edges[1]]).norm(dim=-1)

    return graph


class PyGPotential(nn.Module):
    """A model of PyTorch Geometric that predicts what a :class:`molkern.models.Potential` does.

    Args:
        like: the model of molkern whose sizes, scales and means it takes over.
    """

    conditions: tuple[str, ...] = ()
    filters = "exact"

    def __init__(self, like: Potential):
        super().__init__()
        self.num_elements = like.num_elements
        self.config = like.config
        self.averaged_over_atoms = _means(like)
        self.reference = like.reference
        if type(like).__name__ == "SchNet":
            self.dipole = like.config["prediction"] == "dipole_moment"
            self.output = like.config["prediction"]
            self.network = _schnet(like, self.dipole)
        else:
            self.dipole, self.output = False, "property"
            self.network = _dimenet(like)

    def forward(self, batch, forces=False, stress=False):
        positions = batch.positions
        if forces:
            positions = positions.detach().requires_grad_(True)
        system = batch.batch
        if system is None:
            system = torch.zeros_like(batch.numbers)
        with torch.set_grad_enabled(forces or torch.is_grad_enabled()):
            out = self._predict(batch, positions, system)
            found = {self.output: out}
            if forces:
                (grad,) = torch.autograd.grad(
                    out.sum(), positions, create_graph=self.training and torch.is_grad_enabled()
                )
                found["forces"] = -grad
        return found

    def _predict(self, batch, positions, system):
        total = self.network(batch.numbers, positions, system)
        if self.dipole:
            return total.squeeze(1).double()
        counts = batch.system_ptr.diff().unsqueeze(1)
        total = total.double() / torch.where(self.averaged_over_atoms, counts, 1)
        if self.reference is not None:
            # scale · Σ y + Σ (mean + reference), or the mean over atoms of the same
            zero = torch.zeros(len(batch.numbers), total.shape[1], dtype=total.dtype)
            shift = zero.squeeze(1) if self.output == "energy" else zero
            shift = self.reference(shift, batch.numbers).reshape(len(zero), -1)
            shift = segment_sum(shift, batch.system_ptr)
            shift = shift / torch.where(self.averaged_over_atoms, counts, 1)
            total = total * self.reference.scale + shift
        return total.squeeze(1) if self.output == "energy" else total

    def to_bytes(self) -> bytes:
        """The weights; there is no way back to a model of molkern's."""
        import safetensors.torch

        tensors = {key: value.contiguous().clone() for key, value in self.state_dict().items()}
        return safetensors.torch.save(tensors)


def _means(like: Potential) -> torch.Tensor:
    kinds = like.config["readout"]
    kinds = [kinds] * like.num_targets if isinstance(kinds, str) else kinds
    return torch.tensor([kind == "mean" for kind in kinds])


def _schnet(like: Potential, dipole: bool) -> SchNet:
    config = like.config
    return SchNet(
        hidden_channels=config["hidden_channels"],
        num_filters=config["num_filters"],
        num_interactions=config["num_interactions"],
        num_gaussians=config["num_basis"],
        cutoff=config["cutoff"],
        interaction_graph=interaction_graph(config["cutoff"]),
        dipole=dipole,
    )


def _dimenet(like: Potential) -> DimeNetPlusPlus:
    config = like.config
    return DimeNetPlusPlus(
        hidden_channels=config["hidden_channels"],
        out_channels=config["num_targets"],
        num_blocks=config["num_blocks"],
        int_emb_size=config["int_emb_size"],
        basis_emb_size=config["basis_emb_size"],
        out_emb_channels=config["out_emb_size"],
        num_spherical=config["num_spherical"],
        num_radial=config["num_radial"],
        cutoff=config["cutoff"],
        num_before_skip=config["num_before_skip"],
        num_after_skip=config["num_after_skip"],
        num_output_layers=config["num_output_layers"],
        output_initializer=config["output_init"],
    )
