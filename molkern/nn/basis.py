"""Radial bases as layers: distances [E] → [E, K], fused with a cutoff function."""

import math

import torch
from torch import Tensor, nn

from .. import ops
from ..ops._arguments import checked, explained
from ..ops.radial import CUTOFF_FUNCTIONS
from .fixed import FixedModule
from .precision import Float64Module


def softplus(x: Tensor) -> Tensor:
    """``ln(1 + eˣ)``, exact in float64 (torch's own takes x from 20 on, off by 2e-9)."""
    return torch.nn.functional.softplus(x, threshold=35.0)


def softplus_inverse(y: Tensor) -> Tensor:
    """``ln(eʸ − 1)`` for positive y."""
    return y + torch.log(-torch.expm1(-y))


class RadialBasis(Float64Module):
    """What the bases with two parameters per function share: centres and widths.

    Positive ones are trained as ``raw_centers`` and ``raw_widths``, of which a softplus is used.
    """

    fixed = frozenset({"cutoff", "alpha", "cutoff_function", "positive"})
    centers: Tensor
    widths: Tensor
    raw_centers: Tensor
    raw_widths: Tensor

    @checked
    def __init__(self, centers: Tensor, width: float, trainable: bool, positive: bool = False):
        super().__init__()
        if positive and not trainable:
            raise ValueError("positive is about training: it needs trainable=True")
        self.keeps_float64, self.positive = not trainable, positive
        values = {"centers": centers, "widths": torch.full_like(centers, width)}
        for name, value in values.items():
            if positive:
                raw = softplus_inverse(value).to(torch.get_default_dtype())
                self.register_parameter(f"raw_{name}", nn.Parameter(raw))
            elif trainable:
                parameter = nn.Parameter(value.to(torch.get_default_dtype()))
                self.register_parameter(name, parameter)
            else:
                self.register_buffer(name, value)

    def functions(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Centres and coefficients ``[K]`` as they stand in the formula."""
        if self.positive:
            centers, widths = softplus(self.raw_centers), softplus(self.raw_widths)
        else:
            centers, widths = self.centers, self.widths
        return centers.to(dtype=dtype), widths.to(dtype=dtype)

    @torch.no_grad()
    def set_functions(self, centers: Tensor, widths: Tensor) -> None:
        """Takes these values, both ``[K]``, as centres and coefficients.

        Raises:
            ValueError: another shape, or a value that is not positive where it has to be.
        """
        for name, value in (("centers", centers), ("widths", widths)):
            target = getattr(self, f"raw_{name}" if self.positive else name)
            if value.shape != target.shape:
                raise ValueError(
                    f"{name} must have shape {list(target.shape)}, got {list(value.shape)}"
                )
            if self.positive and not bool((value > 0).all()):
                raise ValueError(f"{name} must be positive, got {float(value.min())}")
            target.copy_(softplus_inverse(value.double()) if self.positive else value)


class GaussianBasis(RadialBasis):
    """Gaussians ``exp(−γ_k (d − μ_k)²)``, centres evenly spaced from ``start`` to ``cutoff``.

    Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 6. By default γ = 1 / (2 Δμ²), as in
    PyTorch Geometric and SchNetPack; SchNet's 2018 code has γ = 10 Å⁻² on a grid of 0.1 Å.

    Args:
        num_functions: number of Gaussians K.
        cutoff: last centre, and range of the cutoff function, in the unit of the distances.
        start: first centre.
        coefficient: γ, if it is not to follow from the spacing.
        cutoff_function: ``"none"``, ``"cosine"``, ``"physnet"`` or ``"envelope"``.
        trainable: whether centres and coefficients are parameters.

    Raises:
        ValueError: no functions, a cutoff that is not positive and finite or not beyond ``start``,
            or an unknown cutoff function.

    >>> import torch, molkern
    >>> molkern.nn.GaussianBasis(50, cutoff=5.0)(torch.rand(7)).shape
    torch.Size([7, 50])
    """

    @checked
    def __init__(
        self,
        num_functions: int,
        cutoff: float,
        *,
        start: float = 0.0,
        coefficient: float | None = None,
        cutoff_function: str = "none",
        trainable: bool = False,
    ):
        _check(num_functions, cutoff, cutoff_function)
        if not start < cutoff:
            raise ValueError(f"start must be below the cutoff {cutoff}, got {start}")
        if coefficient is None:
            coefficient = 0.5 / ((cutoff - start) / max(num_functions - 1, 1)) ** 2
        centers = torch.linspace(start, cutoff, num_functions, dtype=torch.float64)
        super().__init__(centers, coefficient, trainable)
        self.cutoff, self.cutoff_function = float(cutoff), cutoff_function

    @explained
    def forward(self, distances: Tensor) -> Tensor:
        return ops.radial_basis(
            distances,
            *self.functions(distances.dtype),
            basis="gaussian",
            cutoff_function=self.cutoff_function,
            cutoff=self.cutoff,
        )


class ExponentialBasis(RadialBasis):
    """Gaussians of an exponential, ``c(d) exp(−β_k (e^{−αd} − μ_k)²)``.

    Unke & Meuwly, JCTC 15, 3678 (2019), eq. 7, with α = 1 Å⁻¹, centres from 1 down to e^{−α·cutoff}
    and β = (K / (2 (1 − e^{−α·cutoff})))². The same functions with α = 5 / cutoff and the cosine
    cutoff are the basis of torchmd-net and mlcg.

    Args:
        num_functions: number of functions K.
        cutoff: range of the cutoff function; α is in the inverse of its unit.
        alpha: α.
        cutoff_function: ``"physnet"``, ``"cosine"``, ``"envelope"`` or ``"none"``.
        trainable: whether μ and β are parameters.
        positive: whether they are trained through a softplus, which keeps them positive, as in
            PhysNet's published code; needs ``trainable``.

    Raises:
        ValueError: no functions, a cutoff or α that is not positive and finite, an unknown
            cutoff function, or ``positive`` without ``trainable``.

    >>> import torch, molkern
    >>> molkern.nn.ExponentialBasis(64, cutoff=10.0)(torch.rand(7)).shape
    torch.Size([7, 64])
    """

    @checked
    def __init__(
        self,
        num_functions: int,
        cutoff: float,
        *,
        alpha: float = 1.0,
        cutoff_function: str = "physnet",
        trainable: bool = False,
        positive: bool = False,
    ):
        _check(num_functions, cutoff, cutoff_function)
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be positive and finite, got {alpha}")
        last = math.exp(-alpha * cutoff)
        centers = torch.linspace(1.0, last, num_functions, dtype=torch.float64)
        width = (num_functions / (2.0 * (1.0 - last))) ** 2
        super().__init__(centers, width, trainable, positive)
        self.cutoff, self.alpha, self.cutoff_function = float(cutoff), float(alpha), cutoff_function

    @explained
    def forward(self, distances: Tensor) -> Tensor:
        return ops.radial_basis(
            distances,
            *self.functions(distances.dtype),
            basis="exponential",
            cutoff_function=self.cutoff_function,
            cutoff=self.cutoff,
            alpha=self.alpha,
        )


class BesselBasis(Float64Module):
    """Spherical Bessel functions of order 0, ``u(x) sin(f_k x) / x`` with x = d / cutoff.

    Klicpera et al., ICLR 2020, eq. 7, without the factor √(2/cutoff) that the published code leaves
    out; frequencies start at kπ.

    Args:
        num_functions: number of functions K.
        cutoff: in the unit of the distances.
        exponent: p of the envelope u.
        cutoff_function: ``"envelope"``, or another one.
        trainable: whether the frequencies are parameters.

    Raises:
        ValueError: no functions, a cutoff that is not positive and finite, or an unknown cutoff
            function.

    >>> import torch, molkern
    >>> molkern.nn.BesselBasis(6, cutoff=5.0)(torch.rand(7)).shape
    torch.Size([7, 6])
    """

    fixed = frozenset({"cutoff", "exponent", "cutoff_function"})

    @checked
    def __init__(
        self,
        num_functions: int,
        cutoff: float,
        *,
        exponent: int = 6,
        cutoff_function: str = "envelope",
        trainable: bool = True,
    ):
        super().__init__()
        _check(num_functions, cutoff, cutoff_function)
        self.keeps_float64 = not trainable
        frequencies = math.pi * torch.arange(1, num_functions + 1, dtype=torch.float64)
        if trainable:
            self.frequencies = nn.Parameter(frequencies.to(torch.get_default_dtype()))
        else:
            self.register_buffer("frequencies", frequencies)
        self.cutoff, self.exponent = float(cutoff), exponent
        self.cutoff_function = cutoff_function

    @explained
    def forward(self, distances: Tensor) -> Tensor:
        return ops.radial_basis(
            distances,
            self.frequencies.to(distances.dtype),
            basis="bessel",
            cutoff_function=self.cutoff_function,
            cutoff=self.cutoff,
            exponent=self.exponent,
        )


class CutoffFunction(FixedModule):
    """A cutoff function alone: distances ``[E]`` → ``[E, 1]``, zero from ``cutoff`` on.

    Args:
        name: ``"cosine"``, ``"physnet"``, ``"envelope"``, or ``"none"`` for 1 everywhere.
        cutoff: in the unit of the distances.
        exponent: p of the envelope.

    Raises:
        ValueError: an unknown name, or a cutoff that is not positive and finite.

    >>> import torch, molkern
    >>> molkern.nn.CutoffFunction("cosine", cutoff=5.0)(torch.tensor([0.0, 5.0]))
    tensor([[1.],
            [0.]])
    """

    fixed = frozenset({"name", "cutoff", "exponent"})

    @checked
    def __init__(self, name: str, cutoff: float, *, exponent: int = 6):
        super().__init__()
        _check_cutoff(cutoff, name)
        self.name, self.cutoff, self.exponent = name, float(cutoff), exponent

    @explained
    def forward(self, distances: Tensor) -> Tensor:
        flat = distances.new_zeros(1)  # a Gaussian of width 0: the constant 1
        return ops.radial_basis(
            distances,
            flat,
            flat,
            basis="gaussian",
            cutoff_function=self.name,
            cutoff=self.cutoff,
            exponent=self.exponent,
        )


def _check(num_functions: int, cutoff: float, cutoff_function: str) -> None:
    if num_functions < 1:
        raise ValueError(f"num_functions must be at least 1, got {num_functions}")
    _check_cutoff(cutoff, cutoff_function)


def _check_cutoff(cutoff: float, cutoff_function: str) -> None:
    if not 0 < cutoff < math.inf:
        raise ValueError(f"cutoff must be positive and finite, got {cutoff}")
    if cutoff_function not in CUTOFF_FUNCTIONS:
        allowed = ", ".join(repr(name) for name in CUTOFF_FUNCTIONS)
        raise ValueError(f"cutoff_function must be one of {allowed}, got {cutoff_function!r}")
