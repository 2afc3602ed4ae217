"""Every public function takes tensors of any layout in memory, and gives the same bits.

CASES has a case for each public name; one that is new fails ``test_every_public_name_is_here``.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import molkern
from molkern import AtomicBatch, NeighborList, models, nn, ops

FLOAT = torch.float64
FEATURES = 6


def strided(t: Tensor) -> Tensor:
    """Every other number of a larger tensor."""
    return torch.stack([t, t.flip(0) if t.numel() else t], -1)[..., 0]


def transposed(t: Tensor) -> Tensor:
    if t.dim() < 2:
        return strided(t)
    return t.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2)


def offset(t: Tensor) -> Tensor:
    """Contiguous, but not aligned to more than one number."""
    return torch.cat([t.flatten()[:1], t.flatten()])[min(1, t.numel()) :].view(t.shape)


def negated(t: Tensor) -> Tensor:
    """A view that torch negates when it is read, as the imaginary part of a conjugate."""
    return torch.complex(t, -t).conj().imag if t.is_floating_point() else strided(t)


def expanded(t: Tensor) -> Tensor:
    """All rows the first one, stride 0."""
    return t[:1].expand_as(t) if t.dim() and t.numel() else t


LAYOUTS = [strided, transposed, offset, negated]


@dataclass
class Case:
    """A public function on some tensors.

    Attributes:
        call: from the tensors to what the function gives.
        inputs: the names of its tensors, among those of ``everything``.
        derivatives: how often the result is differentiated, by all floating tensors.
        constant: those that it is not differentiated by.
        types: the integer types of arguments that have several.
        torch: whether torch's own functions have a part in the result: they round differently
            where numbers lie apart.
    """

    call: Any
    inputs: tuple[str, ...]
    derivatives: int = 2
    constant: tuple[str, ...] = ()
    types: dict[str, list[torch.dtype]] = field(default_factory=dict)
    torch: bool = False


def everything() -> dict[str, Tensor]:
    """Two periodic systems of 4 and 3 atoms, a graph, and features for it."""
    generator = torch.Generator().manual_seed(3)
    rand = partial(torch.rand, generator=generator, dtype=FLOAT)
    cell = torch.eye(3, dtype=FLOAT) * 4 + 0.4 * rand(2, 3, 3)
    batch = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    positions = (rand(7, 1, 3) @ cell[batch]).squeeze(1)
    graph = molkern.neighbor_list(positions, 3.0, cell, None, batch)
    edges = graph.num_edges
    order = torch.randperm(edges, generator=generator)
    return {
        "numbers": torch.tensor([1, 6, 8, 7, 1, 6, 8]),
        "positions": positions,
        "cell": cell,
        "pbc": torch.ones(2, 3, dtype=torch.bool),
        "batch": batch,
        "edge_index": graph.edge_index[:, order],
        "given_shifts": graph.shifts[order],
        "row_ptr": graph.row_ptr,
        "senders": graph.senders,
        "receivers": graph.receivers,
        "shifts": graph.shifts,
        "reverse": graph.reverse,
        "system": graph.system,
        "system_ptr": torch.tensor([0, 4, 7], dtype=torch.int32),
        "one_ptr": torch.tensor([0, 7], dtype=torch.int32),
        "counts": graph.row_ptr.diff() + 1,
        "distances": graph.distances(positions, cell),
        "vectors": graph.vectors(positions, cell),
        "x": rand(7, FEATURES) - 0.5,
        "edge_x": rand(edges, FEATURES) - 0.5,
        "filters": rand(edges, FEATURES) - 0.5,
        "few": rand(2, FEATURES) - 0.5,
        "radial": rand(edges, 3, 2) - 0.5,
        "spherical": rand(edges, 3, 4) - 0.5,
        "basis": rand(edges, 4) - 0.5,
        "centers": rand(4) * 3,
        "widths": rand(4) + 0.5,
        "zeros": torch.tensor([[3.1, 6.3], [4.5, 7.7]], dtype=FLOAT),
        "norms": rand(2, 2) + 0.5,
        "table": rand(ops.SplineGrid(0.0, 3.0, 8).rows, FEATURES) - 0.5,
        "weight": rand(FEATURES, FEATURES) - 0.5,
        "weight2": rand(FEATURES, FEATURES) - 0.5,
        "bias": rand(FEATURES),
        "gate_basis": rand(7, 2),
        "gate_weight": rand(FEATURES, 2) - 0.5,
        "charges": rand(7) - 0.5,
        "total_charge": rand(2) - 0.5,
        "targets": rand(7, 2) - 0.5,
    }


def the_graph(t: dict[str, Tensor]) -> NeighborList:
    names = ("row_ptr", "senders", "receivers", "shifts", "reverse", "system")
    return NeighborList(**{name: t[name] for name in names}, num_systems=2)


GRAPH = ("row_ptr", "senders", "receivers", "shifts", "reverse", "system")
BATCH = ("numbers", "positions", "cell", "pbc", "batch")
GRID = ops.SplineGrid(0.0, 3.0, 8)
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def the_batch(t: dict[str, Tensor]) -> AtomicBatch:
    return AtomicBatch(**{name: t[name] for name in BATCH})


def fields(graph: NeighborList) -> list[Tensor]:
    return [v for name in GRAPH if (v := getattr(graph, name)) is not None]


def from_edge_index(t: dict[str, Tensor]) -> list[Tensor]:
    graph = NeighborList.from_edge_index(t["edge_index"], 7, t["given_shifts"], t["batch"])
    return [*fields(graph), graph.sort_edges(t["distances"])]


def of_list(t: dict[str, Tensor]) -> list[Tensor]:
    """All that a list does with positions and cells."""
    graph = the_graph(t)
    near = graph.within(2.5, t["positions"].detach(), t["cell"].detach())
    return [
        graph.vectors(t["positions"], t["cell"]),
        graph.distances(t["positions"], t["cell"]),
        graph.counts(t["edge_x"][:, 0] > 0),
        *fields(near),
    ]


def of_batch(t: dict[str, Tensor]) -> list[Tensor]:
    batch = the_batch(t)
    found = batch.neighbors(3.0)
    return [batch.numbers, batch.positions, batch.cell, batch.pbc, batch.system_ptr, *fields(found)]


def one_cell(t: dict[str, Tensor]) -> list[Tensor]:
    """One cell for several systems is expanded by the batch itself."""
    batch = AtomicBatch(t["numbers"], t["positions"], t["batch"], t["cell"][0], num_systems=2)
    graph = batch.neighbors(3.0)
    return [graph.distances(batch.positions, batch.cell), graph.vectors(t["positions"], t["cell"])]


def layer(make, *arguments: str):
    """A layer of random weights on tensors, and a graph where one is named."""

    def call(t: dict[str, Tensor]) -> list[Tensor]:
        torch.manual_seed(7)
        module = make().to(FLOAT)
        for p in module.parameters():  # some start at zero
            torch.nn.init.uniform_(p, 0.1, 0.9)
        made = {"graph": the_graph, "atoms": the_batch, "splines": spline_filter}
        result = module(*(made[a](t) if a in made else t[a] for a in arguments))
        return list(result) if isinstance(result, tuple) else [result]

    needed = {"graph": GRAPH, "atoms": BATCH, "splines": ("table", "distances")}
    inputs = [name for a in arguments for name in needed.get(a, (a,))]
    return call, tuple(dict.fromkeys(inputs))


def spline_filter(t: dict[str, Tensor]) -> nn.SplineFilter:
    return nn.SplineFilter(t["table"], GRID, t["distances"])


def tables_of(t: dict[str, Tensor]) -> list[Tensor]:
    return nn.spline_tables(lambda d: [torch.outer(d, t["bias"]).sin()], GRID, t["x"].detach())


MODELS = {
    "SchNet": dict(hidden_channels=6, num_filters=6, num_interactions=2, num_basis=4),
    "DTNN": dict(hidden_channels=6, num_factors=5, num_interactions=2, num_basis=6),
    "PhysNet": dict(hidden_channels=6, num_basis=4, num_interactions=1, lr_cut=4.0),
    "DimeNet": dict(hidden_channels=6, num_blocks=1, num_spherical=3, num_radial=2),
    "DimeNetPlusPlus": dict(
        hidden_channels=6, num_blocks=1, int_emb_size=4, basis_emb_size=2, out_emb_size=4,
        num_spherical=3, num_radial=2,
    ),
}  # fmt: skip


def a_model(name: str, filters: str = "exact", dtype: torch.dtype = FLOAT) -> models.Potential:
    torch.manual_seed(5)
    model = getattr(models, name)(**MODELS[name], cutoff=3.0, filters=filters)
    for p in model.parameters():  # some start at zero
        if p.abs().max() == 0:
            torch.nn.init.uniform_(p, -0.5, 0.5)
    return model.to(dtype)


def predicts(name: str, filters: str, training: bool, t: dict[str, Tensor]) -> list[Tensor]:
    model = a_model(name, filters).train(training)
    out = model(the_batch(t), forces=True, stress=True)
    kept = [out[key] for key in sorted(out)]
    if not training:
        return kept
    weights = [p for p in model.parameters() if p.requires_grad]
    loss = out["forces"].square().sum() + out["stress"].square().sum()
    return kept + [
        g for g in torch.autograd.grad(loss, weights, allow_unused=True) if g is not None
    ]


def lean(t: dict[str, Tensor]) -> list[Tensor]:
    made = models.LeanSchNet(a_model("SchNet", "spline").eval())
    energy, forces = made(
        t["numbers"], t["positions"], t["system_ptr"], t["row_ptr"], t["senders"], t["row_ptr"],
        t["senders"], t["reverse"], t["shifts"], t["cell"], t["system"],
    )  # fmt: skip
    return [energy, forces]


def evaluator(t: dict[str, Tensor]) -> list[Tensor]:
    model = a_model("SchNet", "spline")
    evaluate = molkern.md.Evaluator(model, the_batch(t), stress=True)
    out = evaluate(t["positions"] + 0.01, t["cell"])
    return [out[key] for key in ("energy", "forces", "stress")]


def of_model(name: str) -> dict[str, Case]:
    return {
        f"{name}, {filters}, {'training' if training else 'evaluation'}": Case(
            partial(predicts, name, filters, training), BATCH, derivatives=0
        )
        for filters in ("exact", "spline")
        for training in (False, True)
    }


def layer_case(make, *arguments: str, **options) -> Case:
    call, inputs = layer(make, *arguments)
    return Case(call, inputs, torch=True, **options)


CASES: dict[str, dict[str, Case]] = {
    "neighbor_list": {
        "": Case(
            lambda t: fields(
                molkern.neighbor_list(t["positions"], 3.0, t["cell"], t["pbc"], t["batch"])
            ),
            ("positions", "cell", "pbc", "batch"),
            derivatives=0,
            types={
                "batch": [torch.int32, torch.int64],
                "pbc": [torch.bool, torch.uint8],
                "positions": [torch.float64],
            },
        ),
    },
    "NeighborList": {
        "": Case(of_list, (*GRAPH, "positions", "cell", "edge_x")),
        "from_edge_index": Case(
            from_edge_index,
            ("edge_index", "given_shifts", "batch", "distances"),
            types={
                "edge_index": [torch.int32, torch.int64],
                "given_shifts": [torch.int8, torch.int16, torch.int32, torch.int64],
                "batch": [torch.int32, torch.int64],
            },
        ),
    },
    "AtomicBatch": {
        "": Case(
            of_batch,
            BATCH,
            derivatives=1,
            types={
                "numbers": INTEGERS,
                "batch": [torch.int32, torch.int64],
                "pbc": [torch.bool, torch.uint8],
            },
        ),
        "one cell": Case(one_cell, (*BATCH,)),
    },
    "SplineGrid": {
        "bins": Case(
            lambda t: [GRID.bins(t["distances"], the_graph(t))],
            (*GRAPH, "distances"),
            derivatives=0,
        )
    },
    "cfconv": {
        "": Case(
            lambda t: [
                ops.cfconv(
                    t["x"], t["filters"], the_graph(t), aggregation="mean", counts=t["counts"]
                )
            ],
            (*GRAPH, "x", "filters", "counts"),
        )
    },
    "dense": {
        "": Case(
            lambda t: [
                ops.dense(
                    t["x"],
                    t["weight"],
                    t["bias"],
                    activation="silu",
                    residual=t["targets_6"],
                    gate=(t["gate_basis"], t["gate_weight"]),
                )
            ],
            ("x", "weight", "bias", "targets_6", "gate_basis", "gate_weight"),
            torch=True,
        ),
        "plain": Case(lambda t: [ops.dense(t["x"], t["weight"])], ("x", "weight"), torch=True),
        "value": Case(
            lambda t: [ops.dense(t["x"], t["weight"], t["bias"], activation="ssp")],
            ("x", "weight", "bias"),
            derivatives=0,
        ),
        "gradient": Case(
            lambda t: [ops.dense(t["x"], t["weight"], t["bias"], activation="ssp")],
            ("x", "weight", "bias"),
            derivatives=1,
            constant=("weight", "bias"),
        ),
    },
    "dense_residual": {
        "": Case(
            lambda t: [
                ops.dense_residual(
                    t["x"], t["weight"], t["bias"], t["weight2"], None, activation="silu"
                )
            ],
            ("x", "weight", "bias", "weight2"),
            torch=True,
        )
    },
    "dtnn_message": {
        "": Case(
            lambda t: [
                ops.dtnn_message(
                    t["x"],
                    t["table"],
                    t["distances"],
                    t["weight"],
                    the_graph(t),
                    GRID,
                    bins=GRID.bins(t["distances"], the_graph(t)),
                )
            ],
            (*GRAPH, "x", "table", "distances", "weight"),
        )
    },
    "gather_receivers": {
        "": Case(lambda t: [ops.gather_receivers(t["x"], the_graph(t))], (*GRAPH, "x"))
    },
    "gather_senders": {
        "": Case(lambda t: [ops.gather_senders(t["x"], the_graph(t))], (*GRAPH, "x"))
    },
    "radial_basis": {
        basis: Case(
            partial(
                lambda basis, t: [
                    ops.radial_basis(
                        t["distances"],
                        t["centers"],
                        t.get("widths"),
                        basis=basis,
                        cutoff_function="cosine",
                        cutoff=3.0,
                    )
                ],
                basis,
            ),
            ("distances", "centers", *(() if basis == "bessel" else ("widths",))),
        )
        for basis in ("gaussian", "exponential", "bessel")
    },
    "segment_expand": {
        "": Case(
            lambda t: [ops.segment_expand(t["few"], t["system_ptr"], 7)], ("few", "system_ptr")
        )
    },
    "segment_sum": {
        "": Case(lambda t: [ops.segment_sum(t["x"], t["system_ptr"])], ("x", "system_ptr")),
        "one": Case(lambda t: [ops.segment_sum(t["x"], t["one_ptr"])], ("x", "one_ptr")),
    },
    "spherical_radial": {
        "": Case(
            lambda t: [ops.spherical_radial(t["distances"], t["zeros"], t["norms"], cutoff=3.0)],
            ("distances", "zeros", "norms"),
            constant=("zeros", "norms"),
        )
    },
    "spline_cfconv": {
        "": Case(
            lambda t: [ops.spline_cfconv(t["x"], t["table"], t["distances"], the_graph(t), GRID)],
            (*GRAPH, "x", "table", "distances"),
        )
    },
    "sum_edges": {
        "": Case(
            lambda t: [
                ops.sum_edges(t["edge_x"], the_graph(t)),
                ops.sum_edges(t["edge_x"], the_graph(t), factors=t["filters"]),
            ],
            (*GRAPH, "edge_x", "filters"),
        )
    },
    "triplet_sum": {
        f"{angle}, {method}, {'weight' if weighted else 'none'}": Case(
            partial(
                lambda angle, method, weighted, t: [
                    ops.triplet_sum(
                        t["edge_x"],
                        t["radial"],
                        t["vectors"],
                        the_graph(t),
                        t["gate_weight"] if weighted else None,
                        angle=angle,
                        method=method,
                    )
                ],
                angle,
                method,
                weighted,
            ),
            (*GRAPH, "edge_x", "radial", "vectors", *(("gate_weight",) if weighted else ())),
        )
        for angle, method in (("kji", "direct"), ("kji", "moments"), ("at_i", "direct"))
        for weighted in (False, True)
    },
    "AtomicReference": {
        "": layer_case(
            lambda: nn.AtomicReference(scale=2.0, mean=1.0, reference=list(range(10))),
            "charges",
            "numbers",
        )
    },
    "AtomwiseHead": {"": layer_case(lambda: nn.AtomwiseHead(FEATURES), "x")},
    "BesselBasis": {"": layer_case(lambda: nn.BesselBasis(4, 3.0), "distances")},
    "CFConv": {
        "": layer_case(lambda: nn.CFConv(FEATURES, FEATURES, 3), "x", "filters", "graph"),
        "splines": layer_case(lambda: nn.CFConv(FEATURES, FEATURES, 3), "x", "splines", "graph"),
    },
    "ChargeCorrection": {
        "": layer_case(nn.ChargeCorrection, "charges", "total_charge", "system_ptr")
    },
    "CutoffFunction": {"": layer_case(lambda: nn.CutoffFunction("cosine", 3.0), "distances")},
    "D3Dispersion": {
        "": layer_case(lambda: nn.D3Dispersion(), "numbers", "distances", "graph", derivatives=1)
    },
    "DTNNInteraction": {
        "": layer_case(lambda: nn.DTNNInteraction(FEATURES, FEATURES), "x", "filters", "graph"),
        "splines": layer_case(
            lambda: nn.DTNNInteraction(FEATURES, FEATURES), "x", "splines", "graph"
        ),
    },
    "Dense": {"": layer_case(lambda: nn.Dense(FEATURES, 3, activation="silu"), "x")},
    "DimeNetEmbedding": {
        "": layer_case(lambda: nn.DimeNetEmbedding(4, FEATURES, 10), "numbers", "basis", "graph")
    },
    "DimeNetInteraction": {
        "": layer_case(
            lambda: nn.DimeNetInteraction(FEATURES, 2, 3, 4),
            "edge_x",
            "basis",
            "spherical",
            "vectors",
            "graph",
        )
    },
    "DimeNetOutput": {
        "": layer_case(lambda: nn.DimeNetOutput(4, FEATURES, 2), "edge_x", "basis", "graph")
    },
    "DimeNetPlusPlusInteraction": {
        "": layer_case(
            lambda: nn.DimeNetPlusPlusInteraction(FEATURES, 4, 2, 3, 4),
            "edge_x",
            "basis",
            "spherical",
            "vectors",
            "graph",
        )
    },
    "DimeNetPlusPlusOutput": {
        "": layer_case(
            lambda: nn.DimeNetPlusPlusOutput(4, FEATURES, 5, 2), "edge_x", "basis", "graph"
        )
    },
    "DimeNetResidual": {"": layer_case(lambda: nn.DimeNetResidual(FEATURES), "edge_x")},
    "DipoleMoment": {"": layer_case(nn.DipoleMoment, "charges", "atoms", "positions")},
    "ElectronicSpatialExtent": {
        "": layer_case(nn.ElectronicSpatialExtent, "charges", "atoms", "positions")
    },
    "ElementScaling": {"": layer_case(lambda: nn.ElementScaling(10), "targets", "numbers")},
    "ExponentialBasis": {"": layer_case(lambda: nn.ExponentialBasis(4, 3.0), "distances")},
    "FilterNetwork": {
        "": layer_case(lambda: nn.FilterNetwork(4, FEATURES, 3.0), "basis", "distances")
    },
    "GaussianBasis": {"": layer_case(lambda: nn.GaussianBasis(4, 3.0), "distances")},
    "PhysNetInteraction": {
        "": layer_case(lambda: nn.PhysNetInteraction(FEATURES, 4), "x", "basis", "graph"),
        "splines": layer_case(lambda: nn.PhysNetInteraction(FEATURES, 4), "x", "splines", "graph"),
    },
    "PhysNetOutput": {"": layer_case(lambda: nn.PhysNetOutput(FEATURES), "x")},
    "PreActivatedResidual": {"": layer_case(lambda: nn.PreActivatedResidual(FEATURES), "x")},
    "SchNetInteraction": {
        "": layer_case(
            lambda: nn.SchNetInteraction(FEATURES, FEATURES, nn.FilterNetwork(4, FEATURES, 3.0)),
            "x",
            "basis",
            "distances",
            "graph",
        )
    },
    "ShieldedElectrostatics": {
        "": layer_case(lambda: nn.ShieldedElectrostatics(1.5, 3.0), "charges", "distances", "graph")
    },
    "ShiftedSoftplus": {"": layer_case(nn.ShiftedSoftplus, "x")},
    "SphericalRadialBasis": {
        "": layer_case(lambda: nn.SphericalRadialBasis(2, 2, 3.0), "distances")
    },
    "SplineFilter": {
        "": Case(lambda t: [spline_filter(t).values()], ("table", "distances")),
        "convolve": Case(
            lambda t: [spline_filter(t).convolve(t["x"], the_graph(t))],
            (*GRAPH, "table", "distances", "x"),
        ),
    },
    "spline_tables": {"": Case(tables_of, ("bias", "x"), constant=("x",))},
    **{name: of_model(name) for name in MODELS},
    "LeanSchNet": {
        "": Case(lean, ("numbers", "positions", "system_ptr", "cell", *GRAPH), derivatives=0)
    },
    "Evaluator": {"": Case(evaluator, BATCH, derivatives=0)},
}

#: Public names that take no tensors.
WITHOUT_TENSORS = {
    "MODELS", "Potential", "SplineReport", "Structure", "build_info", "choose_grid", "empty_cache",
    "interop", "load", "md", "models", "nn", "ops", "spherical_bessel_zeros",
}  # fmt: skip

ALL = [(name, kind) for name, cases in CASES.items() for kind in cases]
NAMES = [f"{name}-{kind}".rstrip("-") for name, kind in ALL]


def tensors_of(case: Case) -> dict[str, Tensor]:
    known = everything()
    known["targets_6"] = known["x"].flip(0).clone()
    return {name: known[name] for name in case.inputs}


def run(case: Case, tensors: dict[str, Tensor], layout) -> list[Tensor]:
    """Results, and first and second derivatives with cotangents of a layout."""
    leaves, wanted = {}, []
    for name, tensor in tensors.items():
        leaves[name] = tensor.detach()
        if case.derivatives and tensor.is_floating_point() and name not in case.constant:
            leaves[name].requires_grad_()
            wanted.append(leaves[name])
    found = case.call(leaves)
    results = list(found)
    for _ in range(case.derivatives):
        found = [y for y in found if y is not None and y.requires_grad]
        if not found:
            break
        cotangents = [
            layout(torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape))
            for y in found
        ]
        found = torch.autograd.grad(found, wanted, cotangents, create_graph=True, allow_unused=True)
        results += [g for g in found if g is not None]
    return [t.detach() for t in results]


def same(got: list[Tensor], expected: list[Tensor], rounded: bool = False) -> None:
    """Equal bits, or, where they may be rounded, equal but for that."""
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if rounded:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))
        else:
            assert torch.equal(a, b), f"result {k} differs"


def is_dense(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


@pytest.mark.parametrize(("name", "kind"), ALL, ids=NAMES)
def test_arguments(name, kind):
    """All tensors of a layout at once, as they are when a whole batch is a view of another."""
    case = CASES[name][kind]
    tensors = tensors_of(case)
    expected = run(case, tensors, is_dense)
    for layout in LAYOUTS:
        got = run(case, {key: layout(t) for key, t in tensors.items()}, is_dense)
        same(got, expected, case.torch)


@pytest.mark.parametrize(("name", "kind"), ALL, ids=NAMES)
def test_each_argument_alone(name, kind):
    case = CASES[name][kind]
    tensors = tensors_of(case)
    expected = run(case, tensors, is_dense)
    for key, tensor in tensors.items():
        same(run(case, tensors | {key: transposed(tensor)}, is_dense), expected, case.torch)


@pytest.mark.parametrize(("name", "kind"), ALL, ids=NAMES)
def test_cotangents(name, kind):
    """Of results and of gradients; all one, as ``sum().backward()`` has them, with stride 0."""
    case = CASES[name][kind]
    tensors = tensors_of(case)

    def ones(t: Tensor) -> Tensor:
        return t.new_ones(()).expand(t.shape)

    expected = run(case, tensors, lambda t: is_dense(ones(t)))
    same(run(case, tensors, ones), expected, case.torch)
    expected = run(case, tensors, is_dense)
    for layout in LAYOUTS:
        same(run(case, tensors, layout), expected, case.torch)


@pytest.mark.parametrize("key", ["cell", "x", "filters", "edge_x", "table", "weight", "radial"])
def test_rows_that_are_one(key):
    """Arguments of stride 0, alone, wherever they may be."""
    for name, kind in ALL:
        case = CASES[name][kind]
        tensors = tensors_of(case)
        if key not in tensors:
            continue
        one = expanded(tensors[key])
        expected = run(case, tensors | {key: is_dense(one)}, is_dense)
        same(run(case, tensors | {key: one}, is_dense), expected, case.torch)


TYPED = [
    (name, kind, key, dtype)
    for name, kind in ALL
    for key, dtypes in CASES[name][kind].types.items()
    for dtype in dtypes
]


@pytest.mark.parametrize(("name", "kind", "key", "dtype"), TYPED)
def test_types(name, kind, key, dtype):
    """Every documented integer type, in every layout."""
    case = CASES[name][kind]
    tensors = tensors_of(case)
    expected = run(case, tensors, is_dense)
    for layout in (is_dense, *LAYOUTS):
        got = run(case, tensors | {key: layout(tensors[key].to(dtype))}, is_dense)
        same(got, expected, case.torch)


def test_every_public_name_is_here():
    public = [*molkern.__all__, *ops.__all__, *nn.__all__, *models.__all__]
    assert sorted(set(public) - set(CASES) - WITHOUT_TENSORS) == []


@pytest.mark.parametrize("name", MODELS)
def test_hand_made_lists(name):
    """A list of views, in evaluation with splines and in training without."""
    t = everything()
    batch = the_batch(t)
    for filters, training in (("spline", False), ("exact", True)):
        model = a_model(name, filters).train(training)
        graph = model.neighbors(batch)
        parts = {key: strided(getattr(graph, key)) for key in GRAPH}
        expected = model(batch, forces=True, neighbors=graph)
        got = model(batch, forces=True, neighbors=replace(graph, **parts))
        same([got[key] for key in sorted(got)], [expected[key] for key in sorted(expected)])


def test_reversed_numpy_arrays():
    """Negative strides, which torch does not have."""
    t = everything()
    pbc = np.array([False, True, True])[::-1]
    expected = molkern.neighbor_list(t["positions"], 3.0, t["cell"][0], [True, True, False])
    same(fields(molkern.neighbor_list(t["positions"], 3.0, t["cell"][0], pbc)), fields(expected))
    made = AtomicBatch(t["numbers"], t["positions"], cell=t["cell"][0], pbc=pbc)
    assert made.pbc.tolist() == [[True, True, False]]
