"""The evaluator: the plain model's numbers, lists that are valid, and little memory."""

import copy
import itertools
import pickle
import threading
import weakref
from functools import partial

import pytest
import torch

import molkern
from molkern import AtomicBatch
from molkern.md import Evaluator
from molkern.md.fixed import FixedList
from molkern.md.order import spatial_order
from molkern.md.steps import GraphSteps
from molkern.md.verlet import VerletList
from molkern.models import DTNN, DimeNetPlusPlus, PhysNet, SchNet

MODELS = {
    "SchNet": lambda: SchNet(16, 16, 2, num_basis=10, cutoff=3.0),
    "SchNet, splines": lambda: SchNet(16, 16, 2, num_basis=10, cutoff=3.0, filters="spline"),
    "PhysNet": lambda: PhysNet(16, 8, 2, cutoff=3.0, lr_cut=3.5),
    "DTNN": lambda: DTNN(16, 16, 2, cutoff=3.0, zero_start=False),
    "DimeNet++": lambda: DimeNetPlusPlus(
        16, 2, 8, 4, 8, 7, 6, cutoff=3.0, output_init="glorot_orthogonal"
    ),
}


def systems(dtype=torch.float32, periodic=True):
    """Two systems of different sizes, one of them sheared."""
    generator = torch.Generator().manual_seed(1)
    cell = torch.tensor(
        [[[5.0, 0, 0], [0.5, 4.5, 0], [0, 0, 6]], [[6.0, 0, 0], [0, 6, 0], [0, 0, 6]]]
    )
    fractions = torch.rand(17, 3, generator=generator)
    owner = torch.tensor([0] * 7 + [1] * 10)
    positions = torch.einsum("na,nab->nb", fractions, cell[owner])
    numbers = torch.randint(1, 9, (17,), generator=generator)
    cell = cell.to(dtype) if periodic else None
    return AtomicBatch(numbers, positions.to(dtype), owner, cell, num_systems=2)


def same(out, expected):
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(out[name], value), name


def close(out, expected, tolerance=1e-4):
    """Within a share of the largest: atoms at random are close, and their forces large."""
    assert out.keys() == expected.keys()
    for name, value in expected.items():
        error = (out[name] - value).abs().max()
        assert error <= tolerance * value.abs().max(), (name, float(error))


def walk(batch, steps, scale):
    generator = torch.Generator().manual_seed(2)
    positions = batch.positions.clone()
    for _ in range(steps):
        positions += scale * torch.randn(positions.shape, generator=generator).to(positions)
        yield positions


@pytest.mark.parametrize("name", MODELS)
def test_bits_of_the_plain_model(name):
    """With the evaluator's list, whatever the skin; without a skin with any list."""
    model, batch = MODELS[name]().eval(), systems()
    for skin in (0.4, 0.0):
        evaluator = Evaluator(model, batch, stress=True, skin=skin)
        for positions in walk(batch, 6, 0.05):
            out = evaluator(positions)
            moved = AtomicBatch(
                batch.numbers, positions, batch.batch, batch.cell, batch.pbc, batch.num_systems
            )
            neighbors = evaluator.neighbors if skin else None
            same(out, model(moved, forces=True, stress=True, neighbors=neighbors))
        assert evaluator.builds == 6 if skin == 0 else 1 < evaluator.builds < 6


@pytest.mark.unemulated
def test_a_skin_changes_nothing():
    """Edges beyond the cutoff of splines add zeros: the same bits as without a skin.

    On the CPU, where a row is summed in order; CUDA kernels deal the edges of a row to threads.
    """
    model = SchNet(16, 16, 2, num_basis=10, cutoff=3.0, filters="spline")
    batch = systems()
    evaluators = [Evaluator(model, batch, stress=True, skin=skin) for skin in (0.0, 0.6)]
    for positions in walk(batch, 6, 0.05):
        first, second = [e(positions) for e in evaluators]
        same(first, second)


