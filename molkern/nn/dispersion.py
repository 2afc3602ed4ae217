"""Dispersion energies by Grimme's D3 with Becke-Johnson damping."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import ops
from ..graph import NeighborList
from ..ops._arguments import checked, explained
from ..ops._modes import ordinary_tensors
from .basis import softplus, softplus_inverse
from .fixed import FixedModule
from .precision import Float64Module

#: Units of PhysNet's published code: the bohr in Å and the hartree in eV.
BOHR = 0.52917726
HARTREE = 27.21138505

#: s6, s8, a1, a2 for Hartree-Fock, the values PhysNet starts from.
HARTREE_FOCK = (1.0, 0.9171, 0.3385, 2.883)


class D3Tables(Float64Module):
    """What D3 knows of the elements, from tad-dftd3: C6, radii, ⟨r⁴⟩/⟨r²⟩; kept in float64."""

    c6: Tensor
    coordination: Tensor
    radii: Tensor
    r4_over_r2: Tensor

    def __init__(self) -> None:
        super().__init__()
        try:
            import tad_dftd3
            from tad_mctc.data import radii
        except ImportError as error:
            raise ImportError(
                "dispersion needs the package tad-dftd3: pip install 'molkern[dispersion]' or "
                "pip install tad-dftd3"
            ) from error
        with ordinary_tensors():
            reference = tad_dftd3.reference.Reference(
                dtype=torch.float64, device=torch.device("cpu")
            )
            tables = {
                "c6": reference.c6,
                "coordination": reference.cn,
                "radii": radii.COV_D3(dtype=torch.float64),
                "r4_over_r2": tad_dftd3.data.R4R2(dtype=torch.float64),
            }
        default = torch.get_default_device()
        for name, value in tables.items():  # not in the state: they come with the package
            # On "meta" they would be lost, as no file has them
            made = value if default.type == "meta" else value.to(default)
            self.register_buffer(name, made, persistent=False)

    def weights(self, numbers: Tensor, coordination: Tensor) -> Tensor:
        """Weights of an element's reference systems, ``[N, 7]``."""
        from tad_dftd3.model import weight_references
        from tad_dftd3.reference import Reference

        reference = Reference(self.coordination, self.c6)
        return weight_references(numbers, coordination.double(), reference)


