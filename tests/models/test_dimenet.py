import itertools
import json

import pytest
import torch

import molkern
from molkern import AtomicBatch, NeighborList
from molkern.models import DimeNet, DimeNetPlusPlus, load

KINDS = [DimeNet, DimeNetPlusPlus]
SIZES = {"hidden_channels": 10, "num_blocks": 2, "num_spherical": 4, "num_radial": 3}
OWN_SIZES = {
    DimeNet: {"num_bilinear": 3},
    DimeNetPlusPlus: {"int_emb_size": 6, "basis_emb_size": 4, "out_emb_size": 12},
}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def small(kind, **options):
    defaults = {**SIZES, **OWN_SIZES[kind], "cutoff": 3.0, "output_init": "glorot_orthogonal"}
    model = kind(**{**defaults, **options}).double()
    with torch.no_grad():  # biases start at zero, where they hide mistakes
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
    return model


def molecules():
    """Two molecules and a lone atom in the middle, float64."""
    positions = torch.tensor(
        [
            [[0.0, 0.0, 0.0], [0.96, 0.1, 0.0], [-0.3, 0.93, 0.2], [5.0, 5.0, 5.0]],
            [[0.1, 0.0, 0.3], [1.2, 0.1, 0.0], [1.9, 1.1, 0.1], [0.0, 1.3, -0.4]],
        ],
        dtype=torch.float64,
    ).reshape(8, 3)
    numbers = torch.tensor([8, 1, 1, 2, 6, 7, 8, 1])
    return AtomicBatch(numbers, positions, torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]))


@pytest.fixture
def primitive():
    """Two atoms in a triclinic cell, each of which sees images of its own within 3 Å."""
    cell = torch.tensor([[2.6, 0.2, 0.0], [-0.5, 2.7, 0.3], [0.4, 0.1, 2.9]], dtype=torch.float64)
    positions = torch.tensor([[0.1, 0.2, 0.0], [0.5, 0.4, 0.6]], dtype=torch.float64) @ cell
    return torch.tensor([3, 9]), positions, cell


def rotation():
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return q * torch.linalg.det(q).sign()


def slope_of(function, tensor, index, step=1e-4):
    """The derivative of a number by one entry of a tensor, from four values around it."""
    start, total = float(tensor.detach().view(-1)[index]), 0.0
    with torch.no_grad():
        for place, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            tensor.view(-1)[index] = start + place * step
            with torch.enable_grad():
                value = function()
            total += weight * float(value.detach())
        tensor.view(-1)[index] = start
    return total / (12 * step)


@pytest.mark.parametrize(("kind", "count"), [(DimeNet, 2_100_070), (DimeNetPlusPlus, 1_885_830)])
def test_parameter_count(kind, count):
    assert sum(p.numel() for p in kind().parameters()) == count


def test_a_new_model_predicts_zero(kind):
    model = small(kind, output_init="zeros")
    out = model(molecules(), forces=True)
    assert not out["energy"].any()
    assert not out["forces"].any()
    assert small(kind)(molecules())["energy"][0] != 0


@pytest.mark.parametrize("angle", ["kji", "plusplus", "at_i"])
def test_invariances(kind, crystal, angle):
    model = small(kind, angle=angle)
    numbers, positions, cell = crystal
    out = model(AtomicBatch(numbers, positions, cell=cell), forces=True)
    turn = rotation()
    order = torch.randperm(10)
    images = torch.randint(-2, 3, (10, 3)).double() @ cell
    cases = {
        "rotation": (numbers, positions @ turn, cell @ turn, lambda f: f @ turn),
        "mirror": (numbers, -positions, -cell, lambda f: -f),
        "translation": (numbers, positions + torch.tensor([3.0, -1.0, 0.5]), cell, lambda f: f),
        "permutation": (numbers[order], positions[order], cell, lambda f: f[order]),
        "images": (numbers, positions + images, cell, lambda f: f),
    }
    scale = out["forces"].abs().max()
    assert scale > 1e-3
    for name, (z, x, c, move) in cases.items():
        other = model(AtomicBatch(z, x, cell=c), forces=True)
        torch.testing.assert_close(
            other["energy"], out["energy"], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: n + m
        )
        assert (other["forces"] - move(out["forces"])).abs().max() < 1e-10 * scale, name