def test_cells_and_stress():
    model, batch = MODELS["SchNet"]().eval(), systems()
    evaluator = Evaluator(model, batch)
    assert "stress" not in evaluator()
    for scale in (1.0, 1.05, 0.98):
        cell = batch.cell * scale
        out = evaluator(None, cell, stress=True)
        changed = AtomicBatch(batch.numbers, batch.positions, batch.batch, cell, num_systems=2)
        neighbors = evaluator.neighbors
        same(out, model(changed, forces=True, stress=True, neighbors=neighbors))
    assert evaluator.builds == 3


def test_conditions_and_energies_alone():
    model, batch = MODELS["PhysNet"]().eval(), systems()
    out = Evaluator(model, batch, forces=False, skin=0.0, total_charge=1.0)()
    same(out, {k: v.detach() for k, v in model(batch, total_charge=1.0).items()})
    assert "forces" not in out
    torch.testing.assert_close(out["charges"].sum(), torch.tensor(2.0, dtype=torch.float64))


def test_positions_of_other_types():
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    single = {k: v.clone() for k, v in evaluator(batch.positions).items()}
    same(evaluator(batch.positions.double()), single)
    evaluator.batch.positions.add_(1.0)
    same(evaluator(batch.positions), single)


def test_positions_of_the_caller_stay():
    batch = systems()
    before = batch.positions.clone()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    evaluator(batch.positions + 1)
    assert torch.equal(batch.positions, before)


def test_the_batch_is_a_copy():
    batch, fresh = systems(), systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch, stress=True)
    before = {name: value.clone() for name, value in evaluator().items()}
    for tensor in (batch.numbers, batch.positions, batch.batch, batch.cell, batch.pbc):
        tensor.zero_()
    evaluator(fresh.positions + 1.0)  # makes another list
    same(evaluator(fresh.positions), before)


