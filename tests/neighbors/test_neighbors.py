import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.neighbors import batch_neighbor_list

import molkern
from molkern.ops.neighbors import check_status

EMULATED = molkern.build_info()["cuda_emulation"]  # kernels then take far longer
FIELDS = ["row_ptr", "senders", "receivers", "shifts", "reverse"]


class Case(NamedTuple):
    positions: np.ndarray
    cutoff: float
    counts: list[int]
    cells: np.ndarray | None
    pbcs: np.ndarray | None

    def batch(self):
        return torch.from_numpy(np.repeat(np.arange(len(self.counts)), self.counts))

    def search(self, positions=None, device="cpu", **options):
        x = torch.as_tensor(self.positions if positions is None else positions, device=device)
        cell = None if self.cells is None else torch.as_tensor(self.cells, device=device)
        pbc = None if self.pbcs is None else torch.as_tensor(self.pbcs, device=device)
        options["num_systems"] = len(self.counts)
        return molkern.neighbor_list(x, self.cutoff, cell, pbc, self.batch().to(device), **options)

    def reference(self):
        return batch_neighbor_list(self.positions, self.cutoff, self.counts, self.cells, self.pbcs)


def random_cell(shape, cutoff, rng):
    """A cell [3, 3] that holds not too many images within the cutoff."""
    while True:
        size = rng.uniform(0.3, 3.0) * cutoff
        if shape == "box":
            cell = np.diag(rng.uniform(0.4, 1.5, size=3) * size)
        elif shape == "skewed":
            cell = np.diag(rng.uniform(0.5, 1.0, size=3) * size)
            cell[rng.permutation(3)[0]] += rng.uniform(-4, 4, size=3) @ cell
            cell = cell[rng.permutation(3)]
        else:
            cell = rng.uniform(-1, 1, size=(3, 3)) * size
        if shape == "left-handed" and np.linalg.det(cell) > 0:
            cell = cell[[1, 0, 2]]
        volume = abs(np.linalg.det(cell))
        heights = volume / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
        if volume > 0 and np.prod(2 * cutoff / heights + 1) < 250:
            return cell


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    counts = draw(st.lists(st.integers(0, 10), min_size=1, max_size=3))
    shape = draw(st.sampled_from(["none", "box", "triclinic", "skewed", "left-handed"]))
    outside = draw(st.sampled_from([0, 1, 3]))
    doubled, lattice = draw(st.booleans()), draw(st.booleans())
    cutoff = float(rng.uniform(0.5, 5.0))
    positions, cells, pbcs = [], [], []
    for count in counts:
        cell = random_cell("box" if shape == "none" else shape, cutoff, rng)
        pbc = rng.random(3) < 0.8
        if lattice:  # many pairs at exactly the same distance, some at exactly the cutoff
            fractional = rng.integers(0, 4, size=(count, 3)) / 4
        else:
            fractional = rng.uniform(size=(count, 3))
        fractional += rng.integers(-outside, outside + 1, size=(count, 3))
        x = fractional @ cell
        if doubled and count > 1:
            x[-1] = x[0]
        cell[~pbc] *= rng.integers(0, 2)
        positions.append(x)
        cells.append(cell.astype(dtype))
        pbcs.append(pbc)
    x = np.concatenate(positions).astype(dtype)
    if lattice and counts[0] > 1:
        cutoff = float(np.linalg.norm(x[0].astype(float) - x[1])) or cutoff
        cutoff = min(cutoff, 5.0)
    if shape == "none":
        return Case(x, cutoff, counts, None, None)
    return Case(x, cutoff, counts, np.stack(cells), np.stack(pbcs))


def edges_of(found):
    shifts = found.shifts if found.shifts is not None else found.senders.new_zeros(1, 3)
    shifts = shifts.expand(len(found.senders), 3)
    columns = [found.receivers[:, None], found.senders[:, None], shifts]
    return torch.cat(columns, 1).cpu().numpy()


def same_bits(a, b):
    return all(
        getattr(a, f) is getattr(b, f) or torch.equal(getattr(a, f), getattr(b, f)) for f in FIELDS
    )


def check_structure(found):
    edges = edges_of(found)
    order = np.lexsort(edges.T[::-1])
    assert np.array_equal(order, np.arange(len(edges))), "not sorted"
    reverse = found.reverse.cpu().numpy()
    mirrored = np.column_stack([edges[:, 1], edges[:, 0], -edges[:, 2:]])
    assert np.array_equal(edges[reverse], mirrored)
    counts = np.bincount(edges[:, 0], minlength=found.num_atoms)
    assert np.array_equal(np.diff(found.row_ptr.cpu().numpy()), counts)
    assert found.row_ptr[0] == 0


