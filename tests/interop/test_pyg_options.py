"""Every option of PyTorch Geometric's models is converted, or refused by name."""

import copy
import importlib
import inspect

import pytest
import torch

import molkern
from molkern import AtomicBatch
from molkern.interop import audit, dimenet, from_pyg, graphs, schnet

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


schnets = pytest.importorskip("torch_geometric.nn.models.schnet")
dimenets = pytest.importorskip("torch_geometric.nn.models.dimenet")
pytest.importorskip("sympy")

CUTOFF = 4.0
PLACES = {
    "torch_geometric": [
        "torch_geometric.nn.models.schnet",
        "torch_geometric.nn.models.dimenet",
        "torch_geometric.nn.aggr",
    ]
}


def all_pairs(positions, batch):  # PyTorch Geometric's own search needs torch_cluster
    neighbors = molkern.neighbor_list(positions.detach(), CUTOFF, batch=batch)
    return neighbors.edge_index, neighbors.distances(positions)


def perturbed(module):
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("rbf"):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.05 * noise)
    return module


SMALL = dict(hidden_channels=8, num_filters=6, num_interactions=2, num_gaussians=5, cutoff=CUTOFF)


def small(**options):
    return perturbed(schnets.SchNet(**{**SMALL, "interaction_graph": all_pairs, **options}))


def molecules():
    generator = torch.Generator().manual_seed(1)
    positions = 4 * torch.rand(12, 3, generator=generator, dtype=torch.float64)
    numbers = torch.randint(1, 10, (12,), generator=generator)
    return AtomicBatch(numbers, positions, torch.tensor([0] * 5 + [1] * 7))


def check(theirs, ours=None):
    batch = molecules()
    ours = from_pyg(theirs) if ours is None else ours
    expected = theirs(batch.numbers, batch.positions, batch.batch).detach().squeeze(1)
    found = ours(batch)[ours.differentiated]
    torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)


# Constructors


@pytest.mark.parametrize("table", ["SchNet", "DimeNet", "DimeNetPlusPlus"])
def test_all_arguments_of_all_parts_are_known(table):
    """A new argument in a newer release fails here."""
    parts = schnet.PYG_PARTS if table == "SchNet" else dimenet.PYG_PARTS[table]
    for path, part in parts.items():
        if part.arguments is None:
            continue
        found = set()
        for name in part.names:
            places = map(importlib.import_module, PLACES[part.package])
            cls = next(
                getattr(place, name)
                for place in places
                if hasattr(place, name) and place.__name__.endswith(("aggr", module_of(table)))
            )
            assert not list(audit.unknown_arguments(cls, part.arguments)), (path, name)
            found |= set(inspect.signature(cls.__init__).parameters) - {"self"}
        assert found == part.arguments, path


def module_of(table):
    return "schnet" if table == "SchNet" else "dimenet"


#: For each argument values other than the default: converted with the same numbers, or refused.
OPTIONS = {
    "hidden_channels": [10],
    "num_filters": [3],
    "num_interactions": [1, 3],
    "num_gaussians": [9],
    "cutoff": [5.0, 3],
    "interaction_graph": [all_pairs],
    "max_num_neighbors": [64],
    "readout": ["mean", "sum"],
    "dipole": [True],
    "mean": [-1.5],
    "std": [2.5],
    "atomref": [torch.linspace(0.1, 3.0, 100).unsqueeze(1)],
}