def peak(function):
    """Of the memory that is taken meanwhile, bytes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes, initial=0))


def test_memory_of_a_large_system():
    """By atoms and their features, not by edges and features: 100,000 atoms in less than 2 GB."""
    side = 12
    grid = torch.cartesian_prod(*[torch.arange(side)] * 3) * 2.2
    generator = torch.Generator().manual_seed(3)
    positions = grid + 0.3 * torch.rand(side**3, 3, generator=generator)
    cell = 2.2 * side * torch.eye(3)
    batch = AtomicBatch(torch.ones(side**3, dtype=torch.int64), positions, cell=cell)
    evaluator = Evaluator(SchNet(128, 128, 6, 50, cutoff=5.0, filters="spline"), batch)
    evaluator()
    used = peak(evaluator)
    edges = evaluator.neighbors.num_edges
    assert edges > 50 * batch.num_atoms
    assert 0 < used < 15_000 * batch.num_atoms < 0.6 * 4 * 128 * edges


def test_results_are_the_same_tensors():
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    first = evaluator(batch.positions)
    before = {k: v.clone() for k, v in first.items()}
    second = evaluator(batch.positions + 0.1 * torch.rand(17, 3))
    assert all(first[k] is second[k] for k in first)
    assert not torch.equal(before["forces"], first["forces"])


def test_weights_may_change():
    for filters in ("exact", "spline"):
        model = SchNet(16, 16, 2, num_basis=10, cutoff=3.0, filters=filters)
        batch = systems()
        evaluator = Evaluator(model, batch, skin=0.0)
        evaluator()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        same(evaluator(), model(batch, forces=True))
        same(evaluator(), model(batch, forces=True))


def test_under_inference_mode_and_in_threads():
    batch = systems()
    model = MODELS["PhysNet"]()
    with torch.inference_mode():
        evaluator = Evaluator(model, batch)
        out = evaluator(batch.positions)
    evaluators = [Evaluator(model, batch) for _ in range(3)]
    found = [None] * 3

    def run(k):
        for _ in range(5):
            found[k] = evaluators[k](batch.positions)

    workers = [threading.Thread(target=run, args=(k,)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(3):
        same(found[k], out)


def test_tensors_outlive_their_evaluator():
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch, skin=0.0)
    for _ in range(3):
        evaluator()
    neighbors = evaluator.neighbors
    before = neighbors.senders.clone()
    del evaluator
    for _ in range(3):
        other = Evaluator(MODELS["SchNet"](), batch, skin=0.0)
        other()
    assert torch.equal(neighbors.senders, before)


def test_errors():
    model, batch = MODELS["SchNet"](), systems()
    evaluator = Evaluator(model, batch)
    good = {k: v.clone() for k, v in evaluator().items()}
    for value in (float("nan"), float("inf")):
        wrong = batch.positions.clone()
        wrong[3, 1] = value
        with pytest.raises(ValueError, match=r"of atom 3 is NaN or infinite"):
            evaluator(wrong)
    with pytest.raises(ValueError, match="of system 1 is NaN or infinite"):
        evaluator(batch.positions, batch.cell * torch.tensor([1.0, float("nan")]).view(2, 1, 1))
    same(evaluator(batch.positions, batch.cell), good)
    with pytest.raises(ValueError, match=r"positions must have shape \[17, 3\].*got \[16, 3\]"):
        evaluator(batch.positions[1:])
    with pytest.raises(
        ValueError, match=r"cell must have shape \[3, 3\] or \[2, 3, 3\], got \[2\]"
    ):
        evaluator(batch.positions, torch.ones(2))
    open_batch = systems(periodic=False)
    evaluator = Evaluator(model, open_batch)
    with pytest.raises(ValueError, match="no cell: give it one when it is made"):
        evaluator(batch.positions, batch.cell)
    with pytest.raises(ValueError, match="stress needs a cell"):
        evaluator(stress=True)
    with pytest.raises(TypeError, match=r"positions are torch\.float64 but the model is"):
        Evaluator(model, systems(torch.float64))
    with pytest.raises(ValueError, match="atom 2 has number 200"):
        Evaluator(model, AtomicBatch(torch.tensor([1, 1, 200]), torch.rand(3, 3)))
    with pytest.raises(TypeError, match=r"SchNet does not know 'skinn': .* on nothing else"):
        Evaluator(model, batch, skinn=0.3)
    with pytest.raises(TypeError, match=r"PhysNet does not know 'charge': .* on total_charge"):
        MODELS["PhysNet"]()(batch, charge=1)
    with pytest.raises(ValueError, match="capacity must not be negative, got -1"):
        Evaluator(model, batch, capacity=-1)
    with pytest.raises(ValueError, match="skin must not be negative and must be finite, got -1"):
        Evaluator(model, batch, skin=-1)
    with pytest.raises(ValueError, match="graph=True needs a batch on a GPU"):
        Evaluator(model, batch, graph=True)


def test_empty():
    model = MODELS["SchNet"]()
    empty = AtomicBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3))
    for _ in range(3):
        out = Evaluator(model, empty)()
        assert out["energy"].tolist() == [0.0]
        assert out["forces"].shape == (0, 3)


# A list that is valid


def test_list_is_made_again_when_it_must_be():
    batch = AtomicBatch(
        torch.ones(5, dtype=torch.int64), torch.rand(5, 3) * 8, cell=8 * torch.eye(3)
    )
    batch.cell = batch.cell.clone()
    verlet = VerletList(batch, lambda batch: 3.0, 1.0)

    def builds():
        if not verlet.valid():
            verlet.build()
        return verlet.builds

    assert builds() == 1
    batch.positions[2, 0] += 0.49
    assert builds() == 1
    batch.positions[2, 0] += 0.02
    assert builds() == 2
    batch.positions[2, 0] -= 0.4
    assert builds() == 2
    batch.cell *= 1.001
    assert builds() == 3


def test_pairs_that_come_near_are_found():
    positions = torch.tensor([[0.0, 0, 0], [2.8, 0, 0]])
    evaluator = Evaluator(
        SchNet(16, 16, 1, cutoff=2.0), AtomicBatch(torch.tensor([1, 1]), positions), skin=0.5
    )
    assert evaluator()["forces"].abs().max() == 0
    positions[1, 0] = 1.0
    assert evaluator(positions)["forces"].abs().max() > 0


# Steps that are captured, here by functions that are called again


def replayed(model, batch, skin, capacity=None, stress=False):
    fixed = FixedList(batch, model.list_cutoff, skin, capacity)
    captured = []

    def capture(step):
        captured.append(step)
        return step

    def compute(neighbors, stress):
        with torch.no_grad():
            return model.compute(batch, neighbors, True, stress)

    return GraphSteps(fixed, compute, model, capture), fixed, captured


@pytest.mark.parametrize("name", ["SchNet", "SchNet, splines", "PhysNet", "DimeNet++"])
def test_replayed_steps(name):
    """The same numbers with a padded list; captured anew when it has outgrown its capacity."""
    model, batch = MODELS[name]().eval(), systems()
    steps, fixed, captured = replayed(model, batch, 0.4)
    dense = batch.positions.clone()
    for scale in (1.3, 1.28, 1.0, 0.7):
        batch.positions.copy_(dense * scale)
        out = steps(True)
        expected = model(batch, forces=True, stress=True)
        close(out, expected)
    assert fixed.builds == 3  # 1.28 moves no atom by 0.2
    assert fixed.neighbors.padded
    batch.positions.add_(0.05)
    steps(True)
    assert fixed.builds == 3  # 1.28 moves no atom by 0.2
    count = len(captured)
    steps(False)
    assert len(captured) == count + 1
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    expected = model(batch, forces=True)
    close(steps(False), expected)
    assert len(captured) == count + 2
    if name.startswith("SchNet"):
        model.filters = "exact" if model.filters == "spline" else "spline"
        steps(False)
        assert len(captured) == count + 3


def test_splines_last_as_long_as_a_graph_that_reads_them():
    model, batch = MODELS["SchNet, splines"]().eval(), systems()
    steps, _, captured = replayed(model, batch, 0.4)
    steps(False)
    table = weakref.ref(model._splines.made.tables[0])
    # As after some hundred evaluations with gradients by weights
    model._splines._renew(model, complete=False)
    model(batch, forces=True)
    steps(False)
    assert len(captured) == 1
    assert model._splines.made.tables[0] is not table()
    assert table() is not None


def test_steps_with_hooks_are_not_captured():
    """A graph would not run them again; without them it is captured once more."""
    model, batch = MODELS["SchNet, splines"]().eval(), systems()
    steps, _, captured = replayed(model, batch, 0.4)
    steps(False)
    seen = []
    handle = model.interactions[0].lin.register_forward_hook(lambda *_: seen.append(1))
    for count in (1, 2, 3):
        out = steps(False)
        close(out, model(batch, forces=True))
        assert len(seen) >= 2 * count
    assert len(captured) == 1
    handle.remove()
    steps(False)
    assert len(captured) == 2
    model.interactions[0].lin = torch.nn.Linear(*model.interactions[0].lin.weight.shape).to(
        batch.positions.dtype
    )
    close(steps(False), model(batch, forces=True))
    assert len(captured) == 3


def test_what_a_capture_cannot_follow_is_captured_anew():
    """Weights that fused optimizers write, for splines, and switches of a user's own layers."""
    model, batch = MODELS["SchNet, splines"]().eval(), systems()
    steps, _, captured = replayed(model, batch, 0.4)
    steps(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    model(batch)["energy"].sum().backward()
    steps(False)
    assert len(captured) == 1
    optimizer.step()
    optimizer.zero_grad()
    close(steps(False), model(batch, forces=True))
    assert len(captured) == 2

    class Scaled(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head, self.scale, self.calls = head, 1.0, 0

        def forward(self, x):
            self.calls += 1
            return self.scale * self.head(x)

    model.head = Scaled(model.head)
    steps(False)
    steps(False)
    assert len(captured) == 3
    model.head.scale = 2.0
    close(steps(False), model(batch, forces=True))
    assert len(captured) == 4


def test_a_list_that_outgrows_its_capacity(caplog):
    caplog.set_level("INFO", "molkern")
    model, batch = MODELS["SchNet"]().eval(), systems(periodic=False)
    batch.positions.mul_(2.5)
    steps, fixed, captured = replayed(model, batch, 0.4, capacity=3)
    assert fixed.capacity == 3
    out = steps(False)
    close(out, model(batch, forces=True))
    needed = batch.neighbors(3.4).num_edges
    assert needed <= fixed.capacity <= 1.2 * needed + 64
    capacity, generation = fixed.capacity, fixed.generation
    batch.positions.mul_(1.2)
    steps(False)
    assert (fixed.capacity, fixed.generation, len(captured)) == (capacity, generation, 1)
    batch.positions.mul_(0.2)  # many more pairs
    out = steps(False)
    assert fixed.capacity > capacity
    assert f"step done again, capacity {fixed.capacity}" in caplog.text
    assert len(captured) == 2
    close(out, model(batch, forces=True))


@pytest.mark.skipif(
    not molkern.build_info()["cuda_emulation"], reason="the CPU's search refuses overflow at once"
)
def test_lists_within_steps():
    """Without a skin a step makes its list itself, and is repeated where that had no room."""
    model, batch = MODELS["SchNet"]().eval(), systems()
    steps, fixed, captured = replayed(model, batch, 0.0)
    for scale in (1.0, 1.1, 0.5):  # cells too: many more images
        batch.positions.mul_(scale)
        batch.cell.mul_(scale)
        out = steps(False)
        close(out, model(batch, forces=True))
    assert len(captured) == 2
    assert fixed.capacity >= batch.neighbors(3.0).num_edges
    batch.positions[4, 0] = float("nan")
    with pytest.raises(ValueError, match="of atom 4 is NaN or infinite"):
        steps(False)


def test_steps_that_cannot_be_captured():
    model, batch = MODELS["SchNet"]().eval(), systems()
    steps, _, _ = replayed(model, batch, 0.4)

    def fails(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    steps._capture = fails
    with pytest.raises(RuntimeError, match="not permitted"):
        steps(False)
    steps._insist = False
    steps._runs.clear()
    with pytest.warns(UserWarning, match="without a CUDA graph, slower: operation not permitted"):
        out = steps(False)
    close(out, model(batch, forces=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("skin", [0.0, 0.4])
def test_on_a_gpu(name, skin):
    """Captured steps against the plain model on the same GPU."""
    model, batch = MODELS[name]().eval().cuda(), systems().to("cuda")
    evaluator = Evaluator(model, batch, stress=True, skin=skin)
    for positions in walk(batch, 12, 0.03):
        out = evaluator(positions)
        moved = AtomicBatch(
            batch.numbers, positions, batch.batch, batch.cell, batch.pbc, batch.num_systems
        )
        for key, value in model(moved, forces=True, stress=True).items():
            torch.testing.assert_close(out[key], value, rtol=1e-4, atol=1e-4)


# Atoms in another order


def test_spatial_order():
    batch = systems()
    order = spatial_order(batch, 1.5)
    assert torch.equal(order.sort().values, torch.arange(17))
    assert torch.equal(batch.batch[order], batch.batch)
    # The same in any cell of the lattice, and neighbors in space are neighbors in the order
    shift = torch.tensor([[1.0, -2, 3]]) @ batch.cell[0]
    moved = AtomicBatch(batch.numbers, batch.positions.double(), batch.batch, batch.cell.double())
    inside = spatial_order(moved, 1.5)
    moved.positions[:7] += shift.double()
    assert torch.equal(spatial_order(moved, 1.5), inside)
    line = AtomicBatch(torch.ones(64, dtype=torch.int64), torch.zeros(64, 3))
    line.positions[:, 0] = torch.randperm(64)
    order = spatial_order(line, 0.5)
    assert torch.equal(line.positions[order, 0], torch.arange(64.0))


@pytest.mark.parametrize("name", ["SchNet, splines", "PhysNet"])
def test_reordered_atoms(name):
    model, batch = MODELS[name]().double(), systems(torch.float64)
    plain = Evaluator(model, batch, stress=True)
    sorted_ = Evaluator(model, batch, stress=True, reorder=True)
    for positions in walk(batch, 5, 0.05):
        expected = plain(positions)
        out = sorted_(positions)
        assert out.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(out[key], value, rtol=1e-10, atol=1e-10)
    assert not torch.equal(sorted_.batch.positions, plain.batch.positions)
    assert out["forces"] is sorted_(positions)["forces"]


def test_all_that_is_per_atom_comes_back_in_order():
    model, batch = MODELS["PhysNet"]().double(), systems(torch.float64)
    with torch.no_grad():  # outputs start at zero, the same for every atom
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    expected = model(batch, forces=True)
    out = Evaluator(model, batch, reorder=True)()
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value, rtol=1e-8, atol=1e-8)


# Threads and copies


def at_once(function, count=2):
    """Runs a function in threads that start together; results and errors."""
    barrier, found = threading.Barrier(count), [None] * count

    def run(k):
        barrier.wait()
        try:
            found[k] = function(k)
        except RuntimeError as error:
            found[k] = error

    workers = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


def test_two_threads_at_once_are_refused(monkeypatch):
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    within, go_on = threading.Event(), threading.Event()
    plain = Evaluator._take

    def slow(self, *arguments):
        within.set()
        assert go_on.wait(60)
        plain(self, *arguments)

    monkeypatch.setattr(Evaluator, "_take", slow)
    first = threading.Thread(target=evaluator, args=(batch.positions,))
    first.start()
    assert within.wait(60)
    with pytest.raises(RuntimeError, match="need an evaluator each, but another thread is using"):
        evaluator(batch.positions)
    go_on.set()
    first.join()
    evaluator(batch.positions)


@pytest.mark.parametrize("reorder", [False, True])
def test_threads_get_right_results_or_an_error(reorder):
    batch = systems()
    model = MODELS["SchNet, splines"]().eval()
    places = [batch.positions + 0.05 * k for k in range(4)]
    places = [place + 0.3 * torch.rand_like(place) for place in places]
    expected = [Evaluator(model, batch, reorder=reorder)(place)["forces"] for place in places]
    evaluator = Evaluator(model, batch, reorder=reorder)

    refused = []

    def run(k):
        kept = []
        for _ in range(20):
            try:
                kept.append(evaluator(places[k])["forces"])
            except RuntimeError as error:
                refused.append(str(error))
        return kept

    found = at_once(run, 4)
    assert all("another thread" in error for error in refused)
    for k, results in enumerate(found):
        for forces in results:
            torch.testing.assert_close(forces, expected[k], rtol=1e-4, atol=1e-4)


def test_threads_that_take_turns_get_copies():
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    here = evaluator(batch.positions)
    before = {name: value.clone() for name, value in here.items()}
    found = []
    for _ in range(2):
        worker = threading.Thread(target=lambda: found.append(evaluator(batch.positions + 0.2)))
        worker.start()
        worker.join()
        kept = {name: value.clone() for name, value in found[-1].items()}
        evaluator(0.9 * batch.positions)
        same(found[-1], kept)
    same(here, before)


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("name", ["SchNet", "SchNet, splines", "PhysNet"])
def test_copies_and_pickles(name, reorder):
    model, batch = MODELS[name](), systems()
    evaluator = Evaluator(model, batch, stress=True, skin=0.3, reorder=reorder)
    moved = batch.positions + 0.1
    out = {k: v.clone() for k, v in evaluator(moved, 1.01 * batch.cell).items()}
    again = [
        copy.copy(evaluator),
        copy.deepcopy(evaluator),
        pickle.loads(pickle.dumps(evaluator)),
    ]
    assert again[0].model is evaluator.model
    assert again[1].model is not evaluator.model
    for twin in again:
        close(twin(), out, 1e-5)
        twin(batch.positions)
        close(evaluator(), out, 1e-5)


def test_a_model_that_has_moved():
    model, batch = MODELS["SchNet"](), systems()
    evaluator = Evaluator(model, batch)
    evaluator()
    model.double()
    with pytest.raises(RuntimeError, match=r"float32 on cpu, .* now torch.float64.*make a new one"):
        evaluator(batch.positions)
    model.float()
    evaluator(batch.positions)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64, torch.uint8])
def test_numbers_that_are_no_positions(dtype):
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    with pytest.raises(TypeError, match=f"positions must be of a floating type, got {dtype}"):
        evaluator(torch.ones(17, 3).to(dtype))
    with pytest.raises(TypeError, match=f"cell must be of a floating type, got {dtype}"):
        evaluator(None, torch.eye(3).to(dtype))
    with pytest.raises(TypeError, match="positions must be a tensor, got ndarray"):
        evaluator(batch.positions.numpy())
    with pytest.raises(TypeError, match="cell must be a tensor, got list"):
        evaluator(None, [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])


class EverywhereFilters(torch.nn.Linear):
    """Filters of a user's own, which do not vanish beyond the cutoff."""

    def forward(self, basis, *distances):
        return super().forward(basis) + 0.5


@pytest.mark.parametrize("name", ["SchNet", "PhysNet"])
def test_parts_of_atoms_end_at_the_cutoff(name):
    # The list reaches farther by its skin, which own filters do not know
    model, batch = MODELS[name](), systems(torch.float64)
    for block in model.interactions:
        if name == "SchNet":
            block.filter_network = EverywhereFilters(10, 16)
        else:
            block.filters = EverywhereFilters(8, 16)
    if name == "PhysNet":
        for output in model.outputs:  # they start from zero, whatever comes in
            torch.nn.init.ones_(output.lin.weight)
    evaluator = Evaluator(model.double(), batch, skin=1.0)
    out, parts = evaluator(), evaluator.per_atom()
    energies = torch.zeros(2, dtype=torch.float64)
    energies.index_add_(0, batch.batch, parts["atomic_energies"])
    torch.testing.assert_close(energies, out["energy"])


@pytest.mark.parametrize("reorder", [False, True])
@pytest.mark.parametrize("name", ["SchNet, splines", "PhysNet", "DTNN", "DimeNet++"])
def test_parts_of_atoms(name, reorder):
    make = MODELS[name]
    if name == "DimeNet++":  # of one target, an energy
        make = partial(
            DimeNetPlusPlus, 16, 1, 2, 8, 4, 8, 5, 4, cutoff=3.0, output_init="glorot_orthogonal"
        )
    model, batch = make().double(), systems(torch.float64)
    evaluator = Evaluator(model, batch, stress=True, reorder=reorder)
    out, parts = evaluator(), evaluator.per_atom()
    owner = batch.batch
    energies = torch.zeros(2, dtype=torch.float64).index_add(0, owner, parts["atomic_energies"])
    torch.testing.assert_close(energies, out["energy"])
    virials = torch.zeros(2, 3, 3, dtype=torch.float64).index_add(0, owner, parts["virials"])
    volumes = torch.linalg.det(batch.cell).reshape(2, 1, 1)
    torch.testing.assert_close(virials, -volumes * out["stress"], rtol=1e-7, atol=1e-9)
    plain = Evaluator(model, batch, reorder=False)
    plain()
    torch.testing.assert_close(plain.per_atom(), parts, rtol=1e-8, atol=1e-10)


def test_the_dictionary_is_the_callers():
    """What is taken out of results, or put in their place, changes no later ones."""
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    expected = {name: value.clone() for name, value in evaluator(batch.positions).items()}
    out = evaluator(batch.positions)
    del out["forces"]
    out["energy"], out["mine"] = torch.zeros(5), None
    same(evaluator(batch.positions), expected)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_dense_values(kind):
    batch = systems()
    evaluator = Evaluator(MODELS["SchNet"](), batch)
    expected = {name: value.clone() for name, value in evaluator(batch.positions).items()}
    wrong = batch.positions.to_sparse() if kind == "sparse" else batch.positions.to("meta")
    with pytest.raises(TypeError, match="positions must be a dense tensor with values"):
        evaluator(wrong)
    with pytest.raises(TypeError, match="cell must be a dense tensor with values"):
        evaluator(batch.positions, batch.cell.to(wrong.device) if kind == "meta" else wrong)
    same(evaluator(batch.positions), expected)


@pytest.mark.parametrize("reorder", [False, True])
def test_elements_that_a_model_is_no_longer_to_know(reorder):
    """A list of elements that comes later holds for evaluators that are there already."""
    batch = systems()
    model = MODELS["SchNet"]()
    evaluator = Evaluator(model, batch, reorder=reorder)
    evaluator(batch.positions)
    first = int(batch.numbers[0])
    model.elements = sorted(set(range(1, 10)) - {first})
    with pytest.raises(ValueError, match=rf"atom 0 is .* \({first}\), which this SchNet"):
        evaluator(batch.positions)
    with pytest.raises(ValueError, match="does not know"):
        evaluator(batch.positions)
    model.allow_unknown_elements = True
    evaluator(batch.positions)
    model.allow_unknown_elements = False
    with pytest.raises(ValueError, match="does not know"):
        evaluator(batch.positions)
