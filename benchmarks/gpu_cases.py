"""What the GPU run computes: every operation at every size, with the bytes that it must move.

Bytes count each array once: read inputs that do not fit a cache, written results. Features of atoms
are counted once, for neighbors find them in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from systems import water

import molkern
from molkern.ops import cfconv, radial_basis, spherical_radial

CUTOFF, FUNCTIONS, FEATURES = 5.0, 50, 128
ORDERS, RADIAL = 7, 6  # of DimeNet
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

    def cases(self) -> Iterator[Case]:
        yield from self.geometry()
        yield from self.radial()
        yield from self.spherical()
        yield from self.convolution()

    def memory(self) -> int:
        """Bytes that the largest case needs, about: filters, products and gradients in torch."""
        return 6 * 4 * FEATURES * self.edges


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


def first(y: torch.Tensor, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(y, [x], g, create_graph=True)


def gradient(y: torch.Tensor, inputs: list[torch.Tensor], g: torch.Tensor) -> Run:
    return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)


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
    peer = Peer(cutoff=CUTOFF, interaction_graph=graph).to(device) if Peer else None
    if peer is None:
        model = molkern.models.SchNet(128, 128, 6, FUNCTIONS, cutoff=CUTOFF).to(device).eval()
    else:
        model = molkern.interop.from_pyg(peer).to(device).eval()
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
