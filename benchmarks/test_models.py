"""Models beside their peers with the same weights: energies and forces, and training steps.

    pytest benchmarks/test_models.py --benchmark-enable

float32. SchNet has 128 features and filters, 6 interactions, 50 Gaussians and a cutoff of 5 Å, and
splines for filters; rows say where it has not. Peers are given their graphs, and DimeNet's its
triplets; so are SchNet, PhysNet and DTNN in molkern, while DimeNet searches neighbors within its
time. PhysNet and DTNN have no peer that runs with a current torch: they are compared with the same
equations in plain torch. In training steps nothing is compiled: torch.compile has no derivative of
forces.
"""

import pytest
import torch
from compare import check_goal, compare
from dimenet_products import products
from peers import agree, batch_of, compiled, peer, size
from plain_models import dtnn_energy, physnet_energy
from schnet_peers import CUTOFF, Graph, energies, geometric_model
from systems import aspirin, aspirins, molecules, water

import molkern

#: Of SchNet: the system, how many times as fast as PyTorch Geometric's is aimed at (half of it is
#: asserted: machines are busy), and calls in a turn.
FORCES = {
    "3,000 atoms of water": (lambda: water(size(1000, 27)), 30.0, 1),
    "192 atoms of water": (lambda: water(size(64, 8)), 25.0, 2),
    "64 aspirins": (lambda: aspirins(size(64, 2)), 8.0, 1),
    "one aspirin": (aspirin, 5.0, 20),
}
#: Of DimeNet: the same, and the largest share of the peer's memory.
DIMENET = {
    "DimeNet, 32 molecules": ("DimeNet", lambda: molecules(size(32, 2), largest=True), 8.0, 0.1),
    "DimeNet++, 32 molecules": (
        "DimeNetPlusPlus",
        lambda: molecules(size(32, 2), largest=True),
        2.5,
        0.4,
    ),
    "DimeNet++, 192 atoms of water": ("DimeNetPlusPlus", lambda: water(size(64, 8)), 8.0, 0.2),
}


def physnet():
    """With masks and outputs that are not zero, as they start."""
    model = molkern.models.PhysNet(size(128, 16), cutoff=6.0, lr_cut=6.0)
    for block in model.interactions:
        torch.nn.init.normal_(block.filters.weight, std=0.1)
    for block in model.outputs:
        torch.nn.init.normal_(list(block.parameters())[-1], std=0.1)
    return model


def dtnn():
    return molkern.models.DTNN(zero_start=False, cutoff=6.0)


PLAIN = {"PhysNet": (physnet, physnet_energy), "DTNN": (dtnn, dtnn_energy)}


def forces_by(energy, batch):
    """Energies and forces of a peer, as a function without arguments."""

    def run():
        positions = batch.positions.detach().requires_grad_()
        values = energy(positions)
        (gradient,) = torch.autograd.grad(values.sum(), positions)
        return values.detach(), -gradient

    return run


def forces_of(model, batch, neighbors, filters):
    """The same of one of molkern's."""

    def run():
        model.filters = filters
        out = model(batch, forces=True, neighbors=neighbors)
        return out["energy"].detach(), out["forces"]

    return run


def loss_and_gradient(values, forces, wanted, parameters):
    """The loss, and that of the parameters one gradient, after those of all were taken."""
    for parameter in parameters:
        parameter.grad = None
    loss = values.square().mean() + (forces - wanted).square().mean()
    loss.backward()
    return loss.detach(), parameters[0].grad


def training_by(energy, batch, wanted, parameters):
    """A step on energies and forces of a peer: gradients of all parameters."""

    def run():
        positions = batch.positions.detach().requires_grad_()
        values = energy(positions)
        (gradient,) = torch.autograd.grad(values.sum(), positions, create_graph=True)
        return loss_and_gradient(values, -gradient, wanted, parameters)

    return run


def training_of(model, batch, neighbors, wanted, filters):
    parameters = list(model.parameters())

    def run():
        model.filters = filters
        out = model(batch, forces=True, neighbors=neighbors)
        values = next(iter(out.values())).flatten()
        return loss_and_gradient(values, out["forces"], wanted, parameters)

    return run


