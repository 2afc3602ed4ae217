"""DimeNet and DimeNet++ beside PyTorch Geometric's, with its weights: energies and forces.

    pytest benchmarks/test_dimenet.py --benchmark-enable

The two are timed in turns, in one thread unless MOLKERN_BENCHMARK_THREADS says otherwise.
PyTorch Geometric is given its graph and triplets; molkern searches neighbors within its time.
`products` is what torch's matrix products alone take for the dense layers, forward and by the
inputs: nobody computes these models faster on the same machine without faster products.
"""

import os

import pytest
import torch
from measure import interleaved, peak_memory
from systems import Structure, molecules, water

import molkern

CUTOFF = 5.0
#: Model, system, how many times as fast is aimed at (of which half is asserted, for machines are
#: busy), and the largest share of the peer's memory.
CASES = {
    "dimenet_32_molecules": ("DimeNet", lambda: molecules(32, largest=True), 8.0, 0.1),
    "dimenetpp_32_molecules": ("DimeNetPlusPlus", lambda: molecules(32, largest=True), 2.5, 0.4),
    "dimenetpp_192_atoms_of_water": ("DimeNetPlusPlus", lambda: water(64), 8.0, 0.2),
}


def peer_of(kind: str) -> torch.nn.Module:
    dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet")
    torch.manual_seed(0)
    sizes = (128, 1, 6, 8, 7, 6) if kind == "DimeNet" else (128, 1, 4, 64, 8, 256, 7, 6)
    return getattr(dimenet, kind)(*sizes, output_initializer="glorot_orthogonal").eval()


def batch_of(system: Structure, dtype: torch.dtype) -> molkern.AtomicBatch:
    return molkern.AtomicBatch(
        torch.tensor(system.numbers),
        torch.tensor(system.positions, dtype=dtype),
        None if system.batch is None else torch.tensor(system.batch),
        None if system.cell is None else torch.tensor(system.cell, dtype=dtype),
    )


def runs_of(peer: torch.nn.Module, system: Structure, dtype: torch.dtype):
    """Energies and forces by either, as functions without arguments."""
    from pyg_dimenet import GivenTriplets, energies

    batch = batch_of(system, dtype)
    model = molkern.interop.from_pyg(peer).eval()
    neighbors = batch.neighbors(CUTOFF)
    graph = GivenTriplets.of(neighbors)

    def theirs():
        positions = batch.positions.detach().requires_grad_()
        vectors = neighbors.vectors(positions, batch.cell)
        energy = energies(peer, batch.numbers, vectors, graph, batch.batch)
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
        return energy.detach().flatten(), -gradient

    def ours():
        out = model(batch, forces=True)
        return out["energy"], out["forces"]

    return theirs, ours, neighbors


def products(kind: str, edges: int, atoms: int):
    """Matrix products of the dense layers, forward and by the inputs, as torch computes them."""
    blocks, per_edge = 6, [(128, 128)] * 9 + [(1024, 128)]
    per_atom = [(128, 128)] * 3
    if kind == "DimeNetPlusPlus":
        blocks, per_edge = 4, [(128, 128)] * 9 + [(128, 64), (64, 128)]
        per_atom = [(128, 256)] + [(256, 256)] * 3
    layers = [(edges, *shape) for shape in per_edge * blocks + [(128, 128)]]
    layers += [(atoms, *shape) for shape in per_atom * (blocks + 1)]
    tensors = {s: (torch.randn(s[0], s[1]), torch.randn(s[2], s[1])) for s in set(layers)}

    def run():
        for shape in layers:
            x, w = tensors[shape]
            (x @ w.T) @ w

    return run


@pytest.mark.parametrize("case", CASES)
def test_energy_and_forces(benchmark, case):
    kind, make, wanted, share = CASES[case]
    system = make()
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("MOLKERN_BENCHMARK_THREADS", "1")))
    peer = peer_of(kind)
    exact = runs_of(peer.double(), system, torch.float64)
    for a, b in zip(exact[0](), exact[1](), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(a.abs().max()))
    theirs, ours, neighbors = runs_of(peer.float(), system, torch.float32)
    product = products(kind, neighbors.num_edges, neighbors.num_atoms)
    for run in (theirs, ours, product):
        run()
    slow, fast, floor = interleaved([theirs, ours, product], rounds=7)
    memory = peak_memory(theirs), peak_memory(ours)
    torch.set_num_threads(before)
    benchmark.group = "energy and forces (see extra_info)"
    benchmark.extra_info.update(
        edges=neighbors.num_edges,
        times_as_fast=round(slow / fast, 2),
        products_of_time=round(floor / fast, 2),
        peak_MB=round(memory[1] / 1e6),
        peer_peak_MB=round(memory[0] / 1e6),
    )
    print(f"\n{case}: {slow * 1e3:.0f} ms -> {fast * 1e3:.0f} ms", benchmark.extra_info)
    assert slow / fast > wanted / 2
    assert memory[1] < share * memory[0]
    benchmark.pedantic(ours, rounds=3)
