"""Every operator under torch's ways of differentiating: the same derivative, or a refusal."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import molkern
from molkern import ops
from molkern.nn.splines import spline_tables
from molkern.ops.geometry import edge_norm

#: Operators of indices alone.
WITHOUT_DERIVATIVES = {"neighbor_list", "check_neighbor_status", "spline_bins"}


def graph(periodic):
    positions = torch.rand(4, 3, dtype=torch.float64)
    cell = 2.0 * torch.eye(3, dtype=torch.float64).unsqueeze(0) if periodic else None
    return positions, cell, molkern.neighbor_list(positions, 1.5, cell)


def rand(*shape):
    return torch.rand(*shape, dtype=torch.float64)


def value_of(name):
    """A function of tensors, and tensors, for each public function."""
    positions, cell, nl = graph(periodic=name == "vectors")
    edges = nl.num_edges
    grid = ops.SplineGrid(0.0, 2.0, intervals=4)
    d = nl.distances(positions, cell)
    pointers = torch.tensor([0, 1, 4], dtype=torch.int32)
    zeros = molkern.nn.spherical_bessel_zeros(2, 2)
    return {
        "vectors": lambda: (nl.vectors, positions, cell),
        "distances": lambda: (nl.distances, positions),
        "edge_norm": lambda: (edge_norm, rand(3, 3)),
        "cfconv": lambda: (lambda x, w: ops.cfconv(x, w, nl), rand(4, 2), rand(edges, 2)),
        "segment_sum": lambda: (lambda x: ops.segment_sum(x, pointers), rand(4, 2)),
        "segment_expand": lambda: (lambda x: ops.segment_expand(x, pointers, 4), rand(2, 2)),
        "gather_senders": lambda: (lambda x: ops.gather_senders(x, nl), rand(4, 2)),
        "sum_edges": lambda: (lambda x: ops.sum_edges(x, nl), rand(edges, 2)),
        "dense": lambda: (
            lambda x, w, b, e, v: ops.dense(x, w, b, activation="silu", gate=(e, v)),
            *(rand(3, 2), rand(4, 2), rand(4), rand(3, 1), rand(4, 1)),
        ),
        "dense_residual": lambda: (
            lambda x, w1, w2: ops.dense_residual(x, w1, None, w2, None, activation="tanh"),
            *(rand(3, 2), rand(4, 2), rand(2, 4)),
        ),
        "radial_basis": lambda: (
            lambda d, p, q: ops.radial_basis(d, p, q, cutoff=2.0, cutoff_function="cosine"),
            *(d, rand(3), rand(3)),
        ),
        "spherical_radial": lambda: (
            lambda d: ops.spherical_radial(d, zeros, torch.ones_like(zeros), cutoff=2.0),
            d,
        ),
        "spline_cfconv": lambda: (
            lambda x, c, d: ops.spline_cfconv(x, c, d, nl, grid),
            *(rand(4, 2), rand(grid.rows, 2), d),
        ),
        "spline_coefficients": lambda: (
            lambda a: spline_tables(lambda d: [a * d.unsqueeze(1) ** 2], grid, a)[0],
            rand(1, 2),
        ),
        "dtnn_message": lambda: (
            lambda x, c, d, w: ops.dtnn_message(x, c, d, w, nl, grid),
            *(rand(4, 2), rand(grid.rows, 2), d, rand(3, 2)),
        ),
        "triplet_sum": lambda: (
            lambda x, q, v, w: ops.triplet_sum(x, q, v, nl, w),
            *(rand(edges, 2), rand(edges, 2, 2), nl.vectors(positions), rand(2, 2)),
        ),
    }[name]()


NAMES = [
    *("vectors", "distances", "edge_norm", "cfconv", "segment_sum", "segment_expand"),
    *("gather_senders", "sum_edges", "dense", "dense_residual", "radial_basis"),
    *("spherical_radial", "spline_cfconv", "spline_coefficients", "dtnn_message", "triplet_sum"),
]

#: Differentiable twice; the others as often as one likes.
TWICE = {
    *("distances", "edge_norm", "radial_basis", "spherical_radial", "spline_cfconv"),
    *("dtnn_message", "triplet_sum"),
}


class Calls(TorchDispatchMode):
    """Keeps one call of each operator of molkern."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name, _, _ = str(operator).partition(".default")
        if name.startswith("molkern."):
            self.kept[name.removeprefix("molkern.")] = (
                operator,
                tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args),
            )
        return operator(*args, **(kwargs or {}))


def second_derivative(function, *tensors):
    inputs = [t.clone().requires_grad_() for t in tensors]
    first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)


@pytest.fixture(scope="module")
def calls():
    """A call of each operator that values, gradients and their gradients take."""
    torch.manual_seed(0)
    with Calls() as kept:
        for name in NAMES:
            second_derivative(*value_of(name))
    return kept.kept


