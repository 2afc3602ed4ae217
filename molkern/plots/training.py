"""Learning curves, predicted against true values, and the errors' distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .figures import ORDERED, Array, new_figure, numbers, plain, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Columns of a table of a training that have a place of their own.
KNOWN = ("step", "minutes", "passes", "learning_rate", "train_loss", "val_loss")
#: More points than this are drawn as their density.
MANY = 3000
#: A curve of more points is noise, above which its running median is drawn.
NOISY = 400
TRAIN, VALIDATION, BEST = "tab:blue", "tab:orange", "#c1272d"


class _Errors(NamedTuple):
    """Signed errors ``[N]`` of a target, and what stands beside its pictures."""

    name: str
    unit: str
    values: Array

    @property
    def mae(self) -> float:
        return float(np.abs(self.values).mean())

    @property
    def rmse(self) -> float:
        return float(np.sqrt(np.square(self.values).mean()))


# Learning curves


def learning_curves(
    path_out: str | Path,
    table: Mapping[str, Any],
    *,
    title: str = "",
    units: Mapping[str, str] | None = None,
) -> Figure:
    """Losses, a panel for each validation error, and the learning rate, all by step.

    Args:
        path_out: file to write; the end of its name says the format.
        table: columns ``[rows]`` by name: ``step``, and as far as there are any ``minutes``,
            ``passes``, ``learning_rate``, ``train_loss``, ``val_loss`` and others that begin with
            ``val_``. Not a number (or infinite) where a row has no value.
        title: of the figure.
        units: of validation errors by the names of their columns.

    Minutes are on the upper axis, where they grow with the steps. The best validation values are
    marked. Axes are logarithmic for positive losses, and for errors that span a factor of five.

    Raises:
        ValueError: no column of steps, steps that are not finite or fall, columns of different
            lengths, or nothing to draw in any of them.
    """
    columns = _columns(table)
    steps = columns["step"]
    errors = [name for name in columns if name.startswith("val_") and name not in KNOWN]
    losses = [name for name in ("train_loss", "val_loss") if name in columns]
    panels = [*(["losses"] if losses else []), *errors]
    if "learning_rate" in columns:
        panels.append("learning_rate")
    figure, axes = _curve_axes(panels)
    for name, axis in axes.items():
        if name == "losses":
            _draw_losses(axis, columns, losses)
        elif name == "learning_rate":
            _draw_rate(axis, steps, columns[name])
        else:
            _draw_error(axis, steps, columns[name], name, (units or {}).get(name, ""))
    _label_steps(axes, columns)
    figure.suptitle(title)
    return save(figure, path_out)


def _columns(table: Mapping[str, Any]) -> dict[str, Array]:
    """The columns that have a finite value, those of the steps checked."""
    if "step" not in table:
        raise ValueError(f"the table has no column 'step', only {', '.join(table) or 'nothing'}")
    steps = numbers(table["step"], "the column 'step'")
    if (np.diff(steps) < 0).any():
        raise ValueError("the column 'step' must not fall: sort the rows by it")
    columns = {name: np.asarray(values, dtype=np.float64) for name, values in table.items()}
    for name, values in columns.items():
        if values.shape != steps.shape:
            raise ValueError(
                f"the column {name!r} has shape {list(values.shape)}, but there are {len(steps)} "
                "steps: give each row a value, NaN where it has none"
            )
    found = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    if not any(name.startswith("val_") or name == "train_loss" for name in found):
        raise ValueError("the table has no finite value in 'train_loss' or a column 'val_…'")
    return found


def _curve_axes(panels: list[str]) -> tuple[Figure, dict[str, Axes]]:
    """Panels below each other in one or two columns, that of the learning rate less high."""
    width = 1 if len(panels) <= 4 else 2
    height = -(-len(panels) // width)
    ratios = [1.0] * height
    if panels[-1] == "learning_rate" and len(panels) % width == 1 % width:
        ratios[-1] = 0.5
    figure = new_figure(8 if width == 1 else 13, 2.5 * sum(ratios) + 0.8)
    grid = figure.add_gridspec(height, width, height_ratios=ratios)
    axes: dict[str, Axes] = {}
    for k, name in enumerate(panels):
        first = next(iter(axes.values()), None)
        axes[name] = figure.add_subplot(grid[k // width, k % width], sharex=first)
        plain(axes[name])
    return figure, axes


def _draw_losses(axis: Axes, columns: dict[str, Array], names: Sequence[str]) -> None:
    colors = {"train_loss": TRAIN, "val_loss": VALIDATION}
    labels = {"train_loss": "training", "val_loss": "validation"}
    for name in names:
        _curve(axis, columns["step"], columns[name], colors[name], labels[name])
    if "val_loss" in names:
        _mark_best(axis, columns["step"], columns["val_loss"], "")
    _log_if(axis, [columns[name] for name in names], at_least=1.0)
    axis.set_ylabel("loss")
    axis.legend(loc="upper right", fontsize=9)


def _draw_error(axis: Axes, steps: Array, values: Array, name: str, unit: str) -> None:
    _curve(axis, steps, values, VALIDATION, None)
    _mark_best(axis, steps, values, unit)
    _log_if(axis, [values], at_least=5.0)
    axis.set_ylabel(_with_unit(_readable(name), unit))
    axis.legend(loc="upper right", fontsize=9)


def _draw_rate(axis: Axes, steps: Array, values: Array) -> None:
    finite = np.isfinite(values)
    marker = "o" if finite.sum() == 1 else None
    axis.plot(steps[finite], values[finite], color="0.4", lw=1.2, marker=marker, ms=4)
    _log_if(axis, [values], at_least=5.0)
    axis.set_ylabel("learning rate")


def _curve(axis: Axes, steps: Array, values: Array, color: str, label: str | None) -> None:
    """The finite points joined; of many the running median, above the points in a pale colour."""
    finite = np.isfinite(values)
    x, y = steps[finite], values[finite]
    if len(x) <= NOISY:
        marker = "o" if len(x) <= 60 else None
        axis.plot(x, y, color=color, lw=1.4, marker=marker, ms=3.5, label=label)
        return
    axis.plot(x, y, color=color, lw=0.5, alpha=0.3)
    axis.plot(x, _running_median(y, len(y) // 100), color=color, lw=1.6, label=label)


def _running_median(values: Array, half: int) -> Array:
    """Of the ``2 half + 1`` values around each; fewer, but as many on both sides, at the ends."""
    wide = np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1)
    result = values.copy()
    result[half : len(values) - half] = np.median(wide, axis=1)
    for k in range(half):
        result[k] = np.median(values[: 2 * k + 1])
        result[-k - 1] = np.median(values[len(values) - 2 * k - 1 :])
    return result


def _mark_best(axis: Axes, steps: Array, values: Array, unit: str) -> None:
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    axis.plot(
        steps[best],
        values[best],
        marker="*",
        ms=11,
        color=BEST,
        mec="white",
        mew=0.6,
        ls="none",
        zorder=5,
        label=f"best: {values[best]:.4g} {unit}".rstrip() + f" at step {steps[best]:,.0f}",
    )


def _log_if(axis: Axes, columns: list[Array], at_least: float) -> None:
    """A logarithmic axis for positive values that span a factor, labelled with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = np.concatenate([column[np.isfinite(column)] for column in columns])
    low, high = values.min(), values.max()
    if low <= 0 or high < at_least * low:
        return
    axis.set_yscale("log")
    if high / low > 1e3:
        return
    subs = (1, 2, 5) if high / low > 4 else tuple(range(1, 10))
    axis.yaxis.set_major_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    margin = max((high / low) ** 0.08, 1.15)  # so that there is a label above and below
    axis.set_ylim(low / margin, high * margin)