def wanted_forces(batch):
    return 0.1 * torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(1))


def sizes(batch, neighbors):
    return {"atoms": batch.num_atoms, "edges": neighbors.num_edges, "systems": batch.num_systems}


def dense_products(atoms: int):
    """Matrix products of SchNet's layers on atoms, forward and by the inputs, as torch has them."""
    x, w = torch.randn(atoms, 128), torch.randn(128, 128)

    def run():
        for _ in range(36):
            x @ w

    return run


def schnet():
    source = geometric_model()
    if source is None:
        pytest.skip("weights come from torch_geometric, which is not installed")
    return source, molkern.interop.from_pyg(source)


@pytest.mark.parametrize("name", FORCES)
def test_schnet(benchmark, one_thread, name):
    make, goal, calls = FORCES[name]
    source, model = schnet()
    source, model, batch = source.eval(), model.eval(), batch_of(make())
    neighbors = batch.neighbors(CUTOFF)
    runs = {
        "molkern": forces_of(model, batch, neighbors, "spline"),
        "molkern, exact filters": forces_of(model, batch, neighbors, "exact"),
    }
    large = batch.num_atoms > 2_000  # seconds a call: not all of them
    for peer_name, energy, _ in energies(source, Graph(batch, neighbors)):
        if not large or peer_name == "PyTorch Geometric":
            runs[peer_name] = forces_by(energy, batch)
        fast = compiled(energy) if peer_name == "PyTorch Geometric" else None
        if fast is not None:
            runs["PyTorch Geometric, compiled"] = forces_by(fast, batch)
    agree(runs, tolerance=[1e-4, 2e-5])
    runs["[products]"] = dense_products(batch.num_atoms)
    case, per = f"{name}, energy and forces", sizes(batch, neighbors)
    options = {"rounds": 3, "warmup": 0} if large else {"calls": calls}
    ratios = compare(benchmark, "SchNet", case, runs, per=per, **options)
    check_goal(benchmark, ratios, "PyTorch Geometric", faster=goal / 2)


def test_schnet_training(benchmark, one_thread):
    source, model = schnet()
    source, model, batch = source.train(), model.train(), batch_of(aspirins(size(64, 2)))
    neighbors, wanted = batch.neighbors(CUTOFF), wanted_forces(batch)
    runs = {
        "molkern": training_of(model, batch, neighbors, wanted, "spline"),
        "molkern, exact filters": training_of(model, batch, neighbors, wanted, "exact"),
    }
    for name, energy, parameters in energies(source, Graph(batch, neighbors)):
        runs[name] = training_by(energy, batch, wanted, parameters)
    agree(runs, tolerance=1e-3)
    case, per = f"{batch.num_systems} aspirins, training step", sizes(batch, neighbors)
    ratios = compare(benchmark, "SchNet", case, runs, per=per)
    check_goal(benchmark, ratios, "PyTorch Geometric", faster=3.0, memory=0.2)


@pytest.mark.parametrize("name", DIMENET)
def test_dimenet(benchmark, one_thread, name):
    kind, make, goal, share = DIMENET[name]
    source, system = dimenet(kind).eval(), make()
    agree(dimenet_runs(source.double(), batch_of(system, torch.float64))[0], tolerance=1e-6)
    batch = batch_of(system)
    runs, neighbors = dimenet_runs(source.float(), batch, others=True)
    agree(runs, tolerance=1e-3)
    runs["[products]"] = products(kind, neighbors.num_edges, neighbors.num_atoms)
    kernel, _, text = name.partition(", ")
    case, per = f"{text}, energy and forces", sizes(batch, neighbors)
    ratios = compare(benchmark, kernel, case, runs, per=per)
    check_goal(benchmark, ratios, "PyTorch Geometric", faster=goal / 2, memory=share)