def floats(args):
    found = range(len(args))
    return [k for k in found if isinstance(args[k], torch.Tensor) and args[k].is_floating_point()]


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def test_every_operator_is_looked_at(calls):
    registered = {
        name.removeprefix("molkern::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("molkern::")
    }
    assert set(calls) - WITHOUT_DERIVATIVES == registered - WITHOUT_DERIVATIVES - {
        "schnet_energy_grad"  # in test_models.py
    }


def test_tangents_are_refused(calls):
    for name, (operator, args) in calls.items():
        if name in WITHOUT_DERIVATIVES:
            continue
        for k in floats(args):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(args[k], torch.ones_like(args[k]))
                with pytest.raises(RuntimeError, match=f"molkern::{name} has no forward-mode"):
                    operator(*args[:k], dual, *args[k + 1 :])


def test_vmap_is_a_loop(calls):
    for name, (operator, args) in calls.items():
        for k in floats(args):
            pair = torch.stack([args[k], 0.5 * args[k]])

            def one(value, operator=operator, args=args, k=k):
                return operator(*args[:k], value, *args[k + 1 :])

            if name in WITHOUT_DERIVATIVES:
                pair = torch.stack([args[k], args[k]])
            together = as_tuple(torch.vmap(one)(pair))
            for first, *rest in zip(together, *(as_tuple(one(v)) for v in pair), strict=True):
                torch.testing.assert_close(first, torch.stack(rest), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_reverse_mode_of_torch_func(name):
    function, *tensors = value_of(name)
    inputs = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(function(*inputs).square().sum(), inputs)

    def scalar(*values):
        return function(*values).square().sum()

    every = tuple(range(len(tensors)))
    found = torch.func.grad(scalar, every)(*tensors)
    torch.testing.assert_close(found, expected)
    pairs = [torch.stack([t, 1.1 * t]) for t in tensors]
    both = torch.vmap(torch.func.grad(scalar, every))(*pairs)
    torch.testing.assert_close(tuple(g[0] for g in both), expected)


@pytest.mark.parametrize("name", NAMES)
def test_hessians(name):
    function, *tensors = value_of(name)

    def scalar(value):
        return function(value, *tensors[1:]).square().sum()

    expected = torch.autograd.functional.hessian(scalar, tensors[0])
    twice = torch.func.jacrev(torch.func.jacrev(scalar))(tensors[0])
    torch.testing.assert_close(twice, expected)
    batched = torch.autograd.functional.hessian(scalar, tensors[0], vectorize=True)
    torch.testing.assert_close(batched, expected)
    product = torch.autograd.functional.vhp(scalar, tensors[0], torch.ones_like(tensors[0]))[1]
    torch.testing.assert_close(product, expected.flatten(tensors[0].dim()).sum(-1))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.jacfwd(f)(x),
        lambda f, x: torch.func.hessian(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.linearize(f, x),
        lambda f, x: torch.func.grad(lambda x: torch.func.jvp(f, (x,), (x,))[1].sum())(x),
        lambda f, x: torch.vmap(torch.func.jacfwd(f))(torch.stack([x, x])),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_of_torch_func(name, transform):
    function, first, *rest = value_of(name)
    with pytest.raises(RuntimeError, match=r"forward-mode.*torch.func.vjp or jacrev.*functional"):
        transform(lambda value: function(value, *rest), first)


@pytest.mark.parametrize("name", NAMES)
def test_third_derivatives_are_right_or_refused(name):
    function, *tensors = value_of(name)

    def second(value):  # a component of the second derivative, smooth in the value
        first = torch.autograd.grad(
            function(value, *tensors[1:]).square().sum(), value, create_graph=True
        )[0]
        return torch.autograd.grad(first.square().sum(), value, create_graph=True)[0].sum()

    value = tensors[0].clone().requires_grad_()
    start = second(value)
    if name in TWICE:
        with pytest.raises(RuntimeError, match=r"has no third derivative.*vhp or hessian"):
            torch.autograd.grad(start, value)
        return
    (slope,) = torch.autograd.grad(start, value)
    direction = torch.randn_like(value)
    up, down = (second((value + h * direction).detach().requires_grad_()) for h in (1e-5, -1e-5))
    expected = (up - down) / 2e-5
    torch.testing.assert_close((slope * direction).sum(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_inference_tensors_are_named(name):
    function, *tensors = value_of(name)
    with torch.inference_mode():
        made = [t.clone() for t in tensors]
        function(*made)
    trained = torch.ones((), dtype=torch.float64, requires_grad=True)
    inputs = tensors[0] * trained, *made[1:]
    if len(made) == 1 or name == "vectors":  # nothing of the others is kept
        function(*inputs)
        return
    with pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\).*clone\(\)"):
        function(*inputs)