@settings(max_examples=settings.default.max_examples * (1 if EMULATED else 10))
@given(cases())
def test_equals_brute_force(device, case):
    found = case.search(device=device)
    assert np.array_equal(edges_of(found), case.reference())
    check_structure(found)
    for algorithm in ("direct", "cell_list"):
        assert same_bits(found, case.search(device=device, algorithm=algorithm))


def triclinic_system(dtype, count=None, seed=0):
    count = count or (150 if EMULATED else 2500)
    rng = np.random.default_rng(seed)
    cell = np.array([[14.0, 0.3, -0.2], [-9.0, 15.0, 0.4], [4.0, -5.0, 13.0]])
    positions = (rng.uniform(-0.5, 1.5, size=(count, 3)) @ cell).astype(dtype)
    return Case(positions, 3.1, [count], cell[None].astype(dtype), np.array([[True, True, False]]))


def batch_of_systems(dtype):
    counts = [30, 0, 1, 70, 90] if EMULATED else [300, 0, 1, 700, 900]
    parts = [triclinic_system(dtype, count, seed) for seed, count in enumerate(counts)]
    return Case(
        np.concatenate([p.positions for p in parts]),
        3.1,
        [len(p.positions) for p in parts],
        np.concatenate([p.cells for p in parts]),
        np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 1, 1]], bool),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [triclinic_system, batch_of_systems])
def test_same_bits_for_every_algorithm_and_thread_count(make, dtype, threads, device):
    case = make(dtype)
    threads(1)
    expected = case.search(device=device, algorithm="direct")
    check_structure(expected)
    for count in (1, 2, 3, 4):
        threads(count)
        for algorithm in ("direct", "cell_list"):
            assert same_bits(expected, case.search(device=device, algorithm=algorithm))


