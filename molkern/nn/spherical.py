"""DimeNet's spherical basis, its radial part: distances [E] → [E, L, R]."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from .. import ops
from ..ops._arguments import checked, explained
from .precision import Float64Module

MOST_ORDERS = 16  # of the kernels


@checked
def spherical_bessel_zeros(num_orders: int, num_zeros: int) -> Tensor:
    """The first positive zeros of the spherical Bessel functions ``j_0 … j_{num_orders−1}``.

    Those of ``j_0`` are multiples of π; between two neighbors among the zeros of one order lies
    exactly one of the next. Found by Brent's method (scipy).

    Args:
        num_orders: L, at least 1.
        num_zeros: R, at least 1.

    Returns:
        ``[L, R]``, float64, ascending in each row, to the last places.

    Raises:
        ValueError: no orders or no zeros.

    >>> import molkern
    >>> [round(z, 6) for z in molkern.nn.spherical_bessel_zeros(2, 3)[1].tolist()]
    [4.493409, 7.725252, 10.904122]
    """
    from scipy.optimize import brentq
    from scipy.special import spherical_jn

    _check("num_orders", num_orders)
    _check("num_zeros", num_zeros)
    row = [math.pi * n for n in range(1, num_orders + num_zeros)]
    rows = [row[:num_zeros]]
    for order in range(1, num_orders):
        row = [
            brentq(lambda a, order=order: spherical_jn(order, a), low, high, xtol=1e-15, rtol=1e-15)
            for low, high in pairwise(row)
        ]
        rows.append(row[:num_zeros])
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


class SphericalRadialBasis(Float64Module):
    """Spherical Bessel functions with DimeNet's envelope, the radial part of its 2D basis.

    Klicpera et al., ICLR 2020, eqs. 6 and 8; with x = d / cutoff and z_ln the n-th zero of j_l

    ``u(x) / x · j_l(z_ln x) · √(2 / j_{l+1}(z_ln)²) · √((2l + 1) / 4π)``, 0 beyond the cutoff.

    The last factor is that of the spherical harmonic Y_l⁰, so that the whole basis is this times
    the Legendre polynomial P_l(cos α). The factor √(1 / cutoff³) of the paper is left out, as in
    the published code. Computed in float64, whatever the type of the distances, see
    :func:`molkern.ops.spherical_radial`, also for distances near zero.

    Args:
        num_spherical: number of orders L, 1 to 16; 7 in DimeNet.
        num_radial: number of functions R of each order; 6 in DimeNet.
        cutoff: in the unit of the distances.
        exponent: p of the envelope u; 6 in DimeNet, whose code calls it "envelope exponent 5".
        zeros_dtype: float32 rounds the zeros (not the norms computed from them) to float32, as
            the published code and PyTorch Geometric do, to reproduce their numbers.

    Shape: distances ``[E]`` → ``[E, L, R]``, of the type of the distances.

    Raises:
        ValueError: no functions, too many orders, or a cutoff that is not positive and finite.
        TypeError: ``zeros_dtype`` is not float32 or float64.

    >>> import torch, molkern
    >>> basis = molkern.nn.SphericalRadialBasis(7, 6, cutoff=5.0)
    >>> distances = torch.tensor([1.0, 2.5, 5.0], requires_grad=True)
    >>> y = basis(distances)
    >>> y.shape
    torch.Size([3, 7, 6])
    >>> y.square().sum().backward()
    >>> bool(distances.grad[2] == 0)
    True
    """

    zeros: Tensor
    norms: Tensor

    fixed = frozenset({"cutoff", "exponent"})

    @checked
    def __init__(
        self,
        num_spherical: int,
        num_radial: int,
        cutoff: float,
        *,
        exponent: int = 6,
        zeros_dtype: torch.dtype = torch.float64,
    ):
        super().__init__()
        _check("num_spherical", num_spherical)
        _check("num_radial", num_radial)
        if num_spherical > MOST_ORDERS:
            raise ValueError(f"num_spherical must be at most {MOST_ORDERS}, got {num_spherical}")
        if not 0 < cutoff < math.inf:
            raise ValueError(f"cutoff must be positive and finite, got {cutoff}")
        if not 1 <= exponent <= 100:
            raise ValueError(f"exponent must be 1 to 100, got {exponent}")
        if zeros_dtype not in (torch.float32, torch.float64):
            raise TypeError(f"zeros_dtype must be torch.float32 or float64, got {zeros_dtype}")
        zeros = spherical_bessel_zeros(num_spherical, num_radial).to(zeros_dtype).double()
        device = torch.get_default_device()
        self.register_buffer("zeros", zeros.to(device))
        self.register_buffer("norms", _norms(zeros).to(device))
        self.cutoff, self.exponent = float(cutoff), exponent

    @explained
    def forward(self, distances: Tensor) -> Tensor:
        y = ops.spherical_radial(
            distances, self.zeros, self.norms, cutoff=self.cutoff, exponent=self.exponent
        )
        return y.unflatten(1, self.zeros.shape)


def _norms(zeros: Tensor) -> Tensor:
    """√(2 / j_{l+1}(z_ln)²) √((2l + 1) / 4π)."""
    from scipy.special import spherical_jn

    orders = torch.arange(len(zeros), dtype=torch.float64, device="cpu").unsqueeze(1)
    after = torch.from_numpy(spherical_jn(orders.numpy().astype(int) + 1, zeros.numpy()))
    return ((2 * orders + 1) / (2 * math.pi)).sqrt() / after.abs()


def _check(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
