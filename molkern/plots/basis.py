"""The bases that distances and angles are expanded in, as in the papers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import eval_legendre, spherical_jn

from .. import nn
from .figures import (
    DIVERGING,
    Array,
    double_copy,
    evaluated,
    new_figure,
    ordered_colors,
    plain,
    save,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def draw_basis(
    path_out: str | Path,
    model: Any = None,
    *,
    cutoff: float = 5.0,
    num_gaussians: int = 25,
    num_exponentials: int = 16,
    num_radial: int = 6,
    num_spherical: int = 7,
) -> Figure:
    """Draws radial bases by distance, and DimeNet's spherical basis as pictures of a plane.

    Gaussians: Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 6; exponentials: Unke & Meuwly,
    JCTC 15, 3678 (2019), eq. 7; Bessel functions and the spherical basis
    ``j_l(z_ln d / cutoff) Y_l⁰(α)``: Klicpera et al., ICLR 2020, eqs. 6 to 8, without the envelope
    in the pictures, as there.

    Args:
        path_out: file to write; the end of its name says the format.
        model: whose bases are drawn; by default those of SchNet, PhysNet and DimeNet at their
            usual settings.
        cutoff: Å, without a model.
        num_gaussians, num_exponentials, num_radial, num_spherical: functions, without a model.

    Raises:
        ValueError: a model without a basis, or sizes and a cutoff that are not positive.
    """
    if model is not None:
        bases, spherical = _bases_of(model)
    else:
        bases = {
            "SchNet: Gaussians": nn.GaussianBasis(num_gaussians, cutoff),
            "PhysNet: exponentials": nn.ExponentialBasis(num_exponentials, cutoff),
            "DimeNet: Bessel functions": nn.BesselBasis(num_radial, cutoff),
        }
        spherical = nn.SphericalRadialBasis(num_spherical, num_radial, cutoff)
    cutoffs = {name: float(getattr(basis, "cutoff", cutoff)) for name, basis in bases.items()}
    orders, functions = (0, 0) if spherical is None else spherical.zeros.shape
    heights = [2.6, *([1.25 * orders] if spherical is not None else [])]
    width = max(4.2 * len(bases), 1.25 * functions + 0.6)
    figure = new_figure(width, sum(heights) + 0.2)
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
    for axes, (name, basis) in zip(
        np.atleast_1d(parts[0].subplots(1, len(bases))), bases.items(), strict=True
    ):
        _draw_radial(axes, name, basis, cutoffs[name])
    if spherical is not None:
        _draw_spherical(parts[1], spherical.zeros.detach().cpu().double().numpy())
    return save(figure, path_out)


def _bases_of(model: Any) -> tuple[dict[str, Any], Any]:
    basis = getattr(model, "basis", None)
    if basis is None:
        raise ValueError(f"{type(model).__name__} has no radial basis to draw")
    basis = double_copy(basis)
    basis.cutoff = getattr(basis, "cutoff", model.cutoff)
    return {f"{type(model).__name__}: {type(basis).__name__}": basis}, getattr(
        model, "spherical", None
    )


def _draw_radial(axes: Axes, name: str, basis: Any, cutoff: float) -> None:
    distances = np.linspace(0.02 * cutoff, cutoff, 600)
    values = evaluated(basis, distances).double().numpy()
    for color, column in zip(ordered_colors(values.shape[1]), values.T, strict=True):
        axes.plot(distances, column, color=color, lw=1.1)
    axes.set(title=name, xlabel="distance, Å", xlim=(0, cutoff))
    # Bessel functions with their envelope grow as 1 / d
    inner = values[distances > 0.15 * cutoff]
    low, high = float(inner.min()), float(inner.max())
    axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    plain(axes)


def _draw_spherical(part: SubFigure, zeros: Array) -> None:
    """``j_l(z_ln x) P_l(cos α)``: a row for each l, a column for each n, α from the right."""
    line = np.linspace(-1, 1, 161)
    x, y = np.meshgrid(line, line)
    radius = np.hypot(x, y)
    cosine = np.divide(x, radius, out=np.zeros_like(x), where=radius > 0)
    part.suptitle(
        r"spherical basis $j_l(z_{ln} d / c)\, Y_l^0(\alpha)$, rows $l$, columns $n$", fontsize=10
    )
    axes = part.subplots(*zeros.shape, squeeze=False)
    for order, row in enumerate(axes):
        angular = eval_legendre(order, cosine)
        for n, panel in enumerate(row):
            picture = spherical_jn(order, zeros[order, n] * radius) * angular
            picture[radius > 1] = np.nan
            top = float(np.nanpercentile(np.abs(picture), 99.5))
            panel.imshow(picture, cmap=DIVERGING, vmin=-top, vmax=top, origin="lower")
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
            if n == 0:
                panel.set_ylabel(f"l = {order}", fontsize=8)
            if order == 0:
                panel.set_title(f"n = {n + 1}", fontsize=8)