def test_angles_are_three_models(kind, crystal):
    numbers, positions, cell = crystal
    batch = AtomicBatch(numbers, positions, cell=cell)
    model = small(kind)
    energies = []
    for angle in ("kji", "plusplus", "at_i"):
        other = small(kind, angle=angle)
        other.load_state_dict(model.state_dict())
        energies.append(float(other(batch)["energy"].detach()))
    for first, second in itertools.combinations(energies, 2):
        assert abs(first - second) > 1e-4 * abs(first)
    default = {DimeNet: "at_i", DimeNetPlusPlus: "plusplus"}
    assert model.config["angle"] == default[kind]


def test_supercell_is_extensive(kind, primitive):
    model = small(kind)
    numbers, positions, cell = primitive
    shifts = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(1)).double()
    repeated = (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    large = cell * torch.tensor([[3.0], [2.0], [1.0]])
    batch = AtomicBatch(numbers, positions, cell=cell)
    senders, receivers = batch.neighbors(model.cutoff).edge_index
    assert (senders == receivers).sum() >= 6
    out = model(batch, forces=True, stress=True)
    more = model(AtomicBatch(numbers.repeat(6), repeated, cell=large), forces=True, stress=True)
    torch.testing.assert_close(more["energy"], 6 * out["energy"], rtol=1e-12, atol=0)
    torch.testing.assert_close(more["forces"], out["forces"].repeat(6, 1), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(more["stress"], out["stress"], rtol=1e-9, atol=1e-11)
    mean = small(kind, readout="mean")
    mean.load_state_dict(model.state_dict())
    intensive = mean(AtomicBatch(numbers.repeat(6), repeated, cell=large))["energy"]
    torch.testing.assert_close(intensive.detach(), out["energy"].detach() / 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"num_targets": 3, "readout": "mean"}])
def test_forces_and_stress_are_derivatives(kind, crystal, options):
    model = small(kind, **options)
    numbers, positions, cell = crystal
    out = model(AtomicBatch(numbers, positions, cell=cell), forces=True, stress=True)
    forces, stress = out["forces"].detach(), out["stress"][0].detach()
    step = 1e-5

    def slope(move):
        values = []
        for sign in (1, -1):
            batch = AtomicBatch(numbers, *move(sign * step)[:1], cell=move(sign * step)[1])
            values.append(float(model(batch)["property"].detach().sum()))
        return (values[0] - values[1]) / (2 * step)

    for atom, axis in [(0, 0), (4, 1), (9, 2)]:
        unit = torch.zeros_like(positions)
        unit[atom, axis] = 1.0
        expected = -slope(lambda h, unit=unit: (positions + h * unit, cell))
        assert float(forces[atom, axis]) == pytest.approx(expected, rel=1e-6, abs=1e-7)
    volume = float(torch.linalg.det(cell).abs())
    identity = torch.eye(3, dtype=torch.float64)
    for a, b in [(0, 0), (1, 2)]:
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[a, b] += 0.5
        strain[b, a] += 0.5
        expected = slope(
            lambda h, s=strain: (positions @ (identity + h * s), cell @ (identity + h * s))
        )
        assert float(stress[a, b]) == pytest.approx(expected / volume, rel=1e-6, abs=1e-7)


def test_batch_equals_systems_one_by_one(kind, crystal):
    model = small(kind)
    numbers, positions, cell = crystal
    cells = torch.stack([cell, 1.2 * cell, 0.9 * cell])
    parts = [(numbers[:3], positions[:3]), (numbers[3:3], positions[3:3]), (numbers, positions)]
    batch = AtomicBatch(
        torch.cat([z for z, _ in parts]),
        torch.cat([x for _, x in parts]),
        torch.tensor([0] * 3 + [2] * 10),
        cells,
        torch.tensor([[True, False, True], [True, True, True], [False, True, True]]),
    )
    out = model(batch, forces=True, stress=True)
    start = 0
    for index, (z, x) in enumerate(parts):
        single = AtomicBatch(z, x, cell=cells[index], pbc=batch.pbc[index])
        alone = model(single, forces=True, stress=True)
        torch.testing.assert_close(out["property"][index : index + 1], alone["property"])
        torch.testing.assert_close(out["forces"][start : start + len(z)], alone["forces"])
        torch.testing.assert_close(out["stress"][index : index + 1], alone["stress"])
        start += len(z)


