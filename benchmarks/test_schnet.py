"""Models with spline filters beside exact ones, and SchNet beside PyTorch Geometric's.

    pytest benchmarks/test_schnet.py --benchmark-enable        each case once, with checks
    python benchmarks/test_schnet.py                           the table, to results/splines.json

SchNet has 128 features and filters, 6 interactions, 50 Gaussians and a cutoff of 5 Å, in float32.
Neighbor lists are made beforehand on both sides. Timed in turns on one thread, medians.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from measure import interleaved, peak_memory
from systems import Structure, aspirin, aspirins, water

import molkern

CUTOFF = 5.0
RESULTS = Path(__file__).parent / "results" / "splines.json"


#: System, how many times as fast as the peer is aimed at (half is asserted: machines are busy), and
#: how often each is called in its turn.
FORCES = {
    "3,000 atoms of water": (lambda: water(1000), 30.0, 1),
    "192 atoms of water": (lambda: water(64), 25.0, 5),
    "64 aspirins": (lambda: aspirins(64), 8.0, 2),
    "one aspirin": (aspirin, 5.0, 20),
}


def physnet():
    """With masks and outputs that are not zero, as they start."""
    model = molkern.models.PhysNet(cutoff=6.0, lr_cut=6.0)
    for block in model.interactions:
        torch.nn.init.normal_(block.filters.weight, std=0.1)
    for block in model.outputs:
        torch.nn.init.normal_(list(block.parameters())[-1], std=0.1)
    return model


MODELS = {
    "PhysNet": physnet,
    "DTNN": lambda: molkern.models.DTNN(zero_start=False, cutoff=6.0),
    "DimeNet++": lambda: molkern.models.DimeNetPlusPlus(output_init="glorot_orthogonal"),
}


def batch_of(system: Structure) -> molkern.AtomicBatch:
    return molkern.AtomicBatch(
        torch.tensor(system.numbers),
        torch.tensor(system.positions, dtype=torch.float32),
        None if system.batch is None else torch.tensor(system.batch),
        None if system.cell is None else torch.tensor(system.cell, dtype=torch.float32),
    )


class GivenGraph(torch.nn.Module):
    """In place of PyTorch Geometric's search: edges that are given, lengths by position."""

    def __init__(self, neighbors: molkern.NeighborList, cell: torch.Tensor | None):
        super().__init__()
        self.edge_index = neighbors.edge_index
        self.offsets = 0.0 if cell is None else neighbors.shifts.float() @ cell[0]

    def forward(self, positions, batch):
        senders, receivers = self.edge_index
        vectors = positions[senders] - positions[receivers] + self.offsets
        return self.edge_index, vectors.norm(dim=1)


def peer_and_model():
    geometric = pytest.importorskip("torch_geometric.nn.models")
    torch.manual_seed(0)
    peer = geometric.SchNet(128, 128, 6, 50, CUTOFF).eval()
    model = molkern.interop.from_pyg(peer).eval()
    model.filters = "spline"
    return peer, model


def forces_of(peer, model, batch):
    """Energies and forces by either, as functions without arguments."""
    neighbors = batch.neighbors(CUTOFF)
    peer.interaction_graph = GivenGraph(neighbors, batch.cell)
    owner = torch.zeros_like(batch.numbers) if batch.batch is None else batch.batch

    def theirs():
        positions = batch.positions.detach().requires_grad_()
        energy = peer(batch.numbers, positions, owner)
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return energy.detach().flatten(), -gradient

    def ours():
        out = model(batch, forces=True, neighbors=neighbors)
        return out["energy"], out["forces"]

    return theirs, ours, neighbors


