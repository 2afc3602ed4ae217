"""Models of any options on any atoms: what holds for all of them. `make fuzz` draws new ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molkern import AtomicBatch
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


few = settings(max_examples=settings.default.max_examples // 4)

widths, small = st.integers(1, 9), st.integers(1, 2)
cutoffs = st.sampled_from([1.5, 2.5, 4.0])
activations = st.sampled_from(["ssp", "silu", "tanh"])

MODELS = st.one_of(
    st.builds(
        SchNet,
        widths,
        widths,
        small,
        st.integers(2, 9),
        cutoffs,
        basis=st.sampled_from(["gaussian", "exponential"]),
        cutoff_function=st.sampled_from(["cosine", "physnet"]),
        activation=activations,
        head_hidden=st.lists(widths, max_size=2),
        filter_activation=st.booleans(),
        filter_bias=st.booleans(),
        head_bias=st.booleans(),
        aggregation=st.sampled_from(["sum", "mean"]),
        readout=st.sampled_from(["sum", "mean"]),
    ),
    st.builds(
        PhysNet,
        widths,
        st.integers(2, 9),
        small,
        cutoffs,
        num_residual_atomic=small,
        num_residual_interaction=small,
        num_residual_output=small,
        use_electrostatics=st.booleans(),
        lr_cut=st.sampled_from([2.0, 5.0]),
        activation=activations,
        activated_skip=st.booleans(),
        activated_output=st.booleans(),
    ),
    st.builds(
        DTNN,
        widths,
        widths,
        small,
        st.integers(4, 12),
        cutoffs,
        width=st.just(0.8),
        zero_start=st.just(False),
    ),
    st.builds(
        DimeNet,
        widths,
        num_targets=small,
        num_blocks=small,
        num_bilinear=st.integers(1, 4),
        num_spherical=st.integers(1, 4),
        num_radial=st.integers(1, 4),
        cutoff=cutoffs,
        angle=st.sampled_from(["kji", "plusplus", "at_i"]),
        activation=activations,
        output_init=st.just("glorot_orthogonal"),
    ),
    st.builds(
        DimeNetPlusPlus,
        widths,
        num_blocks=small,
        cutoff=cutoffs,
        output_init=st.just("glorot_orthogonal"),
    ),
)


@st.composite
def systems(draw):
    """Up to six atoms, in a box, in a slanted cell, or in neither; no two on one place."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    count = draw(st.integers(1, 6))
    grid = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3)
    places = grid[torch.randperm(8, generator=generator)[:count]] * 1.4
    positions = places + 0.5 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    numbers = torch.randint(1, 9, (count,), generator=generator)
    shape = draw(st.sampled_from(["none", "box", "slanted"]))
    if shape == "none":
        return numbers, positions, None, None
    cell = 3.1 * torch.eye(3, dtype=torch.float64)
    if shape == "slanted":
        cell[1, 0], cell[2, 1] = -0.7, 0.4
    pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    return numbers, positions, cell, torch.tensor(pbc)


def prepared(model):
    """In float64, with weights that are not zero where models start with zeros."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def evaluate(model, system):
    """What is predicted, ``[1]`` or ``[1, T]``, and forces."""
    numbers, positions, cell, pbc = system
    out = model(AtomicBatch(numbers, positions, cell=cell, pbc=pbc), forces=True)
    return out[model.differentiated], out["forces"]


def rotation():
    q, r = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [-2, 1, 0.5], [0.3, -1, 2]]).double())
    q = q * r.diagonal().sign()
    return q if torch.linalg.det(q) > 0 else -q


def assert_same(a, b, tolerance=1e-8):
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= tolerance * (1 + y.abs().max())


@few
@given(model=MODELS, system=systems())
def test_rotations_translations_and_the_order_of_atoms(model, system):
    model, turn = prepared(model), rotation()
    numbers, positions, cell, pbc = system
    value, forces = evaluate(model, system)
    order = torch.arange(len(numbers) - 1, -1, -1)
    moved = positions[order] @ turn.T + torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    turned = None if cell is None else cell @ turn.T
    again = evaluate(model, (numbers[order], moved, turned, pbc))
    assert_same(again, (value, forces[order] @ turn.T))


@few
@given(model=MODELS, system=systems(), other=systems())
def test_systems_side_by_side_are_as_each_alone(model, system, other):
    model = prepared(model)
    if (system[2] is None) != (other[2] is None):
        other = system
    numbers, positions = (torch.cat(pair) for pair in zip(system[:2], other[:2], strict=True))
    owner = torch.tensor([0] * len(system[0]) + [1] * len(other[0]))
    cells = pbc = None
    if system[2] is not None:
        cells, pbc = (torch.stack(pair) for pair in zip(system[2:], other[2:], strict=True))
    out = model(AtomicBatch(numbers, positions, owner, cells, pbc), forces=True)
    alone = zip(evaluate(model, system), evaluate(model, other), strict=True)
    assert_same((out[model.differentiated], out["forces"]), map(torch.cat, alone), 1e-10)


@few
@given(model=MODELS, system=systems())
def test_forces_are_minus_the_slope_of_the_energy(model, system):
    model = prepared(model)
    numbers, positions, cell, pbc = system
    generator = torch.Generator().manual_seed(2)
    along = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    step = 1e-5
    high, low = (
        evaluate(model, (numbers, positions + side * step * along, cell, pbc))[0].sum()
        for side in (1, -1)
    )
    value, forces = evaluate(model, system)
    scale = 1 + value.abs().max() + forces.abs().max()
    assert abs((high - low) / (2 * step) + (forces * along).sum()) <= 2e-5 * scale


@few
@given(model=MODELS, system=systems())
def test_splines_give_the_same(model, system):
    model = prepared(model)
    expected = evaluate(model, system)
    model.filters = "spline"
    assert_same(evaluate(model, system), expected, 1e-4)