def test_cell_list_equals_kd_tree(device):
    spatial = pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(0)
    count = 400 if EMULATED else 4000
    x = rng.uniform(size=(count, 3)) * [40.0, 20.0, 0.5]
    x[: count // 3] *= 0.2  # unevenly filled bins
    found = molkern.neighbor_list(torch.tensor(x, device=device), 1.7, algorithm="cell_list")
    pairs = spatial.cKDTree(x).query_pairs(1.7, output_type="ndarray")
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    expected = pairs[np.lexsort([pairs[:, 1], pairs[:, 0]])]
    assert np.array_equal(edges_of(found)[:, :2], expected)


@pytest.mark.parametrize("algorithm", ["direct", "cell_list"])
def test_shifts_follow_the_positions_as_given(algorithm, device):
    # Everything is a small multiple of 2^-10, so moving by whole cells is exact.
    rng = np.random.default_rng(0)
    cell = np.array([[4.0, 0.5, 0.0], [-1.5, 3.0, 0.25], [1.0, -0.75, 5.0]])
    x = np.round(rng.uniform(-8, 8, size=(60, 3)) * 1024) / 1024
    moves = rng.integers(-9, 10, size=(60, 3))
    moves[:, 1] = 0
    pbc = np.array([[True, False, True]])
    case = Case(x, 3.0, [60], cell[None], pbc)
    before = case.search(device=device, algorithm=algorithm)
    after = case.search(x + moves @ cell, device=device, algorithm=algorithm)
    edges = edges_of(before)
    edges[:, 2:] += moves[edges[:, 0]] - moves[edges[:, 1]]
    edges = edges[np.lexsort(edges.T[::-1])]
    assert np.array_equal(edges_of(after), edges)
    check_structure(after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("skew", [3, 20] if EMULATED else [3, 40, 100])
def test_cell_does_not_matter_only_the_lattice(skew, dtype, device):
    # Rows that span the cubic lattice Z^3; with the largest skew pairs need words of 64 bits.
    cell = torch.tensor([[1, 0, 0], [skew, 1, 0], [skew, skew, 1]], dtype=dtype, device=device)
    x = torch.round(torch.rand(100, 3, dtype=dtype, device=device) * 4096) / 4096
    cubic = edges_of(molkern.neighbor_list(x, 1.1, torch.eye(3, dtype=dtype, device=device)))
    found = molkern.neighbor_list(x, 1.1, cell)
    check_structure(found)
    skewed = edges_of(found)
    skewed[:, 2:] = skewed[:, 2:] @ cell.cpu().int().numpy()
    assert np.array_equal(skewed[np.lexsort(skewed.T[::-1])], cubic)


def test_one_atom_in_a_small_cell(device):
    cell = torch.eye(3, device=device) * 2.5
    x = torch.tensor([[100.0, -40.0, 3.0]], device=device)
    found = molkern.neighbor_list(x, 10.0, cell)
    grid = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = (grid**2).sum(1) * 2.5**2 < 100
    assert np.array_equal(found.shifts.cpu().numpy(), grid[inside & grid.any(1)])
    check_structure(found)


def test_cutoff_is_exclusive_and_distance_zero_is_an_edge(device):
    x = torch.tensor([[0.0, 0, 0], [0, 0, 0], [2, 0, 0]], device=device)
    assert molkern.neighbor_list(x, 2.0).edge_index.tolist() == [[1, 0], [0, 1]]
    just_more = float(np.nextafter(2.0, 3.0))
    assert molkern.neighbor_list(x, just_more).num_edges == 6


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_find(count, periodic, device):
    x = torch.zeros(count, 3, device=device)
    cell = torch.eye(3, device=device) * 20 if periodic else None
    found = molkern.neighbor_list(x, 5.0, cell)
    assert found.row_ptr.tolist() == [0] * (count + 1)
    assert found.num_edges == 0
    assert (found.shifts is not None) == periodic
    none = molkern.neighbor_list(
        x[:0], 5.0, batch=torch.zeros(0, dtype=torch.long, device=device), num_systems=0
    )
    assert none.num_edges == 0


def test_far_apart_and_huge_cutoffs(device):
    x = torch.tensor([[0.0, 0, 0], [1e14, 0, 0], [1, 0, 0]], device=device, dtype=torch.float64)
    assert molkern.neighbor_list(x, 1.5).edge_index.tolist() == [[2, 0], [0, 2]]
    for cutoff in (1e15, 1e30, 1e200):
        for algorithm in ("direct", "cell_list"):
            assert molkern.neighbor_list(x, cutoff, algorithm=algorithm).num_edges == 6


def test_inputs_of_other_layouts_and_types(device):
    case = batch_of_systems(np.float32)
    expected = case.search(device=device)
    x = torch.tensor(case.positions, device=device).T.contiguous().T.requires_grad_()
    cell = torch.tensor(case.cells, device=device).transpose(0, 1).contiguous().transpose(0, 1)
    pbc = torch.tensor(case.pbcs, device=device)
    found = molkern.neighbor_list(x, 3.1, cell, pbc, case.batch().int().to(device))
    assert same_bits(expected, found)
    assert torch.equal(found.system, case.batch().int().to(device))
    one = triclinic_system(np.float32, 50)
    x, cell = torch.tensor(one.positions, device=device), torch.tensor(one.cells[0], device=device)
    expected = one.search(device=device)
    for pbc in ([True, True, False], torch.tensor([True, True, False], device=device)):
        assert same_bits(expected, molkern.neighbor_list(x, 3.1, cell, pbc))
    everywhere = molkern.neighbor_list(x, 3.1, cell)
    assert same_bits(everywhere, molkern.neighbor_list(x, 3.1, cell, True))
    assert molkern.neighbor_list(x, 3.1, cell, False).num_edges < everywhere.num_edges


def test_capacity_pads(device):
    case = triclinic_system(np.float32, 60)
    exact = case.search(device=device)
    count = exact.num_edges
    for room in (0, 1, 37):
        padded = case.search(device=device, capacity=count + room)
        padded.check()
        assert padded.num_edges == count
        assert padded.padded
        for field in FIELDS[1:]:
            values, filler = getattr(padded, field), 0 if field == "shifts" else -1
            assert torch.equal(values[:count], getattr(exact, field))
            assert values[count:].eq(filler).all()


def test_capacity_exceeded(device):
    case = triclinic_system(np.float32, 60)
    needed = case.search(device=device).num_edges

    def search():
        found = case.search(device=device, capacity=needed - 1)
        assert found.row_ptr.eq(0).all()  # nothing reads rows that were not written
        found.check()

    message = f"capacity {needed - 1} is too small: {needed} edges .* capacity={needed} or more"
    with pytest.raises(ValueError, match=message):
        search()


def test_errors_with_a_capacity(device):
    x = torch.tensor([[0.0, 0, 0], [0, float("inf"), 0]], device=device)

    def search(*arguments, **options):
        molkern.neighbor_list(*arguments, capacity=10, **options).check()

    with pytest.raises(ValueError, match="atom 1 is NaN or infinite"):
        search(x, 1.0)
    with pytest.raises(ValueError, match="batch must not decrease"):
        search(x[:1].expand(2, 3), 1.0, batch=torch.tensor([1, 0], device=device), num_systems=2)


def too_many(kind):
    """Positions, cutoff, cell, pbc and batch of a search with more than 2^31 edges."""
    x = torch.rand(50, 3) * torch.tensor([1.0, 1.0, 2.0])
    if kind == "crystal":
        return x, 200.0, torch.eye(3), True, None
    if kind == "slab":
        return x, 1000.0, torch.eye(3), [True, True, False], None
    if kind == "wire":
        return torch.rand(30_000, 3), 10.0, torch.eye(3), [False, True, False], None
    if kind == "cluster":
        return torch.rand(46_342, 3), 2.0, None, None, None
    batch = torch.arange(10).repeat_interleave(15_000)
    return torch.rand(150_000, 3), 2.0, None, None, batch


@pytest.mark.parametrize("kind", ["crystal", "slab", "wire", "cluster", "batch"])
def test_too_many_edges_end_soon(kind, device):
    if kind == "batch" and (EMULATED or device.type == "cuda"):
        pytest.skip("there only systems are refused, one by one")
    given = [t.to(device) if isinstance(t, torch.Tensor) else t for t in too_many(kind)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"more than 2\^31 - 1 edges; lower the cutoff or split"):
        molkern.neighbor_list(*given)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 1e8


CELL = torch.eye(3) * 4
X = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.5, 0.25], [2.0, 3.0, 1.0]])
nan, inf = float("nan"), float("inf")


