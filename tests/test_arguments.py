"""What is said of arguments of a wrong kind: which one, and how to make it."""

import numpy as np
import pytest
import torch
from reference.small import NAMES, NUMBERS, POSITIONS, molecule, small_model

import molkern
from molkern import AtomicBatch, NeighborList, models, neighbor_list, ops

CELL = 9.0 * torch.eye(3, dtype=torch.float64)
LIST = neighbor_list(POSITIONS, 4.0)
PAIRS = LIST.edge_index
EDGES = LIST.num_edges
X = torch.rand(4, 2)
GRID = ops.SplineGrid(0.0, 4.0, intervals=4)


class Data:
    """A graph in PyTorch Geometric's manner."""

    z, pos, batch, edge_index = NUMBERS, POSITIONS, torch.zeros(4, dtype=torch.int64), PAIRS


CALLS = {
    r"numbers must be a tensor, got list: use torch\.as_tensor\(numbers\)": [
        lambda: AtomicBatch([8, 1], [[0, 0, 0], [1, 0, 0.0]]),
        lambda: AtomicBatch(["O", "H", "H", "C"], POSITIONS),
    ],
    r"positions must be a tensor, got (list|ndarray): use torch\.as_tensor\(positions\)": [
        lambda: AtomicBatch(NUMBERS, POSITIONS.numpy()),
        lambda: neighbor_list(POSITIONS.tolist(), 4.0),
        lambda: neighbor_list(POSITIONS.numpy(), 4.0),
        lambda: LIST.vectors(POSITIONS.tolist()),
        lambda: LIST.distances(POSITIONS.numpy()),
    ],
    "positions must be a tensor, got (AtomicBatch|4.0|None)": [
        lambda: neighbor_list(molecule(), 4.0),
        lambda: neighbor_list(4.0, POSITIONS),
        lambda: AtomicBatch(NUMBERS, None),
        lambda: LIST.vectors(molecule()),
    ],
    r"(batch|cell|shifts) must be a tensor, got list: use torch\.as_tensor": [
        lambda: AtomicBatch(NUMBERS, POSITIONS, [0, 0, 0, 0]),
        lambda: AtomicBatch(NUMBERS, POSITIONS, cell=CELL.tolist()),
        lambda: neighbor_list(POSITIONS, 4.0, CELL.tolist()),
        lambda: neighbor_list(POSITIONS, 4.0, batch=[0, 0, 0, 0]),
        lambda: NeighborList.from_edge_index(PAIRS, 4, [[0, 0, 0]] * EDGES),
        lambda: NeighborList.from_edge_index(PAIRS, 4, batch=[0, 0, 0, 0]),
    ],
    r"edge_index must be a tensor, got (list|ndarray): use torch\.as_tensor": [
        lambda: NeighborList.from_edge_index(PAIRS.tolist(), 4),
        lambda: NeighborList.from_edge_index(PAIRS.numpy(), 4),
    ],
    "(cutoff|num_atoms|num_systems|capacity) must be (a number|an integer), got": [
        lambda: neighbor_list(POSITIONS, "4"),
        lambda: neighbor_list(POSITIONS, None),
        lambda: neighbor_list(POSITIONS, 4j),
        lambda: neighbor_list(POSITIONS, True),
        lambda: neighbor_list(POSITIONS, 4.0, capacity=9.5),
        lambda: neighbor_list(POSITIONS, 4.0, num_systems="1"),
        lambda: NeighborList.from_edge_index(PAIRS, "4"),
        lambda: LIST.within("3", POSITIONS),
        lambda: AtomicBatch(NUMBERS, POSITIONS, num_systems="1"),
        lambda: molecule().neighbors("4"),
    ],
    "pbc must be a tensor or a bool, got the string": [
        lambda: AtomicBatch(NUMBERS, POSITIONS, cell=CELL, pbc="yes"),
        lambda: neighbor_list(POSITIONS, 4.0, CELL, "xyz"),
    ],
    r"AtomicBatch\.to: (dtype must be a torch.dtype|device must be a device)": [
        lambda: molecule().to(dtype="float32"),
        lambda: molecule().to(torch.float32),
    ],
    r"(graph|neighbors) must be a molkern\.NeighborList.*from_edge_index\(edge_index, num": [
        lambda: ops.cfconv(X, torch.rand(EDGES, 2), PAIRS),
        lambda: ops.gather_senders(X, PAIRS),
        lambda: ops.sum_edges(torch.rand(EDGES, 2), PAIRS.tolist()),
        lambda: ops.spline_cfconv(X, torch.rand(GRID.rows, 2), torch.rand(EDGES), PAIRS, GRID),
        lambda: ops.triplet_sum(
            torch.rand(EDGES, 2), torch.rand(EDGES, 2, 1), torch.rand(EDGES, 3), PAIRS
        ),
        lambda: ops.dtnn_message(
            X, torch.rand(GRID.rows, 2), torch.rand(EDGES), torch.rand(3, 2), PAIRS, GRID
        ),
        lambda: molkern.nn.CFConv(2, 3, 2)(X, torch.rand(EDGES, 3), PAIRS),
        lambda: molkern.nn.PhysNetInteraction(2, 3)(X, torch.rand(EDGES, 3), PAIRS),
        lambda: molkern.nn.ShieldedElectrostatics(2.0)(torch.rand(4), torch.rand(EDGES), PAIRS),
    ],
}