def _label_steps(axes: dict[str, Axes], columns: dict[str, Array]) -> None:
    """Steps below the last panel of each column of panels, minutes above the first."""
    for axis in axes.values():
        place = axis.get_subplotspec()
        assert place is not None
        width = place.get_gridspec().ncols
        below = [other.get_subplotspec() for other in axes.values() if other is not axis]
        column, row = place.colspan[0], place.rowspan[0]
        if any(o and o.colspan[0] == column and o.rowspan[0] > row for o in below):
            axis.tick_params(labelbottom=False)
        else:
            axis.set_xlabel("step" + _passes(columns))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
        if place.num1 < width:
            _add_minutes(axis, columns)


def _passes(columns: dict[str, Array]) -> str:
    if "passes" not in columns:
        return ""
    passes = columns["passes"][np.isfinite(columns["passes"])].max()
    return f" ({passes:.3g} passes through the training set)"


def _add_minutes(axis: Axes, columns: dict[str, Array]) -> None:
    """Minutes on the upper axis, unless they do not grow with the steps."""
    minutes = columns.get("minutes")
    if minutes is None:
        return
    finite = np.isfinite(minutes)
    x, y = columns["step"][finite], minutes[finite]
    rising = np.concatenate([[True], (x[1:] > np.maximum.accumulate(x)[:-1])])
    rising[1:] &= y[1:] > np.maximum.accumulate(y)[:-1]
    x, y = x[rising], y[rising]
    if len(x) < 2:
        return
    above = axis.secondary_xaxis(
        "top", functions=(lambda s: _line(s, x, y), lambda m: _line(m, y, x))
    )
    above.set_xlabel("minutes")