def at(index, value):
    x = X.clone()
    x[index] = torch.tensor(value)
    return x


WRONG = {
    "nan position": (dict(positions=at(1, [0.0, nan, 0.0])), r"\(0, nan, 0\) of atom 1 is NaN"),
    "infinite position": (dict(positions=at(2, [0.0, 0.0, -inf])), r"\(0, 0, -inf\) of atom 2"),
    "nan before cell": (dict(positions=at(1, [nan] * 3), cell=CELL * 0), "atom 1 is NaN"),
    "nan cell": (dict(cell=CELL * nan), "cell of system 0 is NaN or infinite"),
    "zero cell": (dict(cell=CELL * 0), "cell of system 0 is singular: a volume of 0"),
    "thin cell": (
        dict(cell=torch.tensor([[2, 0, 1e-9], [0, 3, 0], [4, 0, 0]])),
        "cell of system 0 is singular: a volume of 1.2e-08",
    ),
    "flat cell": (dict(cell=CELL[[0, 1, 1]]), "cell of system 0 is singular"),
    "second cell": (
        dict(cell=torch.stack([CELL, CELL * 0]), batch=torch.tensor([0, 1, 1])),
        "cell of system 1 is singular",
    ),
    "cutoff zero": (dict(cutoff=0.0), "cutoff must be positive and finite, got 0"),
    "cutoff negative": (dict(cutoff=-2.5), "cutoff must be positive and finite, got -2.5"),
    "cutoff nan": (dict(cutoff=nan), "cutoff must be positive and finite, got nan"),
    "cutoff infinite": (dict(cutoff=inf), "cutoff must be positive and finite, got inf"),
    "positions shape": (dict(positions=X[:, :2]), r"positions must have size 3 .*\[3, 2\]"),
    "positions flat": (dict(positions=X.flatten()), r"positions must have 2 dimension.*\[9\]"),
    "cell shape": (dict(cell=CELL[:2]), r"cell must have shape \[3, 3\] or \[1, 3, 3\].*\[2, 3\]"),
    "pbc shape": (dict(cell=CELL, pbc=torch.tensor([True, True])), r"pbc must have shape .*\[2\]"),
    "pbc without cell": (dict(pbc=torch.tensor([True] * 3)), "pbc is given but there is no cell"),
    "batch decreases": (dict(batch=torch.tensor([0, 1, 0])), r"batch\[2\] is 0 after 1"),
    "batch negative": (dict(batch=torch.tensor([-1, 0, 0])), r"batch\[0\] is -1"),
    "batch beyond": (
        dict(batch=torch.tensor([0, 1, 2]), num_systems=2),
        r"in \[0, 2\), but batch\[2\] is 2",
    ),
    "batch length": (dict(batch=torch.tensor([0, 0])), r"batch must have shape \[3\].*\[2\]"),
    "batch missing": (dict(num_systems=2), "num_systems is 2 but batch is missing"),
    "capacity": (dict(capacity=-1), "capacity must be between 0 and 2\\^31 - 1, got -1"),
    "algorithm": (dict(algorithm="fast"), "algorithm must be one of auto, direct, cell_list"),
    "too far": (dict(positions=at(1, [5e6, 0.0, 0.0]), cell=CELL), r"atom 1 at \(5e\+06, 0, 0\)"),
    "too many images": (dict(cell=CELL * 1e-5), "cutoff reaches over more than"),
}
WRONG_TYPE = {
    "positions type": (dict(positions=X.long()), "positions must be float32 or float64, got Long"),
    "cell type": (dict(cell=CELL.double()), "cell is Double but positions is Float"),
    "pbc type": (dict(cell=CELL, pbc=torch.ones(3)), "pbc must be bool, got Float"),
    "batch type": (dict(batch=torch.zeros(3)), "batch must be int64 or int32, got Float"),
}