class D3Dispersion(FixedModule):
    """Grimme's D3 dispersion with Becke-Johnson damping, per atom, ``[N]``; trainable.

    ``E_i = −½ Σ_j (s6 C6_ij f6(d_ij) + s8 C8_ij f8(d_ij))`` with ``f_n(d) = 1 / (dⁿ + D_ijⁿ)``,
    ``C8 / C6 = Q_ij``, ``D = a1 √Q + a2``, and C6 interpolated by coordination numbers; two-body
    terms only. Grimme et al., J. Chem. Phys. 132, 154104 (2010) and J. Comput. Chem. 32, 1456
    (2011); Unke & Meuwly, JCTC 15, 3678 (2019). The tables of the elements and the weights
    of their references are those of the package tad-dftd3 (``pip install 'molkern[dispersion]'``),
    in which rare gases have later values of ⟨r⁴⟩/⟨r²⟩ than in PhysNet's own tables.

    With a ``cutoff`` energy and force go to zero there, by the shift of PhysNet's published code:
    ``f_n(d) − f_n(r_c) − (d − r_c) f_n'(r_c)``; coordination numbers are switched off over the last
    bohr before it. With ``switch_start`` both, coordination numbers and energies, are switched off
    between there and the cutoff instead (Asparagus). Without a cutoff the list must hold all pairs.

    s6, s8, a1 and a2 are trained through a softplus, which keeps them positive. PhysNet's published
    code has this term on by default; the numbers that molkern's PhysNet is tested against were
    made with it off, so this layer is held against tad-dftd3 itself.

    Args:
        cutoff: r_c in the unit of the distances, or None to take all pairs of the list.
        switch_start: see above; at the cutoff itself for none but the shift.
        parameters: s6, s8, a1 and a2 (in bohr) to start from; those of Hartree-Fock by default.
        trainable: whether they are parameters.
        bohr, hartree: in the units of length and energy; by default in Å and eV.

    Raises:
        ImportError: tad-dftd3 is not installed.
        ValueError: a cutoff or parameter that is not positive and finite, or a switch that starts
            beyond the cutoff or has none.

    >>> import torch, molkern
    >>> numbers, positions = torch.tensor([10, 10]), torch.tensor([[0.0, 0, 0], [3, 0, 0]])
    >>> neighbors = molkern.neighbor_list(positions, cutoff=10.0)
    >>> dispersion = molkern.nn.D3Dispersion()
    >>> dispersion(numbers, neighbors.distances(positions), neighbors).shape
    torch.Size([2])
    """

    raw: Tensor

    fixed = frozenset({"cutoff", "switch_start", "bohr", "hartree"})

    @checked
    def __init__(
        self,
        cutoff: float | None = None,
        *,
        switch_start: float | None = None,
        parameters: Sequence[float] = HARTREE_FOCK,
        trainable: bool = True,
        bohr: float = BOHR,
        hartree: float = HARTREE,
    ):
        super().__init__()
        _check(cutoff, switch_start, parameters, bohr, hartree)
        raw = softplus_inverse(torch.tensor(list(parameters), dtype=torch.float64))
        if trainable:
            self.raw = nn.Parameter(raw.to(torch.get_default_dtype()))
        else:
            self.register_buffer("raw", raw)
        self.tables = D3Tables()
        self.bohr, self.hartree = float(bohr), float(hartree)
        self.cutoff = None if cutoff is None else float(cutoff)
        self.switch_start = None if switch_start is None else float(switch_start)

    @property
    def coefficients(self) -> Tensor:
        """s6, s8, a1 and a2 as they stand in the formula, ``[4]``."""
        return softplus(self.raw)

    @explained
    def forward(self, numbers: Tensor, distances: Tensor, neighbors: NeighborList) -> Tensor:
        """numbers ``[N]``, distances ``[E]`` → energies ``[N]``.

        Raises:
            ValueError: an atomic number that D3 does not know (on the CPU only).
        """
        self._check_numbers(numbers)
        dtype, tables = distances.dtype, self.tables
        d = (distances / self.bohr).clamp(min=1e-3)  # finite for padding and coinciding atoms
        receivers, senders = neighbors.receivers.long(), neighbors.senders.long()
        z_i, z_j = numbers[receivers], numbers[senders]
        weights = tables.weights(numbers, self._coordination(z_i, z_j, d, neighbors)).to(dtype)
        w_i, w_j = ops.gather_receivers(weights, neighbors), ops.gather_senders(weights, neighbors)
        table = tables.c6[z_i, z_j].to(dtype)
        c6 = ((table @ w_j.unsqueeze(2)).squeeze(2) * w_i).sum(1)
        quotient = (3 * tables.r4_over_r2[z_i] * tables.r4_over_r2[z_j]).to(dtype)
        s6, s8, a1, a2 = self.coefficients.to(dtype).unbind()
        damping = a1 * quotient.sqrt() + a2
        pair = s6 * self._damped(d, damping, 6) + s8 * quotient * self._damped(d, damping, 8)
        pair = -0.5 * self.hartree * c6 * pair
        if self.switch_start is not None:
            pair = pair * self._switch(d)
        return ops.sum_edges(pair.unsqueeze(1), neighbors).squeeze(1)

    def _coordination(self, z_i: Tensor, z_j: Tensor, d: Tensor, neighbors: NeighborList) -> Tensor:
        radii = (self.tables.radii[z_i] + self.tables.radii[z_j]).to(d.dtype)
        counts = torch.sigmoid(16.0 * (radii / d - 1.0))
        counts = counts * ((z_i > 0) & (z_j > 0))  # number 0 is no atom
        if self.cutoff is not None:
            counts = counts * self._switch(d)
        return ops.sum_edges(counts.unsqueeze(1), neighbors).squeeze(1)

    def _switch(self, d: Tensor) -> Tensor:
        """From one at the start of the switch to zero at the cutoff; d in bohr."""
        if self.cutoff is None:
            return torch.ones_like(d)
        end = self.cutoff / self.bohr
        start = end - 1.0 if self.switch_start is None else self.switch_start / self.bohr
        if start >= end:
            return (d < end).to(d.dtype)
        x = ((end - d) / (end - start)).clamp(0.0, 1.0)
        return ((6 * x - 15) * x + 10) * x**3

    def _damped(self, d: Tensor, damping: Tensor, order: int) -> Tensor:
        """f_n, force-shifted if there is a cutoff; d in bohr."""
        damped = damping**order
        value = 1 / (d**order + damped)
        if self.cutoff is None:
            return value
        end = self.cutoff / self.bohr
        last = 1 / (end**order + damped)
        value = value - last + order * end**order * last.square() * (d / end - 1)
        return torch.where(d < end, value, 0.0)

    def _check_numbers(self, numbers: Tensor) -> None:
        if not numbers.is_cpu or torch.compiler.is_compiling() or numbers.numel() == 0:
            return
        known = self.tables.c6.shape[0]
        if int(numbers.max()) >= known or int(numbers.min()) < 0:
            wrong = int(((numbers < 0) | (numbers >= known)).nonzero()[0])
            raise ValueError(
                f"atom {wrong} has number {int(numbers[wrong])}, but D3 knows 1 to {known - 1}"
            )

    def extra_repr(self) -> str:
        return f"cutoff={self.cutoff}, switch_start={self.switch_start}"


def _check(
    cutoff: float | None,
    switch_start: float | None,
    parameters: Sequence[float],
    bohr: float,
    hartree: float,
) -> None:
    if len(parameters) != 4:
        raise ValueError(f"parameters must be s6, s8, a1 and a2, got {len(parameters)} numbers")
    checked = dict(zip(("s6", "s8", "a1", "a2"), parameters, strict=True))
    checked |= {"bohr": bohr, "hartree": hartree}
    if cutoff is not None:
        checked["cutoff"] = cutoff
    for name, value in checked.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if switch_start is not None and (cutoff is None or not 0 <= switch_start <= cutoff):
        raise ValueError(
            f"switch_start must lie between 0 and the cutoff, got {switch_start} and {cutoff}"
        )