def dimenet(kind):
    models = peer("torch_geometric.nn.models.dimenet")
    if models is None or peer("pyg_dimenet") is None:
        pytest.skip("weights come from torch_geometric, which is not installed")
    torch.manual_seed(0)
    shape = (128, 1, 6, 8) if kind == "DimeNet" else (128, 1, 4, 64, 8, 256)
    basis = size((7, 6), (3, 2))
    return getattr(models, kind)(*shape, *basis, output_initializer="glorot_orthogonal")


def geometric_dimenet(source, batch):
    """Its energy by positions, and the list that its graph and triplets are of."""
    import pyg_dimenet

    neighbors = batch.neighbors(CUTOFF)
    graph = pyg_dimenet.GivenTriplets.of(neighbors)

    def energy(positions):
        vectors = neighbors.vectors(positions, batch.cell)
        return pyg_dimenet.energies(source, batch.numbers, vectors, graph, batch.batch).flatten()

    return energy, neighbors


def dimenet_runs(source, batch, others=False):
    """Energies and forces by molkern and PyTorch Geometric; ``others``: with splines too.

    Not compiled: torch.compile takes minutes for PyTorch Geometric's closed forms.
    """
    model = molkern.interop.from_pyg(source).eval()
    energy, neighbors = geometric_dimenet(source, batch)
    runs = {"molkern": forces_of(model, batch, None, "exact")}
    if others and batch.cell is not None:
        splined = molkern.interop.from_pyg(source).eval()
        runs["molkern, spline filters"] = forces_of(splined, batch, None, "spline")
    runs["PyTorch Geometric"] = forces_by(energy, batch)
    return runs, neighbors


def test_dimenet_training(benchmark, one_thread):
    source = dimenet("DimeNetPlusPlus").train()
    model = molkern.interop.from_pyg(source).train()
    batch = batch_of(molecules(size(32, 2), largest=True))
    energy, neighbors = geometric_dimenet(source, batch)
    wanted = wanted_forces(batch)
    parameters = [source.emb.emb.weight, *source.parameters()]
    runs = {
        "molkern": training_of(model, batch, neighbors, wanted, "exact"),
        "PyTorch Geometric": training_by(energy, batch, wanted, parameters),
    }
    agree({name: lambda run=run: run()[0] for name, run in runs.items()}, tolerance=1e-3)
    case, per = f"{batch.num_systems} molecules, training step", sizes(batch, neighbors)
    compare(benchmark, "DimeNet++", case, runs, per=per)


@pytest.mark.parametrize("system", ["192 atoms of water", "one aspirin"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain(benchmark, one_thread, name, system):
    make, plain = PLAIN[name]
    torch.manual_seed(0)
    model, (structure, _, calls) = make().eval(), FORCES[system]
    batch = batch_of(structure())
    neighbors = model.neighbors(batch)
    energy = plain(model, Graph(batch, neighbors))
    runs = {
        "molkern": forces_of(model, batch, neighbors, "spline"),
        "molkern, exact filters": forces_of(model, batch, neighbors, "exact"),
        "eager torch": forces_by(energy, batch),
    }
    fast = compiled(energy)
    if fast is not None:
        runs["torch.compile"] = forces_by(fast, batch)
    # Of random weights: float32 alone leaves DTNN's forces with errors of 2e-5 of the largest
    agree(runs, tolerance=[1e-4, 5e-5])
    case, per = f"{system}, energy and forces", sizes(batch, neighbors)
    compare(benchmark, name, case, runs, calls=calls, per=per)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_training(benchmark, one_thread, name):
    make, plain = PLAIN[name]
    torch.manual_seed(0)
    model, batch = make().train(), batch_of(water(size(64, 8)))
    neighbors, wanted = model.neighbors(batch), wanted_forces(batch)
    energy = plain(model, Graph(batch, neighbors))
    runs = {
        "molkern": training_of(model, batch, neighbors, wanted, "spline"),
        "molkern, exact filters": training_of(model, batch, neighbors, wanted, "exact"),
        "eager torch": training_by(energy, batch, wanted, list(model.parameters())),
    }
    agree(runs, tolerance=1e-3)
    case, per = f"{batch.num_atoms} atoms of water, training step", sizes(batch, neighbors)
    compare(benchmark, name, case, runs, per=per)
