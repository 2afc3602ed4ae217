"""What the GPU run computes: every operation at every size, with the bytes that it must move.

Bytes count each array once: read inputs that do not fit a cache, written results. Features of atoms
are counted once, for neighbors find them in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from systems import water

import molkern
from molkern.ops import (
    SplineGrid,
    cfconv,
    dtnn_message,
    radial_basis,
    spherical_radial,
    spline_cfconv,
    triplet_sum,
)

CUTOFF, FUNCTIONS, FEATURES = 5.0, 50, 128
ORDERS, RADIAL, CHANNELS = 7, 6, 8  # of DimeNet
INTERVALS = 512  # of splines
FACTORS, MESSAGES = 60, 30  # of DTNN
# DimeNet's and DimeNet++'s sums over triplets: features, angle, whether channels are contracted.
TRIPLETS = {"dimenet": (128, "at_i", False), "dimenet_plusplus": (64, "plusplus", True)}
Run = Callable[[], object]


class Case(NamedTuple):
    """``run`` is molkern's; ``plain`` and ``compiled`` are the same in torch, where it has it."""

    name: str
    bytes: int
    run: Run
    plain: Run | None = None
    compiled: Run | None = None


class Water:
    """Water of about so many atoms, its neighbor list, and random features and filters."""

    def __init__(self, atoms: int, device: torch.device):
        system = water(atoms // 3)
        self.device = device
        self.positions = torch.tensor(system.positions, dtype=torch.float32, device=device)
        self.cell = torch.tensor(system.cell, dtype=torch.float32, device=device)
        self.neighbors = molkern.neighbor_list(self.positions, CUTOFF, self.cell)
        self.atoms, self.edges = self.neighbors.num_atoms, self.neighbors.num_edges

    def geometry(self) -> Iterator[Case]:
        n, e, nl = self.atoms, self.edges, self.neighbors
        x, cell = self.positions, self.cell
        # With a capacity nothing waits for the device, so that the time is the kernels'.
        yield Case(
            "neighbor_list",
            4 * n + 24 * e,
            lambda: molkern.neighbor_list(x, CUTOFF, cell, capacity=e),
        )
        senders, receivers = nl.edge_index
        shifts = nl.shifts.to(x.dtype)

        def plain() -> torch.Tensor:
            return (x[senders] + shifts @ cell - x[receivers]).norm(dim=1)

        yield Case("distances", 20 * e, lambda: nl.distances(x, cell), plain, torch.compile(plain))
        moved = x.clone().requires_grad_()
        d = nl.distances(moved, cell)
        g = torch.randn_like(d)
        # The cotangent, indices and shifts for the vectors; these written, and read from both ends.
        yield Case("distances_backward", (20 + 12 + 24) * e, gradient(d, [moved], g))

    def radial(self) -> Iterator[Case]:
        e, k = self.edges, FUNCTIONS
        d = self.neighbors.distances(self.positions, self.cell).requires_grad_()
        p = torch.linspace(0, CUTOFF, k, device=self.device)
        q = torch.full_like(p, 0.5 / float(p[1]) ** 2)

        def ours(d: torch.Tensor) -> torch.Tensor:
            return radial_basis(d, p, q, cutoff_function="cosine", cutoff=CUTOFF)

        def plain(d: torch.Tensor) -> torch.Tensor:
            envelope = 0.5 * (torch.cos(torch.pi / CUTOFF * d) + 1) * (d < CUTOFF)
            return torch.exp(-q * (d.unsqueeze(1) - p) ** 2) * envelope.unsqueeze(1)

        still = d.detach()
        fast = torch.compile(plain)
        once = 4 * e * (1 + k)
        runs = [lambda: ours(still), lambda: plain(still), lambda: fast(still)]
        yield Case("radial_basis", once, *runs)
        y, z = ours(d), plain(d)
        g = torch.randn_like(y).requires_grad_()
        once = 4 * e * (2 + k)
        yield Case("radial_backward", once, gradient(y, [d], g), gradient(z, [d], g))
        (gd,), (hd,) = first(y, d, g), first(z, d, g)
        h = torch.randn_like(gd)
        twice = 4 * e * (3 + 2 * k)
        yield Case("radial_double", twice, gradient(gd, [d, g], h), gradient(hd, [d, g], h))

    def spherical(self) -> Iterator[Case]:
        e, k = self.edges, ORDERS * RADIAL
        d = self.neighbors.distances(self.positions, self.cell).requires_grad_()
        basis = molkern.nn.SphericalRadialBasis(ORDERS, RADIAL, CUTOFF).to(self.device)
        zeros, norms = basis.zeros, basis.norms

        def ours(d: torch.Tensor) -> torch.Tensor:
            return spherical_radial(d, zeros, norms, cutoff=CUTOFF)

        def plain(d: torch.Tensor) -> torch.Tensor:
            return spherical_recurrence(d, zeros, norms)

        still = d.detach()
        fast = torch.compile(plain)
        once = 4 * e * (1 + k)
        runs = [lambda: ours(still), lambda: plain(still), lambda: fast(still)]
        yield Case("spherical_radial", once, *runs)
        y, z = ours(d), plain(d)
        g = torch.randn_like(y).requires_grad_()
        once = 4 * e * (2 + k)
        yield Case("spherical_backward", once, gradient(y, [d], g), gradient(z, [d], g))
        (gd,), (hd,) = first(y, d, g), first(z, d, g)
        h = torch.randn_like(gd)
        twice = 4 * e * (3 + 2 * k)
        yield Case("spherical_double", twice, gradient(gd, [d, g], h), gradient(hd, [d, g], h))

    def convolution(self) -> Iterator[Case]:
        n, e, f, nl = self.atoms, self.edges, FEATURES, self.neighbors
        x = torch.randn(n, f, device=self.device, requires_grad=True)
        w = torch.randn(e, f, device=self.device, requires_grad=True)
        senders, receivers = nl.edge_index

        def plain(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x).index_add(0, receivers, x[senders] * w)

        once = 4 * f * (e + 2 * n) + 4 * e
        still = x.detach(), w.detach()
        fast = torch.compile(plain)
        runs = [lambda: cfconv(*still, nl), lambda: plain(*still), lambda: fast(*still)]
        yield Case("cfconv", once, *runs)
        y, z = cfconv(x, w, nl), plain(x, w)
        g = torch.randn_like(y)
        yield Case("cfconv_backward_features", once + 4 * e, gradient(y, [x], g))
        yield Case("cfconv_backward_filters", once, gradient(y, [w], g))
        both = 2 * once + 4 * e
        yield Case("cfconv_backward", both, gradient(y, [x, w], g), gradient(z, [x, w], g))

    def splines(self) -> Iterator[Case]:
        """The table stays in the cache, and what is read of it there bounds these."""
        n, e, f, nl = self.atoms, self.edges, FEATURES, self.neighbors
        grid = SplineGrid(0.0, CUTOFF, INTERVALS)
        d = nl.distances(self.positions, self.cell).detach().requires_grad_()
        x = torch.randn(n, f, device=self.device, requires_grad=True)
        table = torch.randn(grid.rows, f, device=self.device, requires_grad=True)
        bins = grid.bins(d, nl)
        senders, receivers = nl.edge_index

        def ours(*inputs: torch.Tensor) -> torch.Tensor:
            x, table, d = inputs
            return spline_cfconv(x, table, d, nl, grid, bins=bins)

        def plain(*inputs: torch.Tensor) -> torch.Tensor:
            x, table, d = inputs
            return torch.zeros_like(x).index_add(0, receivers, x[senders] * cubic(d, table))

        yield Case("spline_bins", 24 * e, lambda: grid.bins(d, nl))
        leaves, both = [x, table, d], [x, d]
        still = [t.detach() for t in leaves]
        fast = torch.compile(plain)
        rows, sides = 4 * f * n, 8 * e  # of features; a distance and a neighbor each
        runs = [lambda: ours(*still), lambda: plain(*still), lambda: fast(*still)]
        yield Case("spline_cfconv", 2 * rows + sides, *runs)
        y, fits = ours(*leaves), self.has_room(16 * 4 * f * e)
        z = plain(*leaves) if fits else None
        g = torch.randn_like(y).requires_grad_()
        for name, inputs, once in (
            ("backward", both, 3 * rows + 2 * sides),
            ("backward_table", leaves, 5 * rows + 4 * sides),
        ):
            runs = [gradient(y, inputs, g)] + ([gradient(z, inputs, g)] if fits else [])
            yield Case(f"spline_cfconv_{name}", once, *runs)
        h = [torch.randn_like(t) for t in leaves]
        twice = 10 * rows + 8 * sides
        runs = [product(y, leaves, g, h)] + ([product(z, leaves, g, h)] if fits else [])
        yield Case("spline_cfconv_double", twice, *runs)

    def dtnn(self) -> Iterator[Case]:
        """DTNN's messages, which products of a matrix bound; the table as for the splines."""
        n, e, k, c, nl = self.atoms, self.edges, FACTORS, MESSAGES, self.neighbors
        grid = SplineGrid(0.0, CUTOFF, INTERVALS)
        d = nl.distances(self.positions, self.cell).detach().requires_grad_()
        x = torch.randn(n, k, device=self.device, requires_grad=True)
        table = torch.randn(grid.rows, k, device=self.device, requires_grad=True)
        weight = torch.randn(c, k, device=self.device, requires_grad=True)
        bins = grid.bins(d, nl)
        senders, receivers = nl.edge_index

        def ours(*inputs: torch.Tensor) -> torch.Tensor:
            return dtnn_message(*inputs, nl, grid, bins=bins)

        def plain(*inputs: torch.Tensor) -> torch.Tensor:
            x, table, d, weight = inputs
            messages = torch.tanh((x[senders] * cubic(d, table)) @ weight.t())
            return messages.new_zeros(n, c).index_add(0, receivers, messages)

        leaves = [x, table, d, weight]
        still = [t.detach() for t in leaves]
        fits, rows = self.has_room(16 * 4 * k * e), 4 * (k + c) * n + 8 * e
        runs = [lambda: ours(*still)] + ([lambda: plain(*still)] if fits else [])
        yield Case("dtnn_message", rows, *runs)
        y = ours(*leaves)
        z = plain(*leaves) if fits else None
        g = torch.randn_like(y).requires_grad_()
        runs = [gradient(y, leaves, g)] + ([gradient(z, leaves, g)] if fits else [])
        yield Case("dtnn_message_backward", 3 * rows, *runs)

    def triplets(self) -> Iterator[Case]:
        """Of the two models' shapes. The peer lists all triplets: only where they are few."""
        triplets = self.edges * (self.edges // max(self.atoms, 1))
        vectors = self.neighbors.vectors(self.positions, self.cell).detach()
        for name, (features, angle, weighted) in TRIPLETS.items():
            rows = features if weighted else CHANNELS * features
            fits = self.has_room(12 * 4 * rows * triplets)
            listed = TripletList(self.neighbors) if fits else None
            yield from self.triplet_cases(name, vectors, features, angle, weighted, listed)

    def triplet_cases(
        self, name: str, v: torch.Tensor, f: int, angle: str, weighted: bool, listed: Any
    ) -> Iterator[Case]:
        e, size = self.edges, {"device": self.device}
        x = torch.randn(e, f, **size)
        q = torch.randn(e, ORDERS, CHANNELS, **size)
        w = torch.randn(f, CHANNELS, **size) if weighted else None
        inputs = [t for t in (x, q, v, w) if t is not None]
        rows = f if weighted else CHANNELS * f
        methods = ["direct"] if angle == "at_i" else ["direct", "moments"]
        for method in methods:
            last = method == methods[-1]

            def ours(*inputs: torch.Tensor, method: str = method) -> torch.Tensor:
                weight = inputs[3] if weighted else None
                return triplet_sum(*inputs[:3], self.neighbors, weight, angle=angle, method=method)

            def plain(*inputs: torch.Tensor) -> torch.Tensor:
                return listed(*inputs[:3], inputs[3] if weighted else None, angle)

            full = f"triplet_sum_{name}_{method}"
            read = 4 * e * (f + ORDERS * CHANNELS + 3)
            once = read + 4 * e * rows
            beside = listed is not None and last
            # The peer is not compiled: its number of triplets is what the run is about.
            yield Case(
                full, once, lambda o=ours: o(*inputs), (lambda: plain(*inputs)) if beside else None
            )
            leaves = [t.clone().requires_grad_() for t in inputs]
            y = ours(*leaves)
            g = torch.randn_like(y).requires_grad_()
            z = plain(*leaves) if beside else None
            both = 2 * read + 4 * e * rows
            yield Case(
                f"{full}_backward",
                both,
                gradient(y, leaves, g),
                gradient(z, leaves, g) if z is not None else None,
            )
            h = [torch.randn_like(t) for t in leaves]
            yield Case(
                f"{full}_double",
                3 * read + 8 * e * rows,
                product(y, leaves, g, h),
                product(z, leaves, g, h) if z is not None else None,
            )

    def cases(self) -> Iterator[Case]:
        yield from self.geometry()
        yield from self.radial()
        yield from self.spherical()
        yield from self.convolution()
        yield from self.splines()
        yield from self.dtnn()
        # DimeNet's sums, their cotangents and derivatives by them.
        if self.has_room(6 * 4 * CHANNELS * FEATURES * self.edges):
            yield from self.triplets()

    def memory(self) -> int:
        """Bytes that the largest case needs, about: filters, products and gradients in torch."""
        return 6 * 4 * FEATURES * self.edges

    def has_room(self, needed: int) -> bool:
        """For so many bytes beside what is there, with some to spare."""
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 2**33
        return needed < 0.8 * free


def spherical_recurrence(d: torch.Tensor, zeros: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """DimeNet's spherical radial functions in the type of the distances, by the recurrence from
    sine and cosine, which loses the digits of high orders at short range; exponent 6."""
    x = (d / CUTOFF).unsqueeze(1)
    u = (1 - 28 * x**6 + 48 * x**7 - 21 * x**8) / x * (x < 1)
    rows = []
    for order, (zero, norm) in enumerate(zip(zeros.to(d), norms.to(d), strict=True)):
        a = zero * x
        low, high = a.cos() / a, a.sin() / a
        for k in range(order):
            low, high = high, (2 * k + 1) / a * high - low
        rows.append(norm * u * high)
    return torch.cat(rows, 1)


def cubic(d: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Filters of all edges as cubic splines, zero beyond the cutoff."""
    t = d * (INTERVALS / CUTOFF)
    m = t.detach().long().clamp(0, INTERVALS - 1)
    u = (t - m).unsqueeze(1)
    filters = (1 - u) ** 3 * table[m] + (3 * u**3 - 6 * u**2 + 4) * table[m + 1]
    filters = filters + (1 + 3 * u + 3 * u**2 - 3 * u**3) * table[m + 2] + u**3 * table[m + 3]
    return filters / 6 * (d < CUTOFF).unsqueeze(1)


def first(y: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(y, [x], g, create_graph=True)


def gradient(y: torch.Tensor, inputs: list[torch.Tensor], g: torch.Tensor) -> Run:
    return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)


def product(y: Any, inputs: list[torch.Tensor], g: torch.Tensor, h: list[torch.Tensor]) -> Run:
    """The derivative of <h, gradient> by the inputs and g."""
    grads = torch.autograd.grad(y, inputs, g, create_graph=True)
    return lambda: torch.autograd.grad(grads, [*inputs, g], h, retain_graph=True)


class TripletList:
    """All triplets of a neighbor list, and the sum over them in torch."""

    def __init__(self, neighbors: molkern.NeighborList):
        senders = neighbors.senders.long()
        row_ptr = neighbors.row_ptr.long()
        counts = (row_ptr[1:] - row_ptr[:-1])[senders]
        ji = torch.arange(len(senders), device=senders.device).repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        kj = torch.arange(len(ji), device=ji.device) - before[ji] + row_ptr[senders][ji]
        kept = kj != neighbors.reverse_edges().long()[ji]
        self.kj, self.ji = kj[kept], ji[kept]

    def __call__(
        self, x: torch.Tensor, q: torch.Tensor, v: torch.Tensor, w: torch.Tensor | None, angle: str
    ) -> torch.Tensor:
        to_k, to_j = v[self.kj], v[self.ji]
        if angle == "at_i":
            to_k = to_j + to_k
        c = torch.nn.functional.cosine_similarity(to_j, to_k, dim=1)
        polynomials = [torch.ones_like(c), c]
        for order in range(2, q.shape[1]):
            before, last = polynomials[-2:]
            polynomials.append(((2 * order - 1) * c * last - (order - 1) * before) / order)
        factors = torch.einsum("tlp,tl->tp", q[self.kj], torch.stack(polynomials, 1))
        if w is not None:
            y = (factors @ w.T) * x[self.kj]
        else:
            y = factors.unsqueeze(2) * x[self.kj].unsqueeze(1)
        return y.new_zeros(len(x), *y.shape[1:]).index_add(0, self.ji, y)


def flat(result: object) -> list[torch.Tensor]:
    """The tensors of a result, for comparison."""
    if isinstance(result, torch.Tensor):
        return [result.detach()]
    if isinstance(result, molkern.NeighborList):
        return [result.row_ptr, result.senders, result.shifts, result.reverse]
    return [t.detach() for t in result]


def models(device: torch.device) -> Iterator[Case]:
    """Energy and forces of SchNet for molecules of water, with the weights of PyG's beside it.

    ``bytes`` is 0: arithmetic bounds these.
    """
    try:
        from torch_geometric.nn import SchNet as Peer
    except ImportError:
        Peer = None
    torch.manual_seed(0)
    graph = GivenGraph()
    peer = Peer(cutoff=CUTOFF).to(device) if Peer else None
    if peer is None:
        model = molkern.models.SchNet(128, 128, 6, FUNCTIONS, cutoff=CUTOFF).to(device).eval()
    else:
        model = molkern.interop.from_pyg(peer).to(device).eval()
        peer.interaction_graph = graph
    for molecules in (1, 128, 1024):
        one = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        positions = (one + 0.05 * torch.rand(molecules, 3, 3)).reshape(-1, 3).to(device)
        numbers = torch.tensor([8, 1, 1], device=device).repeat(molecules)
        system = torch.arange(molecules, device=device).repeat_interleave(3)
        batch = molkern.AtomicBatch(numbers, positions, system)
        neighbors = batch.neighbors(CUTOFF)
        graph.edge_index = neighbors.edge_index
        runs = [model_forces(model, batch, neighbors)]
        if peer is not None:
            for module in (peer, torch.compile(peer)):
                runs.append(peer_forces(module, numbers, positions, system))
        yield Case(f"schnet_{molecules}_molecules", 0, *runs)


def model_forces(model: torch.nn.Module, batch: object, neighbors: object) -> Run:
    return lambda: tuple(model(batch, forces=True, neighbors=neighbors).values())


class GivenGraph:
    """Stands in for PyG's search: the list is made for both, outside of what is timed."""

    edge_index: torch.Tensor

    def __call__(
        self, positions: torch.Tensor, batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        senders, receivers = self.edge_index
        return self.edge_index, (positions[senders] - positions[receivers]).norm(dim=-1)


def peer_forces(
    peer: torch.nn.Module, numbers: torch.Tensor, positions: torch.Tensor, system: torch.Tensor
) -> Run:
    def run() -> tuple[torch.Tensor, ...]:
        x = positions.detach().requires_grad_()
        energy = peer(numbers, x, system)
        (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.squeeze(1), -gradient

    return run