def _line(at: Any, x: Array, y: Array) -> Array:
    """The line through points of rising x, straight on beyond both ends."""
    at = np.asarray(at, dtype=np.float64)
    k = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    return np.asarray(y[k] + (at - x[k]) * (y[k + 1] - y[k]) / (x[k + 1] - x[k]))


def _readable(column: str) -> str:
    """``val_forces_mae`` → ``forces MAE``."""
    words = column.removeprefix("val_").split("_")
    return " ".join(word.upper() if word in ("mae", "rmse", "mse") else word for word in words)


def _with_unit(text: str, unit: str) -> str:
    return f"{text}, {unit}" if unit else text


# Predicted against true values


def parity(
    path_out: str | Path,
    predicted: Any,
    true: Any,
    *,
    name: str,
    unit: str = "",
    split: str = "validation",
) -> Figure:
    """Predicted against true values, with the mean absolute error, RMSE and R².

    Args:
        path_out: file to write; the end of its name says the format.
        predicted, true: arrays or tensors of the same shape; more than a few thousand values are
            drawn as their density.
        name, unit: of the target.
        split: of the data, for the title.

    ``R² = 1 − Σ (p − t)² / Σ (t − mean t)²``, which does not exist where all true values are equal.

    Raises:
        ValueError: arrays that are empty, not finite or not of the same shape.
    """
    p, t = _pair(name, predicted, true)
    figure = new_figure(5.6, 5.2)
    axis = figure.subplots()
    _draw_parity(axis, p, t, _Errors(name, unit, p - t))
    axis.set_title(f"{name}, {split} ({t.size:,} values)", fontsize=11)
    return save(figure, path_out)


def error_histogram(path_out: str | Path, errors: Any, *, name: str, unit: str = "") -> Figure:
    """Signed errors, and which share of absolute errors is smaller than a value.

    Args:
        path_out: file to write; the end of its name says the format.
        errors: predicted minus true values, any shape.
        name, unit: of the target.

    Raises:
        ValueError: no errors, or one that is not finite.
    """
    found = _Errors(name, unit, numbers(errors, f"errors of {name}"))
    figure = new_figure(10, 4.3)
    left, right = figure.subplots(1, 2)
    _draw_histogram(left, found)
    _draw_cumulative(right, found)
    figure.suptitle(f"{name}: {found.values.size:,} errors", fontsize=11)
    return save(figure, path_out)


def _pair(name: str, predicted: Any, true: Any) -> tuple[Array, Array]:
    """Predicted and true values, ``[N]`` each."""
    shapes = [list(np.shape(values)) for values in (predicted, true)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: predicted has shape {shapes[0]}, true has {shapes[1]}; they must be the same"
        )
    return numbers(predicted, f"predicted {name}"), numbers(true, f"true {name}")