@pytest.mark.parametrize(
    ("message", "call"), [(message, call) for message, calls in CALLS.items() for call in calls]
)
def test_functions_and_layers(message, call):
    with pytest.raises(TypeError, match=message):
        call()


def test_batches_of_ase():
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("OH", [[0, 0, 0], [1, 0, 0]])
    for wrong in ("water.xyz", {"numbers": NUMBERS}, [NUMBERS], None, [atoms, "water.xyz"]):
        with pytest.raises(TypeError, match=r"from_ase: atoms must be ase\.Atoms"):
            AtomicBatch.from_ase(wrong)
    for given in (atoms, [atoms], [atoms, atoms]):
        with pytest.raises(TypeError, match=r"batch must be.*AtomicBatch\.from_ase\(atoms\)"):
            small_model("SchNet")(given)


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("name", NAMES)
def test_models(name, filters):
    model, batch = small_model(name, filters=filters), molecule()
    zeros = torch.zeros(4, dtype=torch.int64)
    for given in (
        (NUMBERS, POSITIONS, zeros),
        (NUMBERS, POSITIONS),
        (NUMBERS,),
        ((NUMBERS, POSITIONS),),
        (None,),
    ):
        with pytest.raises(TypeError, match=rf"{name}: .*molkern\.AtomicBatch\(z, pos, batch\)"):
            model(*given)
    with pytest.raises(TypeError, match=r"AtomicBatch\(data\.z, data\.pos, data\.batch\)"):
        model(Data())
    with pytest.raises(TypeError, match=r"got dict: .*AtomicBatch\(numbers, positions"):
        model({"numbers": NUMBERS, "positions": POSITIONS})
    for wrong in ("yes", 1, None, LIST):
        with pytest.raises(TypeError, match="forces must be True or False"):
            model(batch, forces=wrong)
        with pytest.raises(TypeError, match="stress must be True or False"):
            model(batch, stress=wrong)
    with pytest.raises(TypeError, match="pass it by name, neighbors="):
        model(batch, LIST)
    for call in (lambda n: model(batch, neighbors=n), lambda n: model.hessian(batch, n)):
        with pytest.raises(TypeError, match=r"from_edge_index\(edge_index, num_atoms\)"):
            call(PAIRS)
        with pytest.raises(TypeError, match=r"neighbor_list\(positions, cutoff\)"):
            call(4.0)
    with pytest.raises(TypeError, match=r"neighbors: batch must be a molkern\.AtomicBatch"):
        model.neighbors(POSITIONS)


