"""DTNN and PhysNet in plain torch, edge by edge, with the weights of molkern's models.

Only what the benchmarks run: default variants, PhysNet with electrostatics up to a cutoff. Schütt
et al., Nat. Commun. 8, 13890 (2017); Unke & Meuwly, JCTC 15, 3678 (2019).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from schnet_peers import Energy, Graph
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, layer: Any) -> Tensor:
    return functional.linear(x, layer.weight, layer.bias)


def ssp(x: Tensor) -> Tensor:
    return functional.softplus(x) - math.log(2.0)


def dtnn_energy(model: Any, graph: Graph) -> Energy:
    senders, receivers = graph.edge_index
    centers, widths = (t.float() for t in (model.basis.centers, model.basis.widths))
    first, last = model.head.layers[0], model.head.layers[-1]
    block, reference = model.interaction, model.reference

    def energy(positions: Tensor) -> Tensor:
        d = graph.vectors(positions).norm(dim=1)
        factors = linear(torch.exp(-widths * (d[:, None] - centers) ** 2), model.lin_distance)
        x = functional.embedding(graph.numbers, model.embedding.weight)
        for _ in range(model.num_interactions):
            messages = torch.tanh(linear(linear(x, block.lin_in)[senders] * factors, block.lin_out))
            x = x.index_add(0, receivers, messages)
        y = linear(torch.tanh(linear(x, first)), last).squeeze(1)
        return graph.sum_atoms(y.double() * reference.scale + reference.mean)

    return energy


def physnet_energy(model: Any, graph: Graph) -> Energy:
    senders, receivers = graph.edge_index
    atoms = torch.bincount(graph.systems, minlength=graph.count)

    def energy(positions: Tensor) -> Tensor:
        d = graph.vectors(positions).norm(dim=1)
        basis = physnet_basis(model, d)
        x = functional.embedding(graph.numbers, model.embedding.weight)
        y = torch.zeros(())
        for block, output in zip(model.interactions, model.outputs, strict=True):
            x = physnet_interaction(block, x, basis, senders, receivers)
            y = y + linear(ssp(residuals(output.residuals, x)), output.lin)
        scaled = model.scaling.scale[graph.numbers] * y + model.scaling.shift[graph.numbers]
        charges = scaled[:, 1] - (graph.sum_atoms(scaled[:, 1]) / atoms)[graph.systems]
        charges = charges.to(d.dtype)
        pairs = charges[receivers] * charges[senders] * coulomb(model.electrostatics, d)
        constant = 0.5 * model.electrostatics.coulomb_constant
        long_range = constant * torch.zeros_like(charges).index_add(0, receivers, pairs)
        return graph.sum_atoms(scaled[:, 0] + long_range)

    return energy


def switched(d: Tensor, reach: float) -> Tensor:
    """PhysNet's cutoff function."""
    x = d / reach
    return (1 - 6 * x**5 + 15 * x**4 - 10 * x**3) * (x < 1)


def physnet_basis(model: Any, d: Tensor) -> Tensor:
    centers = functional.softplus(model.basis.raw_centers, threshold=35.0)
    widths = functional.softplus(model.basis.raw_widths, threshold=35.0)
    functions = torch.exp(-widths * (torch.exp(-d)[:, None] - centers) ** 2)
    return functions * switched(d, model.cutoff)[:, None]


def physnet_interaction(
    block: Any, x: Tensor, basis: Tensor, senders: Tensor, receivers: Tensor
) -> Tensor:
    h = ssp(x)
    edges = linear(basis, block.filters) * ssp(linear(h, block.lin_sender))[senders]
    message = ssp(linear(h, block.lin_receiver)).index_add(0, receivers, edges)
    message = ssp(residuals(block.message_residuals, message))
    return residuals(block.atomic_residuals, block.gate * x + linear(message, block.lin_out))


def residuals(blocks: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = x + linear(ssp(linear(ssp(x), block.lin1)), block.lin2)
    return x


def coulomb(layer: Any, d: Tensor) -> Tensor:
    """The kernel of two unit charges, shielded and force-shifted."""
    shielded = (d**2 + layer.shielding**2).sqrt()
    weight = switched(d, layer.switch_range)
    reach = weight * shielded + (1 - weight) * d
    kernel = weight / shielded + (1 - weight) / d + reach / layer.cutoff**2 - 2 / layer.cutoff
    return torch.where(d <= layer.cutoff, kernel, 0.0)