def steps_of(peer, model, batch):
    """A training step on energies and forces by either: gradients of all parameters."""
    _, _, neighbors = forces_of(peer, model, batch)
    owner = batch.batch
    wanted = 0.1 * torch.randn_like(batch.positions)

    def step(energy, forces, parameters):
        for parameter in parameters:
            parameter.grad = None
        (energy.square().mean() + (forces - wanted).square().mean()).backward()

    def their_step():
        positions = batch.positions.detach().requires_grad_()
        energy = peer(batch.numbers, positions, owner)
        (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        step(energy, -gradient, peer.parameters())

    def our_step():
        out = model(batch, forces=True, neighbors=neighbors)
        step(out["energy"], out["forces"], model.parameters())

    return their_step, our_step


def dense_products(atoms: int):
    """Matrix products of SchNet's layers on atoms, forward and by the inputs, as torch has them."""
    x, w = torch.randn(atoms, 128), torch.randn(128, 128)

    def run():
        for _ in range(36):
            x @ w

    return run


@pytest.mark.parametrize("name", FORCES)
def test_forces(benchmark, name):
    make, goal, calls = FORCES[name]
    peer, model = peer_and_model()
    theirs, ours, _ = forces_of(peer, model, batch_of(make()))
    (e, f), (energy, forces) = theirs(), ours()
    assert (forces - f).abs().max() < 2e-5 * f.abs().max()
    torch.testing.assert_close(energy.float(), e, rtol=1e-4, atol=1e-3)
    benchmark(ours)
    slow, fast = interleaved([theirs, ours], 5, calls)
    benchmark.extra_info.update(peer_seconds=slow, times_as_fast=slow / fast, goal=goal)
    assert slow / fast > goal / 2


def test_training_step(benchmark):
    peer, model = peer_and_model()
    theirs, ours = steps_of(peer.train(), model.train(), batch_of(aspirins(64)))
    benchmark(ours)
    slow, fast = interleaved([theirs, ours], 3)
    memory = [peak_memory(step) for step in (theirs, ours)]
    benchmark.extra_info.update(times_as_fast=slow / fast, peer_bytes=memory[0], bytes=memory[1])
    assert slow / fast > 3.0
    assert memory[1] < 0.2 * memory[0]


@pytest.mark.parametrize("name", MODELS)
def test_splines_beside_exact_filters(benchmark, name):
    run = {}
    model = MODELS[name]().eval()
    batch = batch_of(water(64))
    neighbors = model.neighbors(batch)
    for filters in ("exact", "spline"):

        def forces(filters=filters):
            model.filters = filters
            return model(batch, forces=True, neighbors=neighbors)["forces"]

        run[filters] = forces
    exact, splined = run["exact"](), run["spline"]()
    # Of random weights: float32 alone leaves DTNN's forces with errors of 2e-5 of the largest
    assert 0 < (splined - exact).abs().max() <= 5e-5 * exact.abs().max()
    benchmark(run["spline"])
    slow, fast = interleaved(list(run.values()), 3)
    benchmark.extra_info.update(times_as_fast=slow / fast)


def table() -> dict:
    """All figures, the peer's seconds first."""
    torch.set_num_threads(1)
    rows: dict = {"forces": {}, "models": {}, "torch": torch.__version__, "threads": 1}
    for name, (make, goal, calls) in FORCES.items():
        peer, model = peer_and_model()
        batch = batch_of(make())
        theirs, ours, neighbors = forces_of(peer, model, batch)
        for function in (theirs, ours, ours):
            function()
        seconds = interleaved([theirs, ours, dense_products(batch.num_atoms)], 5, calls)
        memory = [peak_memory(function) for function in (theirs, ours)]
        rows["forces"][name] = {
            "atoms": batch.num_atoms,
            "edges": neighbors.num_edges,
            "pyg_s": seconds[0],
            "molkern_s": seconds[1],
            "products_s": seconds[2],
            "times_as_fast": seconds[0] / seconds[1],
            "goal": goal,
            "pyg_bytes": memory[0],
            "molkern_bytes": memory[1],
        }
        print(name, rows["forces"][name], flush=True)
    peer, model = peer_and_model()
    steps = steps_of(peer.train(), model.train(), batch_of(aspirins(64)))
    for step in (*steps, *steps):
        step()
    slow, fast = interleaved(steps, 5)
    memory = [peak_memory(step) for step in steps]
    rows["training step, 64 aspirins"] = {
        "pyg_s": slow,
        "molkern_s": fast,
        "times_as_fast": slow / fast,
        "pyg_bytes": memory[0],
        "molkern_bytes": memory[1],
    }
    print(rows["training step, 64 aspirins"], flush=True)
    for name, make in MODELS.items():
        for system in (water(64), aspirin()):
            model, batch = make().eval(), batch_of(system)
            neighbors = model.neighbors(batch)
            runs = []
            for filters in ("exact", "spline"):

                def forces(filters=filters, model=model, batch=batch, neighbors=neighbors):
                    model.filters = filters
                    return model(batch, forces=True, neighbors=neighbors)

                runs.append(forces)
            for run in (*runs, *runs):
                run()
            slow, fast = interleaved(runs, 7, 1 if batch.num_atoms > 50 else 10)
            memory = [peak_memory(run) for run in runs]
            rows["models"][f"{name}, {batch.num_atoms} atoms"] = {
                "exact_s": slow,
                "spline_s": fast,
                "times_as_fast": slow / fast,
                "exact_bytes": memory[0],
                "spline_bytes": memory[1],
            }
            print(name, batch.num_atoms, slow, fast, slow / fast, memory, flush=True)
    return rows


if __name__ == "__main__":
    found = table()
    if "--dry" not in sys.argv:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
