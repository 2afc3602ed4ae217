"""What the pictures share: figures without pyplot's global state, files, and checks of data."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..extras import require
from ..files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
#: Dots per inch of the files.
DPI = 150
#: For what has a sign: negative values are blue, positive ones red.
DIVERGING = "RdBu_r"
#: For what comes in an order; its pale end, which paper swallows, is left out.
ORDERED, ORDERED_END = "viridis", 0.88


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches.

    Raises:
        ImportError: without matplotlib, naming the extra that installs it.
    """
    require("md", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def picture_path(path: str | Path, option: str = "--out") -> Path:
    """The file that a picture is written to: PNG, where its name has no ending.

    Args:
        path: as it was given.
        option: by which it was given, for messages.

    Raises:
        ValueError: an ending that matplotlib has no format for, or no such folder.
        ImportError: without matplotlib.
    """
    require("md", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path, known = Path(path), FigureCanvasAgg.get_supported_filetypes()
    if not path.suffix and path.name:
        path = path.with_name(f"{path.name}.png")
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"{path} ends in {path.suffix!r}: plots end in one of {', '.join(known)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a folder: make it, or choose another {option}")
    return path


def save(figure: Figure, path: str | Path) -> Figure:
    """Writes the figure to :func:`picture_path`, in the format that the end of the name says.

    Raises:
        OSError: naming a file that cannot be written.
        ValueError: see :func:`picture_path`.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    path = picture_path(path)
    content = io.BytesIO()
    # Texts are not written for LaTeX, which the owner of the process may have chosen for theirs
    for text in figure.findobj(Text):
        text.set_usetex(False)
    with rc_context({"text.usetex": False}):  # ticks are made when they are drawn
        figure.savefig(content, format=path.suffix[1:], dpi=DPI)
    write_whole(path, content.getvalue())
    return figure


def as_it_is(text: str) -> str:
    """A text of somebody's that matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def ordered_colors(count: int) -> list[Any]:
    """Colours for ``count`` curves in an order."""
    from matplotlib import colormaps

    return list(colormaps[ORDERED](np.linspace(0, ORDERED_END, count)))


def plain(axes: Axes) -> None:
    """Only two spines, and a pale grid below the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", lw=0.8)
    axes.set_axisbelow(True)


def numbers(values: Any, name: str) -> Array:
    """Any array as float64, flat: ``[...]`` → ``[N]``.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to draw, give at least one value")
    bad = np.count_nonzero(~np.isfinite(flat))
    if bad:
        raise ValueError(
            f"{name} has {bad} value(s) of {flat.size} that are not finite: leave them out"
        )
    return flat


def double_copy(model: Any) -> Any:
    """A copy of a model in float64 on the CPU, without gradients."""
    return copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)


def evaluated(function: Callable[..., Any], distances: Array) -> Any:
    """What a function of distances ``[P]`` gives, without gradients."""
    with torch.no_grad():
        return function(torch.from_numpy(distances))