def test_options_are_those_of_the_class():
    assert set(OPTIONS) == set(inspect.signature(schnets.SchNet.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", OPTIONS)
def test_schnet_options(name):
    for value in OPTIONS[name]:
        options = {name: value}
        if name == "cutoff":

            def graph(positions, batch, cutoff=float(value)):
                neighbors = molkern.neighbor_list(positions.detach(), cutoff, batch=batch)
                return neighbors.edge_index, neighbors.distances(positions)

            options["interaction_graph"] = graph
        check(small(**options))


def test_both_standards_and_a_scale():
    theirs = small(mean=-1.5, std=2.5)
    theirs.scale = 0.7
    check(theirs)
    theirs.mean, theirs.std = torch.tensor(-1.5), torch.tensor([2.5], dtype=torch.float64)
    check(theirs)
    theirs.std = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"std must be a number, got shape \[2\]"):
        from_pyg(theirs)


def test_arguments_of_newer_releases(monkeypatch):
    theirs, original = small(), schnets.SchNet.__init__

    def newer(self, *arguments, gate=None, **options):
        original(self, *arguments, **options)

    newer.__signature__ = inspect.signature(original).replace(
        parameters=[
            *inspect.signature(original).parameters.values(),
            inspect.Parameter("gate", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
    )
    monkeypatch.setattr(schnets.SchNet, "__init__", newer)
    message = r"the model has the argument gate \(its value is {}\), which this version of molkern"
    with pytest.raises(ValueError, match=message.format("unknown")):
        from_pyg(theirs)
    theirs.gate = None
    check(theirs)
    theirs.gate = 0.5
    with pytest.raises(ValueError, match=message.format("0.5")):
        from_pyg(theirs)


# Graphs


def nearest(count):
    def graph(positions, batch):
        edges, lengths = all_pairs(positions, batch)
        order = lengths.argsort()
        kept = [order[edges[1, order] == atom][:count] for atom in range(len(batch))]
        chosen = torch.cat(kept)
        return edges[:, chosen], lengths[chosen]

    return graph


def periodic(length):
    def graph(positions, batch):
        if int(batch.max()):
            return all_pairs(positions, batch)
        cell = length * torch.eye(3).to(positions)
        neighbors = molkern.neighbor_list(positions.detach(), CUTOFF, cell)
        return neighbors.edge_index, neighbors.distances(positions, cell)

    return graph


def stretched(positions, batch):
    edges, lengths = all_pairs(positions, batch)
    return edges, 1.1 * lengths


def one_way(positions, batch):
    edges, lengths = all_pairs(positions, batch)
    half = edges[0] < edges[1]
    return edges[:, half], lengths[half]


def with_itself(positions, batch):
    edges, lengths = all_pairs(positions, batch)
    loops = torch.arange(len(batch)).expand(2, -1)
    return torch.cat([edges, loops], 1), torch.cat([lengths, lengths.new_zeros(len(batch))])


def across_molecules(positions, batch):
    return all_pairs(positions, torch.zeros_like(batch))


def shorter(positions, batch):
    edges, lengths = all_pairs(positions, batch)
    return edges[:, lengths < 3.0], lengths[lengths < 3.0]


def of_one_molecule(positions, batch):
    return torch.tensor([[0, 1], [1, 0]]), (positions[1] - positions[0]).norm().expand(2)


def dropped(positions, batch):
    edges, lengths = all_pairs(positions, batch)
    kept = torch.rand(len(lengths)) < 0.9
    return edges[:, kept], lengths[kept]


GRAPHS = {
    "nearest 32": (nearest(32), r"for 40 atoms close together it gives 1280 edges where there are"),
    "nearest 3": (nearest(3), "for 40 atoms close together it gives 120 edges"),
    "periodic": (periodic(12.0), "it gives .* edges where there are"),
    "periodic, wide": (periodic(90.0), "in a line along x, far from each other it gives"),
    "stretched": (stretched, r"the distance of atoms \(\d+, \d+\) is"),
    "one way": (one_way, "it gives 780 edges where there are 1560 .0 others, 780 missing"),
    "itself": (with_itself, r"\(40 others, 0 missing\)"),
    "across": (across_molecules, "for molecules side by side it gives"),
    "shorter": (shorter, "for a molecule larger than the cutoff it gives"),
    "fixed": (of_one_molecule, "it gives 2 edges where there are"),
    "dropped": (dropped, "others, .* missing"),
    "failing": (lambda positions, batch: positions[100], "it fails .IndexError"),
    "no edges": (lambda positions, batch: (None, None), "it gives a builtins.NoneType"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_other_graphs_are_refused(name):
    graph, message = GRAPHS[name]
    theirs = small(interaction_graph=graph)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"^interaction_graph .*{message}.*NeighborList"):
        from_pyg(theirs)
    assert torch.equal(torch.get_rng_state(), state)


def test_its_own_graph(monkeypatch):
    calls = []

    def radius_graph(positions, r, batch, max_num_neighbors):
        calls.append(r)
        return molkern.neighbor_list(positions.detach(), r, batch=batch).edge_index

    monkeypatch.setattr(schnets, "radius_graph", radius_graph)
    theirs = small(interaction_graph=None)
    ours = from_pyg(theirs)
    assert not calls  # it is known, and needs torch_cluster
    check(theirs, ours)
    theirs.interaction_graph.cutoff = 3.0
    with pytest.raises(ValueError, match=r"cutoff of interaction_graph is 3.0, .* filters 4.0"):
        from_pyg(theirs)
    theirs.interaction_graph.cutoff, theirs.interaction_graph.max_num_neighbors = CUTOFF, 31
    with pytest.raises(ValueError, match=r"max_num_neighbors=31 has no counterpart: .* to 32 or"):
        from_pyg(theirs)
    theirs.interaction_graph.max_num_neighbors = 33
    theirs.interaction_graph.forward = all_pairs
    with pytest.raises(ValueError, match=r"interaction_graph has a forward of its own"):
        from_pyg(theirs)
    del theirs._modules["interaction_graph"]
    theirs.interaction_graph = 3
    with pytest.raises(ValueError, match=r"interaction_graph is 3, which is no function"):
        from_pyg(theirs)


def test_the_hosts_random_numbers_are_left_alone():
    theirs = small()
    state = torch.get_rng_state()
    ours = from_pyg(theirs)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.device("meta"):
        again = from_pyg(theirs)
    assert torch.equal(again.embedding.weight, ours.embedding.weight)


def test_graphs_in_modules():
    class Graph(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cutoff", torch.tensor(CUTOFF))

        def forward(self, positions, batch):
            return all_pairs(positions, batch)

    check(small(interaction_graph=Graph()))
    assert len(list(graphs._structures(CUTOFF, torch.zeros(1)))) == 7


# What is changed after a model was made


class Mine(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def place(module, path):
    *owners, name = path.split(".")
    return module.get_submodule(".".join(owners)), name


def put(path, make):
    def change(module):
        owner, name = place(module, path)
        old = getattr(owner, name, None)
        setattr(owner, name, make(old) if callable(make) else make)

    return change


def put_number(path, value):
    return put(path, lambda _: value)


def double(*arguments):
    return 2 * arguments[-1]


CHANGES = {
    r"cutoff is 5.0, but that of interactions.0.conv is 4.0": put_number("cutoff", 5.0),
    r"cutoff is 4.0, but that of interactions.1.conv is 3": put_number(
        "interactions.1.conv.cutoff", 3
    ),
    r"interactions.0.lin is a .*Mine, which has no .* Linear of torch": put(
        "interactions.0.lin", lambda old: Mine(8, 8).double()
    ),
    r"lin1 is a .*Mine": put("lin1", lambda old: Mine(8, 4).double()),
    r"interactions.0.extra is a .*Linear, which has no": put(
        "interactions.0.extra", lambda old: torch.nn.Linear(2, 2).double()
    ),
    r"lin2 has a hook \(.*double in _forward_hooks\)": lambda m: m.lin2.register_forward_hook(
        double
    ),
    r"embedding has a hook .*_forward_pre_hooks": lambda m: m.embedding.register_forward_pre_hook(
        lambda *_: None
    ),
    r"the model has a hook .*_backward_hooks": lambda m: m.register_full_backward_hook(
        lambda *_: None
    ),
    r"interactions.0.conv has a hook .*_message_forward_hooks": lambda m: m.interactions[
        0
    ].conv.register_message_forward_hook(lambda *_: None),
    r"interactions.1.lin has a parametrisation of its weight": lambda m: (
        torch.nn.utils.parametrizations.weight_norm(m.interactions[1].lin)
    ),
    r"the model has a forward of its own \(.*double\)": put_number("forward", double),
    r"interactions.0.conv has a message of its own": put_number(
        "interactions.0.conv.message", double
    ),
    r"interactions.0.conv has aggr='mean', 'add' is needed": put_number(
        "interactions.0.conv.aggr", "mean"
    ),
    r"interactions.0.conv has flow='target_to_source'": put_number(
        "interactions.0.conv.flow", "target_to_source"
    ),
    r"conv.aggr_module is a .*MaxAggregation": put(
        "interactions.1.conv.aggr_module",
        lambda old: importlib.import_module("torch_geometric.nn.aggr").MaxAggregation(),
    ),
    r"need one and the same activation, but have .*tanh": put_number(
        "interactions.0.act", torch.nn.Tanh()
    ),
    r"the activation of act is torch.*ReLU": put_number("act", torch.nn.ReLU()),
    r"the activation of act has shift=0.5, not ln 2": put_number("act.shift", 0.5),
    r"conv.nn is not interactions.0.mlp": put("interactions.0.conv.nn", copy.deepcopy),
    r"embedding has max_norm=1.0": put_number("embedding.max_norm", 1.0),
    r"embedding has sparse=True": put_number("embedding.sparse", True),
    r"parameters or buffers that have no counterpart: \['gate'\]": put_number(
        "gate", torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    ),
    r"no counterpart: \['mean'\]": put_number(
        "mean", torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    ),
    r"lin2.weight is torch.float32 but .* is torch.float64": lambda m: m.lin2.float(),
    r"embedding.weight is torch.float16, but models are float32": lambda m: m.half(),
    r"distance_expansion.coeff must be a number": put_number(
        "distance_expansion.coeff", torch.ones(5)
    ),
    r"distance_expansion.offset has shape \[1\], expected \[5\]": put_number(
        "distance_expansion.offset", torch.zeros(1, dtype=torch.float64)
    ),
    r"no 'lin1.bias' in this torch_geometric": put_number("lin1.bias", None),
    r"atomref has shape \[90, 1\]": put_number("atomref", torch.nn.Embedding(90, 1).double()),
}


@pytest.mark.parametrize("message", CHANGES)
def test_changes_are_noticed(message):
    module = small()
    CHANGES[message](module)
    with pytest.raises(ValueError, match=message):
        from_pyg(module)


def test_changes_that_are_converted():
    theirs = small()
    for block in theirs.interactions:
        block.act = block.mlp[1] = torch.nn.SiLU()
    check(theirs)
    theirs.act = torch.nn.Tanh()
    check(theirs)
    theirs.distance_expansion.offset = theirs.distance_expansion.offset**1.1
    theirs.distance_expansion.coeff = -3.0
    check(theirs)
    theirs.note = "my own"
    theirs.register_state_dict_post_hook(lambda *_: None)
    check(theirs)


def test_dipoles_that_are_switched_on_and_off():
    """As ``from_qm9_pretrained`` of that package does."""
    theirs = small(dipole=True)
    theirs.dipole = False
    check(theirs)
    theirs = small()
    theirs.dipole = True
    with pytest.raises(ValueError, match=r"no 'atomic_mass' in this torch_geometric"):
        from_pyg(theirs)


def test_frozen_parameters_stay_frozen():
    theirs = small(atomref=torch.linspace(0.1, 3.0, 100).unsqueeze(1), mean=0.0, std=1.0)
    pairs = {
        "embedding.weight": "embedding.weight",
        "lin1.weight": "head.layers.0.weight",
        "lin2.bias": "head.layers.2.bias",
        "atomref.weight": "reference.reference",
        "interactions.0.mlp.0.weight": "interactions.0.filter_network.layers.0.weight",
        "interactions.1.conv.lin1.weight": "interactions.1.conv.lin_in.weight",
        "interactions.1.conv.lin2.bias": "interactions.1.conv.lin_out.bias",
        "interactions.0.lin.weight": "interactions.0.lin.weight",
    }
    for name in pairs:
        theirs.get_parameter(name).requires_grad_(False)
    ours = from_pyg(theirs)
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    assert frozen == set(pairs.values())
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == count
    assert ours.embedding.padding_idx == theirs.embedding.padding_idx == 0
    theirs.requires_grad_(False)
    assert not any(p.requires_grad for p in from_pyg(theirs).parameters())
    assert all(p.requires_grad for p in from_pyg(small()).parameters())


def test_the_row_of_padding_is_not_trained():
    theirs = small()
    ours = from_pyg(theirs)
    batch = molecules()
    batch.numbers[0] = 0
    ours.train()(batch)["energy"].sum().backward()
    theirs(batch.numbers, batch.positions, batch.batch).sum().backward()
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.embedding.weight.grad)
    assert not ours.embedding.weight.grad[0].any()


def test_elements_of_references():
    reference = torch.zeros(100, 1)
    reference[[1, 6, 8]] = torch.tensor([[-0.5], [-37.8], [-75.0]])
    theirs = small(atomref=reference)
    theirs.atomref.weight = torch.nn.Parameter(reference.double())
    ours = from_pyg(theirs)
    assert set(ours.elements) == {0, 1, 6, 8}
    with pytest.raises(ValueError, match=r"atom 1 is N \(7\), .* it knows H, C, O"):
        ours(AtomicBatch(torch.tensor([1, 7]), torch.eye(3, dtype=torch.float64)[:2]))
    assert from_pyg(small()).elements is None


# DimeNet

KINDS = ["DimeNet", "DimeNetPlusPlus"]


@pytest.fixture(params=KINDS)
def directional(request, monkeypatch):
    utils = importlib.import_module("torch_geometric.nn.models.dimenet_utils")
    monkeypatch.setattr(utils, "bessel_basis", _forms(utils.bessel_basis))

    def make(**options):
        sizes = dict(hidden_channels=6, out_channels=1, num_blocks=2, num_spherical=2)
        own = dict(num_bilinear=2)
        if request.param == "DimeNetPlusPlus":
            own = dict(int_emb_size=4, basis_emb_size=3, out_emb_channels=5)
        initial = dict(num_radial=2, output_initializer="glorot_orthogonal")
        kind = getattr(dimenets, request.param)
        return perturbed(kind(**{**sizes, **own, **initial, **options}))

    return make


_FORMS = {}


def _forms(function):
    """Formulas that take seconds to derive, derived once for all tests."""

    def cached(*arguments):
        if arguments not in _FORMS:
            _FORMS[arguments] = function(*arguments)
        return _FORMS[arguments]

    return cached


DIRECTIONAL = {
    r"cutoff is 6.0, but that of rbf is 5.0": put_number("cutoff", 6.0),
    r"cutoff is 5.0, but that of sbf is 4.0": put_number("sbf.cutoff", 4.0),
    r"max_num_neighbors=8 has no counterpart": put_number("max_num_neighbors", 8),
    r"sbf.envelope has p=5, 6 is needed": put_number("sbf.envelope.p", 5),
    r"rbf.envelope has b=1.0": put_number("rbf.envelope.b", 1.0),
    r"sbf has 3 orders of 2 functions": put_number("sbf.num_spherical", 3),
    r"sbf has functions of its own, which differ by": put(
        "sbf.sph_funcs", lambda old: [old[0], lambda x: x.sin()]
    ),
    r"interaction_blocks.1.act: .* swish \(silu\), not Tanh": put_number(
        "interaction_blocks.1.act", torch.nn.Tanh()
    ),
    r"output_blocks.2.act: .* not double": put_number("output_blocks.2.act", double),
    r"interaction_blocks.0.lin is a .*Mine": put(
        "interaction_blocks.0.lin", lambda old: Mine(6, 6).double()
    ),
    r"emb.emb has max_norm=2.0": put_number("emb.emb.max_norm", 2.0),
    r"rbf has a forward of its own": put_number("rbf.forward", double),
    r"no counterpart: \['output_blocks.3": lambda m: m.output_blocks.append(
        copy.deepcopy(m.output_blocks[0])
    ),
    r"no 'output_blocks.2.lin_rbf.weight'": lambda m: m.output_blocks.__delitem__(2),
}


@pytest.mark.parametrize("message", DIRECTIONAL)
def test_changes_of_dimenet_are_noticed(directional, message):
    module = directional()
    DIRECTIONAL[message](module)
    with pytest.raises(ValueError, match=message):
        from_pyg(module)


def test_frozen_parameters_of_dimenet(directional):
    theirs = directional()
    for name in ("rbf.freq", "emb.emb.weight", "interaction_blocks.0.lin_kj.weight"):
        theirs.get_parameter(name).requires_grad_(False)
    ours = from_pyg(theirs)
    frozen = {name for name, p in ours.named_parameters() if not p.requires_grad}
    kept = {"basis.frequencies", "embedding.emb.weight", "interactions.0.lin_kj.weight"}
    assert frozen == kept
    assert ours.config["output_init"] == "glorot_orthogonal"
    assert from_pyg(directional(output_initializer="zeros")).config["output_init"] == "zeros"