@pytest.mark.parametrize("atoms", [0, 1, 2])
def test_lone_atoms(kind, atoms):
    """Without edges there is nothing but the output blocks' biases."""
    model = small(kind)
    positions = 100.0 * torch.arange(3.0 * atoms, dtype=torch.float64).reshape(atoms, 3)
    out = model(AtomicBatch(torch.ones(atoms, dtype=torch.int64), positions), forces=True)
    alone = model(AtomicBatch(torch.tensor([8]), torch.zeros(1, 3, dtype=torch.float64)))
    torch.testing.assert_close(out["energy"], atoms * alone["energy"])
    assert out["forces"].shape == (atoms, 3)
    assert not out["forces"].any()


def test_several_targets_and_mean_pooling(kind):
    model, mean = (small(kind, num_targets=3, readout=name) for name in ("sum", "mean"))
    mean.load_state_dict(model.state_dict())
    batch = molecules()
    out, pooled = (m(batch, forces=True) for m in (model, mean))
    assert set(out) == {"property", "forces"}
    assert out["property"].shape == (3, 3)
    counts = torch.tensor([[3.0], [1.0], [4.0]], dtype=torch.float64)
    torch.testing.assert_close(pooled["property"], out["property"] / counts)
    torch.testing.assert_close(pooled["forces"], out["forces"] / counts[[0, 0, 0, 1, 2, 2, 2, 2]])
    # Each target is a model of its own, whose forces add up
    summed = torch.zeros(8, 3, dtype=torch.float64)
    for target in range(3):
        state = dict(model.state_dict())
        for block in range(3):
            name = f"outputs.{block}.lin.weight"
            state[name] = state[name][target : target + 1]
        single = small(kind)
        single.load_state_dict(state)
        one = single(batch, forces=True)
        torch.testing.assert_close(one["energy"], one["property"][:, 0])
        torch.testing.assert_close(one["energy"], out["property"][:, target])
        summed += one["forces"].detach()
    torch.testing.assert_close(out["forces"], summed)


def test_readouts_of_each_target(kind):
    names = ("mean", "sum", "mean")
    batch = molecules()
    models = [small(kind, num_targets=3, readout=name) for name in (names, "sum", "mean")]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    mixed, total, mean = (model(batch, forces=True) for model in models)
    assert models[0].config["readout"] == list(names)
    expected = torch.stack([mean["property"][:, 0], total["property"][:, 1]], 1)
    torch.testing.assert_close(mixed["property"][:, :2], expected)
    torch.testing.assert_close(mixed["property"][:, 2], mean["property"][:, 2])
    check_forces(models[0], batch, mixed)


def check_forces(model, batch, out):
    moving = batch.positions.clone().requires_grad_()
    property_ = model(AtomicBatch(batch.numbers, moving, batch.batch))["property"]
    (gradient,) = torch.autograd.grad(property_.sum(), moving)
    torch.testing.assert_close(out["forces"], -gradient)
    assert gradient.abs().max() > 1e-6


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("readout", ["sum", "mean"])
def test_scale_mean_and_reference(kind, targets, readout, tmp_path):
    """Of each atom, in float64: values far larger than float32 can resolve differences of."""
    scale, mean = torch.rand(targets).double() + 0.5, 1e5 * torch.rand(targets).double()
    reference = 1e6 * torch.rand(20, targets, dtype=torch.float64)
    options = {"num_targets": targets, "readout": readout, "num_elements": 20}
    plain = small(kind, **options).float()
    given = {"scale": scale, "mean": mean, "reference": reference}
    if targets == 1:  # plain numbers
        given = {"scale": float(scale), "mean": float(mean), "reference": reference[:, 0]}
    model = small(kind, **options, **given).float()
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = molecules().to(dtype=torch.float32)
    shifts = (
        (mean + reference)[batch.numbers, :] if targets > 1 else mean + reference[batch.numbers]
    )
    shift = torch.zeros(batch.num_systems, targets, dtype=torch.float64)
    shift.index_add_(0, batch.batch, shifts)
    if readout == "mean":
        shift /= batch.batch.bincount().unsqueeze(1)
    out, bare = model(batch, forces=True), plain(batch)["property"]
    torch.testing.assert_close(out["property"], scale * bare + shift, rtol=1e-14, atol=1e-8)
    check_forces(model, batch, out)
    model.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.config == model.config == json.loads(json.dumps(model.config))
    assert torch.equal(loaded(batch)["property"], out["property"])
    assert loaded.double().float().reference.reference.dtype == torch.float64


