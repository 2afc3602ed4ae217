"""Learned filters: by distance, and as cuts through a plane around an atom."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    from matplotlib.figure import Figure

#: Points of a picture's edge.
POINTS = 181


def filter_profiles(model: Any, num: int = 512) -> tuple[Array, list[Array]]:
    """A model's filters by distance.

    Args:
        model: any of molkern's.
        num: distances, from the first knot of the model's splines to the last.

    Returns:
        Distances ``[P]``, and the filters ``[P, F]`` of each block.

    Raises:
        ValueError: fewer than two distances, or a model without filters.

    >>> import molkern
    >>> model = molkern.models.SchNet(16, 16, num_interactions=2, cutoff=5.0)
    >>> distances, filters = molkern.plots.filter_profiles(model, num=100)
    >>> distances.shape, [block.shape for block in filters]
    ((100,), [(100, 16), (100, 16)])
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, got {num}")
    problem = f"{type(model).__name__} has no filters that depend on a distance alone"
    if not hasattr(model, "filter_values"):
        raise ValueError(problem)
    start, stop, _ = model.filter_span()
    distances = np.linspace(start, stop, num)
    try:
        values = evaluated(double_copy(model).filter_values, distances)
    except NotImplementedError as error:
        raise ValueError(problem) from error
    return distances, [block.numpy() for block in values]


def draw_filters(
    model: Any,
    path_out: str | Path,
    *,
    periodic_cell: Any = None,
    block: int | None = None,
    count: int | None = None,
    extent: float | None = None,
) -> Figure:
    """Draws learned filters W_f(d), as in the papers of SchNet.

    For each block its filters by distance, and below cuts through a plane around an atom: the
    filter's value at a point is ``W_f(|r|)``, and with a cell ``Σ_n W_f(|r − n·cell|)``, the sum
    over the atom's periodic images within the cutoff (Schütt et al., J. Chem. Phys. 148, 241722
    (2018)). Drawn are the filters that vary most by distance.

    Args:
        model: SchNet, PhysNet, DTNN or a DimeNet (the last by distance only).
        path_out: file to write; the end of its name says the format.
        periodic_cell: ``[3, 3]`` lattice vectors as rows, or the edge of a cubic cell, Å: adds a
            row of pictures with images. The plane is that of the first two vectors.
        block: which block, from 0; by default all.
        count: filters of a block; by default 8.
        extent: edge of the pictures, Å; by default twice the cutoff, at most 10 Å.

    Raises:
        ValueError: a model without filters, no such block, a cell that is none, or a count or
            extent that is not positive.
    """
    count = 8 if count is None else count
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    distances, filters = filter_profiles(model)
    if block is not None and not 0 <= block < len(filters):
        raise ValueError(f"block must be from 0 to {len(filters) - 1}, got {block}")
    cell = None if periodic_cell is None else _cell(periodic_cell)
    edge = min(2 * float(distances[-1]), 10.0) if extent is None else extent
    if not edge > 0:
        raise ValueError(f"extent must be positive, got {edge}")
    pictures = not hasattr(model, "spherical")
    if cell is not None and not pictures:
        raise ValueError(f"{type(model).__name__}'s filters depend on angles too: leave cell out")
    blocks = range(len(filters)) if block is None else [block]
    rows = (1 + (cell is not None)) * pictures
    figure = new_figure(1.5 * count + 3.5, len(blocks) * (1.2 + 1.6 * max(rows, 1)))
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(blocks), 1)))
    radii = [
        _radii(edge, given, distances[-1]) for given in ((None, cell) if rows > 1 else (None,))
    ]
    for part, k in zip(parts, blocks, strict=True):
        part.suptitle(f"block {k}: {filters[k].shape[1]} filters", fontsize=10, x=0.01, ha="left")
        chosen = np.argsort(-filters[k].std(0), kind="stable")[:count]
        wide, *narrow = part.subfigures(1, 2, width_ratios=[3, 1.5 * count])[:2]
        _draw_profiles(wide.subplots(), distances, filters[k], chosen)
        if pictures:
            axes = narrow[0].subplots(rows, len(chosen), squeeze=False)
            for row, where in zip(axes, radii, strict=True):
                _draw_row(row, filters[k], chosen, distances, where, edge)
            axes[0, 0].set_ylabel("one atom", fontsize=8)
            if cell is not None:
                axes[1, 0].set_ylabel("with images", fontsize=8)
    return save(figure, path_out)


def _cell(value: Any) -> Array:
    cell = np.asarray(value, dtype=np.float64)
    if cell.ndim == 0:
        cell = cell * np.eye(3) if cell > 0 else np.zeros((3, 3))
    if cell.shape != (3, 3) or not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-9:
        raise ValueError(
            f"periodic_cell must be an edge or [3, 3] vectors with a volume, got {value!r}"
        )
    return cell


def _radii(edge: float, cell: Array | None, cutoff: float) -> list[Array]:
    """Distances of the picture's points from the atom and its images, ``[POINTS, POINTS]`` each."""
    line = np.linspace(-edge / 2, edge / 2, POINTS)
    x, y = np.meshgrid(line, line)
    if cell is None:
        return [np.hypot(x, y)]
    first = cell[0] / np.linalg.norm(cell[0])
    second = cell[1] - (cell[1] @ first) * first
    second /= np.linalg.norm(second)
    points = x[..., None] * first + y[..., None] * second
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    reach = [math.ceil((cutoff + edge) / height) for height in heights]
    found = []
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        distances = np.linalg.norm(points - np.array(shift) @ cell, axis=2)
        if distances.min() < cutoff:
            found.append(distances)
    return found


def _draw_profiles(axes: Axes, distances: Array, filters: Array, chosen: Any) -> None:
    axes.plot(distances, filters, color="0.88", lw=0.6)
    for color, k in zip(ordered_colors(len(chosen)), chosen, strict=True):
        axes.plot(distances, filters[:, k], color=color, lw=1.3, label=str(k))
    axes.set(xlabel="distance, Å", ylabel="$W_f(d)$", xlim=(distances[0], distances[-1]))
    low, high = np.percentile(filters[len(filters) // 20 :], [0, 100])
    room = 0.05 * max(high - low, 1e-12)
    axes.set_ylim(low - room, high + room)
    plain(axes)


def _draw_row(
    row: Any, filters: Array, chosen: Any, distances: Array, radii: list[Array], edge: float
) -> None:
    half = edge / 2
    for axes, k in zip(row, chosen, strict=True):
        picture = sum(np.interp(radius, distances, filters[:, k], right=0.0) for radius in radii)
        top = float(np.percentile(np.abs(picture), 98)) or 1.0
        axes.imshow(
            picture,
            cmap=DIVERGING,
            vmin=-top,
            vmax=top,
            extent=(-half, half, -half, half),
            origin="lower",
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{k}  (±{top:.2g})", fontsize=7)
