"""The radial part of DimeNet's spherical basis, after the equations in csrc/spherical/spherical.h.

Once in plain torch, differentiable, and once in mpmath, to many digits.
"""

import math
from functools import cache

import mpmath
import numpy as np
import torch
from torch import Tensor

from .radial import cutoff_value


def spherical_bessel(order: int, a: Tensor) -> Tensor:
    """Poisson's integral, a^l / (2^(l+1) l!) ∫ cos(a t) (1 − t²)^l dt over −1 … 1, by Gauss's rule.

    In float64 it is good to 1e-12 of the function's largest values for l < 7 and a < 30.
    """
    nodes, weights = (torch.from_numpy(v).to(a) for v in np.polynomial.legendre.leggauss(48))
    integral = (torch.cos(a.unsqueeze(-1) * nodes) * (weights * (1 - nodes**2) ** order)).sum(-1)
    return a**order / (2 ** (order + 1) * math.factorial(order)) * integral


def spherical_radial(
    distances: Tensor, zeros: Tensor, norms: Tensor, *, cutoff: float, exponent: int
) -> Tensor:
    """``[E, L R]``."""
    x = distances.unsqueeze(1) / cutoff
    rows = [
        norms[order] * spherical_bessel(order, zeros[order] * x) / x for order in range(len(zeros))
    ]
    return torch.cat(rows, 1) * cutoff_value(distances, "envelope", cutoff, exponent).unsqueeze(1)


mpmath.mp.dps = 40


@cache
def exact_zero(order: int, n: int) -> mpmath.mpf:
    return mpmath.besseljzero(order + mpmath.mpf(1) / 2, n)


def exact_bessel(order: int, a: mpmath.mpf) -> mpmath.mpf:
    return mpmath.sqrt(mpmath.pi / (2 * a)) * mpmath.besselj(order + mpmath.mpf(1) / 2, a)


def exact_function(order: int, n: int, cutoff: float, p: int = 6):
    """The function of order l and the n-th zero (n = 1, 2, ...), of distances in the cutoff."""
    zero = exact_zero(order, n)
    norm = mpmath.sqrt((2 * order + 1) / (2 * mpmath.pi)) / abs(exact_bessel(order + 1, zero))

    def function(distance: mpmath.mpf) -> mpmath.mpf:
        x = distance / mpmath.mpf(cutoff)
        u = 1 - mpmath.mpf((p + 1) * (p + 2)) / 2 * x**p + p * (p + 2) * x ** (p + 1)
        u -= mpmath.mpf(p * (p + 1)) / 2 * x ** (p + 2)
        return norm * u / x * exact_bessel(order, zero * x)

    return function


def local_magnitude(order: int, n: int, distance: float, cutoff: float, p: int = 6) -> float:
    """The function with its oscillation taken off: what errors near its zeros are measured by."""
    zero, x = exact_zero(order, n), mpmath.mpf(distance) / mpmath.mpf(cutoff)
    a = zero * x
    here, next_order = exact_bessel(order, a), exact_bessel(order + 1, a)
    value = exact_function(order, n, cutoff, p)(mpmath.mpf(distance))
    return float(abs(value / here) * mpmath.hypot(here, next_order))