@pytest.mark.parametrize("name", NAMES)
def test_constructors(name):
    make = getattr(models, name)
    for wrong, needed in (("5", "a number"), (None, "a number"), (1j, "a number")):
        with pytest.raises(TypeError, match=rf"{name}: cutoff must be {needed}, got"):
            make(cutoff=wrong)
    for wrong in ("8", 8.0, None, True):
        with pytest.raises(TypeError, match="hidden_channels must be an integer, got"):
            make(wrong)
    with pytest.raises(TypeError, match="spline_tolerance must be a number, got '1e-5'"):
        make(spline_tolerance="1e-5")
    assert make(np.int64(8), cutoff=np.float32(4.0), num_elements=5).cutoff == 4.0


def test_models_and_files():
    model = small_model("SchNet")
    with pytest.raises(TypeError, match="path must be the path of a file, got SchNet"):
        models.load(model)
    with pytest.raises(TypeError, match=r"got the class SchNet: make a model of it, SchNet\("):
        models.LeanSchNet(models.SchNet)
    with pytest.raises(TypeError, match=r"got 'm.safetensors': load it with molkern.models.load"):
        models.LeanSchNet("m.safetensors")


def test_other_errors_stay():
    with pytest.raises(ValueError, match=r"AtomicBatch\(numbers, positions\)"):
        AtomicBatch(POSITIONS, NUMBERS)
    with pytest.raises(ValueError, match="cutoff must be positive"):
        neighbor_list(POSITIONS, -1.0)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        NeighborList.from_edge_index(PAIRS)
    for kind in (torch.float16, torch.int64, torch.bool, torch.complex128):
        with pytest.raises(TypeError, match="positions must be float32 or float64"):
            AtomicBatch(NUMBERS, POSITIONS.to(kind))
        with pytest.raises(TypeError, match="positions must be float32 or float64"):
            neighbor_list(POSITIONS.to(kind), 4.0)
    nowhere = POSITIONS.clone().fill_(torch.nan)
    for cutoff in (np.float32(4.0), np.array(4.0), torch.tensor(4.0), 4):  # all of them numbers
        with pytest.raises(ValueError, match="is NaN or infinite"):
            neighbor_list(nowhere, cutoff)


def test_flags_of_numpy():
    model, batch = small_model("SchNet"), molecule(cell=CELL)
    expected = model(batch, forces=True, stress=True)
    yes = np.bool_(True)
    torch.testing.assert_close(model(batch, forces=yes, stress=yes), expected)
    evaluator = molkern.md.Evaluator(model, batch, forces=yes)
    assert evaluator(stress=yes).keys() == {"energy", "forces", "stress"}


def test_strings_for_several_numbers():
    for call, needed in (
        (lambda: molkern.nn.AtomwiseHead(16, hidden="abc"), "hidden must be integers"),
        (lambda: molkern.nn.AtomicReference(scale="abc"), "scale must be numbers"),
        (lambda: models.DimeNetPlusPlus(8, scale="1"), "scale must be numbers"),
        (lambda: molkern.nn.CFConv(2, 3, 2)(X, "abc", LIST), "filters must be a .* or a tensor"),
    ):
        with pytest.raises(TypeError, match=f"{needed}, got the string"):
            call()


def test_one_line_each():
    batch = molecule(cell=CELL)
    neighbors = batch.neighbors(4.0)
    distances = neighbors.distances(POSITIONS, CELL)
    filters = molkern.nn.SplineFilter(torch.rand(GRID.rows, 2), GRID, distances)
    report = small_model("SchNet").spline_report()
    structure = models.Structure(batch, neighbors, POSITIONS, CELL)
    edges = neighbors.num_edges
    for value, words in (
        (LIST, f"4 atoms, {EDGES} edges, 1 system, cutoff 4, not periodic, torch.int32 on cpu"),
        (neighbors, f"{edges} edges, 1 system, cutoff 4, periodic"),
        (batch.neighbors(4.0, capacity=99), "room for 99 edges"),
        (NeighborList.from_edge_index(PAIRS, 4), "cutoff unknown"),
        (batch, "4 atoms, 1 system, periodic, torch.float64 on cpu"),
        (filters, f"{edges} edges, 2 filters"),
        (report, "tables of degree 5"),
        (structure, "AtomicBatch(4 atoms"),
    ):
        assert words in repr(value)
        assert "\n" not in repr(value)
        assert len(repr(value)) < 300