def _draw_parity(axis: Axes, predicted: Array, true: Array, errors: _Errors) -> None:
    low, high = min(predicted.min(), true.min()), max(predicted.max(), true.max())
    margin = 0.04 * (high - low) or 0.5
    limits = low - margin, high + margin
    if true.size > MANY:
        cells = axis.hexbin(
            true,
            predicted,
            gridsize=110,
            bins="log",
            mincnt=1,
            cmap=ORDERED,
            extent=(*limits, *limits),
            linewidths=0.1,
        )
        axis.figure.colorbar(cells, ax=axis, label="values per cell", shrink=0.8, pad=0.02)
    else:
        few = true.size <= 300
        axis.scatter(true, predicted, s=16 if few else 6, c=TRAIN, lw=0, alpha=0.7 if few else 0.4)
    axis.axline((limits[0], limits[0]), slope=1, color="0.35", lw=0.8, ls="--", zorder=0.5)
    unit = errors.unit
    axis.set(
        xlabel=_with_unit(f"true {errors.name}", unit),
        ylabel=_with_unit(f"predicted {errors.name}", unit),
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.text(0.04, 0.96, _summary(errors, true), transform=axis.transAxes, va="top", fontsize=10)


def _summary(errors: _Errors, true: Array) -> str:
    spread = np.square(true - true.mean()).sum()
    lines = [f"{n} {value:.4g} {errors.unit}" for n, value in _means(errors)]
    if spread > 0:
        lines.append(f"R² {1 - np.square(errors.values).sum() / spread:.5f}")
    return "\n".join(line.rstrip() for line in lines)


def _means(errors: _Errors) -> list[tuple[str, float]]:
    return [("MAE", errors.mae), ("RMSE", errors.rmse)]


def _draw_histogram(axis: Axes, errors: _Errors) -> None:
    """Counts of signed errors; the few largest are only counted, lest all others be one bar."""
    values, unit = errors.values, errors.unit
    reach = 1.1 * max(float(np.quantile(np.abs(values), 0.995)), errors.rmse) or 1.0
    bins = int(np.clip(np.sqrt(values.size), 10, 100))
    axis.hist(values, bins=bins, range=(-reach, reach), color=TRAIN, alpha=0.75)
    for (text, value), style in zip(_means(errors), ("-", "--"), strict=True):
        label = f"{text} {value:.4g} {unit}".rstrip()
        for sign in (-1, 1):
            axis.axvline(sign * value, color=BEST, ls=style, lw=1.1, label=label)
            label = "_"  # in the legend once
    mean = float(values.mean())
    axis.axvline(mean, color="0.2", ls=":", lw=1.2, label=f"mean {mean:+.3g} {unit}".rstrip())
    outside = np.count_nonzero(np.abs(values) > reach)
    if outside:
        largest = f"{np.abs(values).max():.3g} {unit}".rstrip()
        axis.plot([], [], ls="none", label=f"{outside:,} outside, largest {largest}")
    plain(axis)
    axis.set(xlim=(-reach, reach), ylabel="count")
    axis.set_xlabel(_with_unit(f"error of {errors.name}, predicted less true", unit))
    axis.set_ylim(0, 1.35 * axis.get_ylim()[1])  # for the legend above the bars
    axis.legend(loc="upper center", fontsize=8, ncols=2, frameon=False)


def _draw_cumulative(axis: Axes, errors: _Errors) -> None:
    """The share of absolute errors up to a value, by a thousand quantiles."""
    shares = np.linspace(0, 1, min(1001, max(errors.values.size, 2)))
    values = np.quantile(np.abs(errors.values), shares)
    axis.plot(values, 100 * shares, color=TRAIN, lw=1.8)
    for share, style in ((0.5, "-"), (0.95, "--")):
        at = float(np.quantile(np.abs(errors.values), share))
        text = f"{100 * share:.0f} % below {at:.3g} {errors.unit}".rstrip()
        axis.plot([at, at], [0, 100 * share], color=BEST, lw=1.1, ls=style, label=text)
    if (values > 0).any():  # zeros are left of what a logarithm shows
        positive = values[values > 0]
        axis.set_xscale("log")
        low = max(float(positive[0]), float(positive[-1]) * 1e-5)
        axis.set_xlim(low / 1.2, float(positive[-1]) * 1.3)
    plain(axis)
    axis.set(ylim=(0, 101), ylabel="% of values")
    axis.set_xlabel(_with_unit(f"absolute error of {errors.name}", errors.unit))
    axis.legend(loc="upper left", fontsize=8)