def search_wrong(arguments, device):
    given = {"positions": X, "cutoff": 2.0} | arguments
    given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    molkern.neighbor_list(**given)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values(name, device):
    arguments, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        search_wrong(arguments, device)


@pytest.mark.parametrize("name", WRONG_TYPE)
def test_wrong_types(name, device):
    arguments, message = WRONG_TYPE[name]
    with pytest.raises(TypeError, match=message):
        search_wrong(arguments, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
@pytest.mark.parametrize("name", ["cell", "pbc", "batch"])
def test_mixed_devices(name):
    here = {"positions": X, "cutoff": 2.0, "cell": CELL, "batch": torch.zeros(3, dtype=torch.long)}
    here["pbc"] = torch.tensor([True] * 3)
    here = {k: v.cuda() if k not in (name, "cutoff") else v for k, v in here.items()}
    with pytest.raises(ValueError, match="is on cpu but positions is on cuda"):
        molkern.neighbor_list(**here)


def test_status_of_the_wrong_type():
    with pytest.raises(ValueError, match="status must be int64"):
        check_status(torch.zeros(2), 3)


@pytest.mark.parametrize("capacity", [None, 300])
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_opcheck(index, capacity, periodic, device):
    x = torch.rand(12, 3, device=device) * 4
    cell = torch.eye(3, device=device).expand(2, 3, 3) * 4 if periodic else None
    pbc = torch.ones(2, 3, dtype=torch.bool, device=device) if periodic else None
    batch = torch.arange(2, dtype=index, device=device).repeat_interleave(6)
    torch.library.opcheck(
        torch.ops.molkern.neighbor_list, (x, cell, pbc, batch, 1.5, 2, capacity, 0)
    )
    status = torch.zeros(2, dtype=torch.long, device=device)
    torch.library.opcheck(torch.ops.molkern.check_neighbor_status, (status, 5))


def digest_of_searches():
    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        for case in (triclinic_system(dtype), batch_of_systems(dtype)):
            found = case.search()
            for field in FIELDS:
                digest.update(getattr(found, field).numpy().tobytes())
    return digest.hexdigest()


# Only these: another folder on the path may have a module called neighbors too.
FOLDERS = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
DIGEST = f"""
import molkern
from neighbors import test_neighbors
test_neighbors.EMULATED = {EMULATED}  # this build may be the ordinary one: cases of the same size
found = test_neighbors.digest_of_searches()
print(molkern.build_info()["cpu_instruction_set_in_use"], found)
"""


def test_same_bits_for_every_instruction_set():
    """And, where this process runs the emulated CUDA kernels, for those."""
    sets = ["baseline"]
    if molkern.build_info()["cpu_instruction_set_in_use"] == "avx512":
        sets.append("avx2")
    seen = {digest_of_searches()}
    for isa in sets:
        run = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"MOLKERN_ISA": isa, "PYTHONPATH": os.pathsep.join(FOLDERS)},
            capture_output=True,
            text=True,
            check=True,
        )
        name, digest = run.stdout.split()
        assert name == isa
        seen.add(digest)
    assert len(seen) == 1