def test_gradients_of_scaled_targets(kind):
    options = {"scale": [2.0, 0.5], "mean": [1.0, 0.0], "readout": ["sum", "mean"]}
    model, batch = small(kind, num_targets=2, **options), molecules()

    def properties(positions):
        return model(AtomicBatch(batch.numbers, positions, batch.batch))["property"]

    moving = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(properties, moving, atol=1e-5)
    model.train()
    model(batch, forces=True)["forces"].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_files_from_before_there_were_scales(kind, tmp_path):
    """Their configuration and tensors know nothing of them."""
    model, batch = small(kind, num_targets=2), molecules()
    neutral = small(kind, num_targets=2, scale=[1, 1], mean=[0, 0.0])
    assert neutral.state_dict().keys() == model.state_dict().keys()
    assert not any("reference" in key or "averaged" in key for key in model.state_dict())
    out = model(batch)["property"]
    for name in ("scale", "mean", "reference"):
        del model._config[name]
    model.save(tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors")(batch)["property"], out)


def test_properties_are_sums_in_float64(kind):
    model = small(kind).float()
    positions = 100.0 * torch.arange(3.0 * 1000).reshape(1000, 3)
    numbers = torch.ones(1000, dtype=torch.int64)
    out = model(AtomicBatch(numbers, positions))
    alone = model(AtomicBatch(numbers, positions, torch.arange(1000)))["energy"]
    assert out["property"].dtype == torch.float64
    torch.testing.assert_close(out["energy"], alone.sum(0, keepdim=True), rtol=1e-13, atol=0)


def test_longer_neighbor_list_changes_nothing(kind, crystal):
    numbers, positions, cell = crystal
    batch = AtomicBatch(numbers, positions, cell=cell)
    for angle in ("kji", "at_i"):
        model = small(kind, angle=angle)
        out = model(batch, forces=True, stress=True)
        for neighbors in (
            batch.neighbors(4.1),
            batch.neighbors(3.0, capacity=1500),
            batch.neighbors(4.1, capacity=3000),
        ):
            other = model(batch, forces=True, stress=True, neighbors=neighbors)
            torch.testing.assert_close(out["energy"], other["energy"], rtol=1e-13, atol=0)
            for name in ("forces", "stress"):
                scale = float(out[name].detach().abs().max())
                torch.testing.assert_close(out[name], other[name], rtol=1e-11, atol=1e-12 * scale)


def test_edges_beyond_the_cutoff_contribute_nothing(kind):
    """Not even a rounding error: an atom out of reach of the others may be anything."""
    model = small(kind)
    batch = molecules()
    far = torch.tensor([[4.5, 0.0, 0.0]], dtype=torch.float64)
    values = []
    for number, move in ((1, 0.0), (7, 0.7)):
        numbers = torch.cat([batch.numbers[:3], torch.tensor([number])])
        positions = torch.cat([batch.positions[:3], far + move])
        moved = AtomicBatch(numbers, positions)
        neighbors = moved.neighbors(9.0)
        assert neighbors.num_edges == 12
        values.append(model(moved, forces=True, neighbors=neighbors)["forces"].detach())
    assert torch.equal(values[0][:3], values[1][:3])
    assert not values[0][3].any()


def test_graph_of_ones_own(kind, crystal):
    """Given in any order, and with one direction of a pair alone."""
    numbers, positions, cell = crystal
    model = small(kind)
    batch = AtomicBatch(numbers, positions, cell=cell)
    made = batch.neighbors(3.0)
    order = torch.randperm(made.num_edges)
    given = NeighborList.from_edge_index(made.edge_index[:, order], 10, made.shifts[order])
    expected = model(batch, forces=True)
    out = model(batch, forces=True, neighbors=given)
    torch.testing.assert_close(out["energy"], expected["energy"])
    torch.testing.assert_close(out["forces"], expected["forces"])
    directed = NeighborList.from_edge_index(made.edge_index[:, 5:], 10, made.shifts[5:])
    assert directed.reverse is None
    other = model(batch, forces=True, neighbors=directed)
    assert other["energy"] != out["energy"]
    assert other["forces"].isfinite().all()


LINES = {
    "HCN": ([1, 6, 7], [0.0, 1.07, 2.22]),
    "CO2": ([8, 6, 8], [0.0, 1.16, 2.32]),
    "C2H2": ([1, 6, 6, 1], [0.0, 1.06, 2.27, 3.33]),
    "C5": ([6] * 5, [0.0, 1.28, 2.56, 3.84, 5.12]),
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("tilted", [False, True])
def test_force_training_on_collinear_molecules(kind, line, tilted):
    """Angles of 0 and π, where second derivatives through an arc tangent are not finite."""
    numbers, places = LINES[line]
    direction = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if tilted:
        direction = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64) / 5.49**0.5
    positions = torch.tensor(places, dtype=torch.float64).unsqueeze(1) * direction
    positions.requires_grad_()
    model = small(kind, cutoff=3.5).train()
    wanted = torch.randn(len(places), 3, dtype=torch.float64)

    def loss():
        forces = model(AtomicBatch(torch.tensor(numbers), positions), forces=True)["forces"]
        return (forces - wanted).square().sum()

    loss().backward()
    tensors = [positions, *model.parameters()]
    assert all(t.grad is None or t.grad.isfinite().all() for t in tensors)
    chosen = [
        (positions, 2),
        (positions, 3),  # across a molecule that lies along z
        *(
            (tensor, int(tensor.grad.abs().argmax()))
            for tensor in (
                model.embedding.emb.weight,
                model.interactions[0].lin_kj.weight,
                model.interactions[1].lin_rbf.weight
                if kind is DimeNet
                else model.interactions[1].lin_sbf1.weight,
                model.outputs[1].lins[0].weight,
                model.basis.frequencies,
            )
        ),
    ]
    for tensor, index in chosen:
        slope = slope_of(loss, tensor, index)
        assert float(tensor.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.unemulated
def test_training_on_forces_and_stress(kind, crystal):
    numbers, positions, cell = crystal
    model = small(kind).train()
    batch = AtomicBatch(numbers, positions, cell=cell)

    def loss():
        out = model(batch, forces=True, stress=True)
        return out["forces"].square().mean() + out["stress"].square().sum() + out["energy"].sum()

    loss().backward()
    for name, parameter in list(model.named_parameters())[::3]:
        index = int(parameter.grad.abs().argmax())
        slope = slope_of(loss, parameter, index)
        assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-6), name


def test_evaluation_keeps_no_graph(kind):
    model = small(kind).eval()
    batch = molecules()
    out = model(batch, forces=True)
    assert not any(value.requires_grad for value in out.values())
    with torch.no_grad():
        again = model(batch, forces=True)
    assert all(torch.equal(out[name], again[name]) for name in out)


def test_forces_without_training_keep_less(kind, crystal):
    """And are the same: what is left out is what weights and second derivatives need."""
    numbers, positions, cell = crystal
    model = small(kind, hidden_channels=32)

    def kept(training):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        model.train(training)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(AtomicBatch(numbers, positions, cell=cell), forces=True, stress=True)
        return out, sum(storages.values())

    (trained, all_of_it), (plain, part) = kept(True), kept(False)
    assert part < 0.6 * all_of_it
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(plain[name], trained[name].detach(), rtol=1e-12, atol=1e-12)


def test_results_are_the_same_bits_on_every_run(kind, crystal):
    numbers, positions, cell = crystal
    model = small(kind).float().train()
    batch = AtomicBatch(numbers, positions, cell=cell).to(dtype=torch.float32)
    results = []
    for _ in range(2):
        out = model(batch, forces=True)
        loss = out["energy"].sum() + out["forces"].square().sum()
        gradients = torch.autograd.grad(loss, model.embedding.parameters())
        results.append([out["energy"], out["forces"], *gradients])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


@pytest.mark.unemulated
def test_compiled_model_gives_the_same(kind, crystal):
    numbers, positions, cell = crystal
    model = small(kind, num_blocks=1).eval()
    batch = AtomicBatch(numbers, positions, cell=cell)
    neighbors = batch.neighbors(model.cutoff)
    out = model(batch, forces=True, neighbors=neighbors)
    # Traced as for any backend; the default one would spend half a minute in a C++ compiler
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    # Energies compiled, forces by differentiating the compiled function
    batch.positions.requires_grad_()
    energy = compiled(batch, neighbors=neighbors)["energy"]
    (gradient,) = torch.autograd.grad(energy.sum(), batch.positions)
    batch.positions.requires_grad_(False)
    torch.testing.assert_close(energy, out["energy"])
    torch.testing.assert_close(-gradient, out["forces"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", ["float32", "float64"])
def test_saved_model_is_the_same(kind, tmp_path, dtype, zeros):
    options = {"zeros_dtype": zeros, "num_targets": 2, "readout": "mean", "angle": "kji"}
    model = small(kind, **options).to(dtype)
    batch = molecules().to(dtype=dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load(path)
    assert type(loaded) is kind
    assert loaded.config == model.config
    assert json.loads(json.dumps(model.config)) == model.config
    assert not loaded.training
    assert torch.equal(loaded(batch)["property"], model(batch)["property"])


def test_zeros_stay_in_float64_in_a_model_of_float32(kind):
    spherical = small(kind).float().double().spherical
    assert torch.equal(spherical.zeros, small(kind).spherical.zeros)
    rounded = small(kind, zeros_dtype="float32").spherical.zeros
    assert torch.equal(rounded, spherical.zeros.float().double())
    assert not torch.equal(rounded, spherical.zeros)


def test_ase_calculator(kind):
    ase_build = pytest.importorskip("ase.build")
    atoms = ase_build.bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.05, seed=1)
    model = small(kind, cutoff=4.0).eval()
    atoms.calc = molkern.md.ASECalculator(model)
    batch = AtomicBatch.from_ase(atoms, dtype=torch.float64)
    out = model(batch, forces=True)
    assert atoms.get_potential_energy() == pytest.approx(float(out["energy"]), rel=1e-12)
    torch.testing.assert_close(torch.as_tensor(atoms.get_forces()), out["forces"])


def test_wrong_input(kind):
    model = small(kind, num_elements=9)
    batch = molecules()
    model(batch)
    numbers = batch.numbers.clone()
    numbers[5] = 9
    with pytest.raises(ValueError, match="atom 5 has number 9, but the model's table goes from 0"):
        model(AtomicBatch(numbers, batch.positions, batch.batch))
    with pytest.raises(TypeError, match=r"positions are torch\.float32 but the model is"):
        model(batch.to(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"cutoff 2.0 is shorter than the model's 3.0"):
        model(batch, neighbors=batch.neighbors(2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angle": "at_j"}, "angle must be one of 'kji', 'plusplus', 'at_i', got 'at_j'"),
        ({"readout": "max"}, "readout must be 'sum' or 'mean', got 'max'"),
        ({"zeros_dtype": "float16"}, "zeros_dtype must be 'float64' or 'float32', got 'float16'"),
        ({"output_init": "ones"}, "output_init must be 'zeros' or 'glorot_orthogonal', got 'ones'"),
        ({"activation": "relu"}, "activation must be one of .*got 'relu'"),
        ({"cutoff": 0.0}, "cutoff must be positive and finite, got 0"),
        ({"cutoff": float("nan")}, "cutoff must be positive and finite, got nan"),
        ({"exponent": 0}, "exponent must be at least 1, got 0"),
        ({"hidden_channels": 0}, "hidden_channels must be at least 1, got 0"),
        ({"num_targets": 0}, "num_targets must be at least 1, got 0"),
        ({"num_blocks": -1}, "num_blocks must be at least 1, got -1"),
        ({"num_spherical": 0}, "num_spherical must be at least 1, got 0"),
        ({"num_radial": 0}, "num_radial must be at least 1, got 0"),
        ({"num_elements": 0}, "num_elements must be at least 1, got 0"),
        ({"num_before_skip": -1}, "num_before_skip must be at least 0, got -1"),
        ({"num_output_layers": -1}, "num_output_layers must be at least 0, got -1"),
        ({"readout": ["sum", "mean"]}, "readout has 2 entries, but num_targets is 1"),
        ({"readout": ["max"]}, "readout must be 'sum' or 'mean', got 'max'"),
        ({"num_targets": 2, "scale": [1.0]}, r"scale must be a number or \[2\], got shape \[1\]"),
        ({"mean": [0.0, 1.0]}, r"mean must be a number or \[1\], got shape \[2\]"),
        ({"reference": [0.0, -13.6]}, "reference has 2 energies, but num_elements is 95"),
        (
            {"num_targets": 2, "reference": [0.0] * 95},
            r"reference must have shape \[Z, 2\], got \[95\]",
        ),
    ],
)
def test_wrong_constructor_arguments(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("name", ["int_emb_size", "basis_emb_size", "out_emb_size"])
def test_wrong_sizes_of_dimenet_plus_plus(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        DimeNetPlusPlus(**{name: 0})


def test_wrong_size_of_the_bilinear_layer():
    with pytest.raises(ValueError, match="num_bilinear must be at least 1, got 0"):
        DimeNet(num_bilinear=0)


def test_blocks_without_residual_and_dense_layers(kind):
    options = {"num_before_skip": 0, "num_after_skip": 0, "num_output_layers": 0, "num_blocks": 1}
    model = small(kind, **options, num_spherical=1, num_radial=1)
    out = model(molecules(), forces=True)
    assert out["forces"].abs().max() > 0
