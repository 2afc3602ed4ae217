"""SchNet as its peers have it, all with the weights of one of PyTorch Geometric's.

Each is given the graph, which is to its advantage: it is not in the time that is measured. An
energy is a function of positions, ``[N, 3]`` → ``[B]``. SchNetPack and TorchMD-NET (with the
activation, Gaussians and cutoff that make its graph network a SchNet) give features of atoms; the
head behind them is PyTorch Geometric's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from peers import peer, schnetpack
from torch import Tensor, nn

import molkern

Energy = Callable[[Tensor], Tensor]
HIDDEN, FILTERS, INTERACTIONS, FUNCTIONS, CUTOFF = 128, 128, 6, 50, 5.0


def geometric_model() -> nn.Module | None:
    models = peer("torch_geometric.nn.models")
    if models is None:
        return None
    torch.manual_seed(0)
    return models.SchNet(HIDDEN, FILTERS, INTERACTIONS, FUNCTIONS, CUTOFF)


class Graph:
    """Edges and systems of a batch in the form that peers take."""

    def __init__(self, batch: molkern.AtomicBatch, neighbors: molkern.NeighborList):
        self.numbers, self.count = batch.numbers, batch.num_systems
        self.edge_index = neighbors.edge_index
        self.systems = torch.zeros_like(batch.numbers) if batch.batch is None else batch.batch
        self.offsets = torch.zeros(())
        if batch.cell is not None:
            self.offsets = neighbors.shifts.to(batch.cell.dtype) @ batch.cell[0]

    def vectors(self, positions: Tensor) -> Tensor:
        senders, receivers = self.edge_index
        return positions[senders] - positions[receivers] + self.offsets

    def sum_atoms(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.count).index_add(0, self.systems, values)


class GivenGraph(nn.Module):
    """In place of PyTorch Geometric's search."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.graph = graph

    def forward(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.graph.edge_index, self.graph.vectors(positions).norm(dim=1)


def geometric_energy(source: nn.Module, graph: Graph) -> Energy:
    source.interaction_graph = GivenGraph(graph)

    def energy(positions: Tensor) -> Tensor:
        return source(graph.numbers, positions, graph.systems).squeeze(1)

    return energy


def torchmd_energy(source: nn.Module, graph: Graph) -> tuple[Energy, nn.Module] | None:
    network = peer("torchmdnet.models.torchmd_gn")
    if network is None:
        return None
    options = {"rbf_type": "gauss", "trainable_rbf": False, "activation": "ssp"}
    model = network.TorchMD_GN(
        HIDDEN, FILTERS, INTERACTIONS, FUNCTIONS, neighbor_embedding=False, **options
    )
    copy_weights(model, source, [layers_of_geometric(b) for b in model.interactions])
    model = model.to(source.lin1.weight.dtype).train(source.training)
    senders, receivers = graph.edge_index
    pairs = torch.stack([receivers, senders])
    model.distance = Distances(graph, pairs)

    def energy(positions: Tensor) -> Tensor:
        features = model(graph.numbers, positions, graph.systems)[0]
        return graph.sum_atoms(head(source, features))

    return energy, model


class Distances(nn.Module):
    """In place of TorchMD-NET's search."""

    def __init__(self, graph: Graph, pairs: Tensor):
        super().__init__()
        self.graph, self.pairs = graph, pairs

    def forward(
        self, positions: Tensor, batch: Tensor, box: Tensor | None = None
    ) -> tuple[Tensor, Tensor, None]:
        return self.pairs, self.graph.vectors(positions).norm(dim=1), None


def schnetpack_energy(source: nn.Module, graph: Graph) -> tuple[Energy, nn.Module] | None:
    representation = schnetpack()
    if representation is None:
        return None
    layers = peer("schnetpack.nn")
    model = representation.SchNet(
        HIDDEN,
        INTERACTIONS,
        layers.GaussianRBF(FUNCTIONS, CUTOFF),
        layers.CosineCutoff(CUTOFF),
        n_filters=FILTERS,
    )
    found = []
    for block in model.interactions:
        found.append([*block.filter_network, block.in2f, *block.f2out])
    copy_weights(model, source, found)
    model = model.to(source.lin1.weight.dtype).train(source.training)
    names = peer("schnetpack.properties")
    senders, receivers = graph.edge_index
    fixed = {names.Z: graph.numbers, names.idx_i: receivers, names.idx_j: senders}

    def energy(positions: Tensor) -> Tensor:
        out = model({**fixed, names.Rij: graph.vectors(positions)})
        return graph.sum_atoms(head(source, out["scalar_representation"]))

    return energy, model


def head(source: nn.Module, features: Tensor) -> Tensor:
    return source.lin2(source.act(source.lin1(features))).squeeze(1)


def layers_of_geometric(block: nn.Module) -> list[nn.Module]:
    """The dense layers of a block: two of the filters, one before and two after the sum."""
    return [block.mlp[0], block.mlp[2], block.conv.lin1, block.conv.lin2, block.lin]


@torch.no_grad()
def copy_weights(model: nn.Module, source: nn.Module, blocks: list[list[nn.Module]]) -> None:
    model.embedding.weight.copy_(source.embedding.weight)
    for layers, block in zip(blocks, source.interactions, strict=True):
        for target, layer in zip(layers, layers_of_geometric(block), strict=True):
            target.weight.copy_(layer.weight)
            if layer.bias is not None:
                target.bias.copy_(layer.bias)


def energies(source: nn.Module, graph: Graph) -> Iterator[tuple[str, Energy, list[nn.Parameter]]]:
    """Name, energy and parameters of each that is there, those of the embedding first."""
    yield "PyTorch Geometric", geometric_energy(source, graph), list(source.parameters())
    makers = {"SchNetPack": schnetpack_energy, "TorchMD-NET": torchmd_energy}
    for name, make in makers.items():
        found = make(source, graph)
        if found is not None:
            energy, model = found
            heads = [*source.lin1.parameters(), *source.lin2.parameters()]
            yield name, energy, [*model.parameters(), *heads]
