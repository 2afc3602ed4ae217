"""Plots of the comparisons: speed-ups by kernel, memory by case, and scaling with atoms."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from report import Entry, is_floor, is_peer

COLORS = {
    "molkern": "#c1272d",
    "molkern, exact filters": "#e8a0a2",
    "molkern, spline filters": "#e8a0a2",
    "eager torch": "#4c72b0",
    "torch.compile": "#8db1e0",
    "PyTorch Geometric": "#3a8f5c",
    "PyTorch Geometric, compiled": "#93c9a6",
    "SchNetPack": "#d08c2c",
    "TorchMD-NET": "#7a5ba6",
}
OTHERS = ["#17becf", "#8c6d31", "#7f7f7f", "#bcbd22", "#9467bd"]
#: What the bars of the plot of speed-ups are against.
AGAINST = {"the fastest peer": "#c1272d", "eager torch": "#4c72b0"}


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def color_of(name: str) -> str:
    return COLORS.get(name) or OTHERS[sum(map(ord, name)) % len(OTHERS)]


def write_all(entries: list[Entry], out: Path) -> list[Path]:
    """The plots that there are rows for; their files."""
    plots = {"speedups": plot_speedups, "memory": plot_memory, "scaling": plot_scaling}
    written = []
    for name, plot in plots.items():
        figure = plot(entries)
        if figure is not None:
            path = out / f"{name}.png"
            figure.savefig(path, dpi=150, metadata={"Software": None})
            written.append(path)
    return written


# Speed-ups


def ratio(entry: Entry, against: str) -> float | None:
    """How many times as fast molkern is, or None without such a peer."""
    found = {r["implementation"]: r["times_as_fast"] for r in entry["rows"]}
    peers = {name: value for name, value in found.items() if is_peer(name)}
    if against == "eager torch":
        return peers.get(against)
    return min(peers.values(), default=None)


def plot_speedups(entries: list[Entry]) -> Figure | None:
    """Bars by kernel: geometric means over its cases, a line from the least to the largest."""
    compared = [e for e in entries if ratio(e, "the fastest peer") and e["kernel"] != "scaling"]
    if not compared:
        return None
    counts = sorted({entry["threads"] for entry in compared})
    kernels = list(dict.fromkeys(entry["kernel"] for entry in compared))
    figure = new_figure(5.5 * len(counts) + 1, 0.62 * len(kernels) + 1.6)
    axes = figure.subplots(1, len(counts), sharey=True, sharex=True, squeeze=False)[0]
    for axis, count in zip(axes, counts, strict=True):
        at = [entry for entry in compared if entry["threads"] == count]
        for place, against in enumerate(AGAINST):
            draw_bars(axis, at, kernels, against, place)
        axis.set(xscale="log", title=f"{count} thread{'s' if count > 1 else ''}")
        axis.set_xlabel("times as fast")
        axis.axvline(1.0, color="0.3", lw=1)
        axis.grid(axis="x", color="0.9", zorder=0)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_yticks(range(len(kernels)), kernels)
    axes[0].set_ylim(len(kernels) - 0.4, -0.6)
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(low, high * 1.8)  # for the numbers beside the bars
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_bars(axis: Axes, entries: list[Entry], kernels: list[str], against: str, k: int) -> None:
    label: str | None = f"than {against} (bar: geometric mean; line: range over cases)"
    if k:
        label = f"than {against}"
    for row, kernel in enumerate(kernels):
        found = [ratio(entry, against) for entry in entries if entry["kernel"] == kernel]
        values = [value for value in found if value]
        if not values:
            continue
        alone = not any(ratio(e, "eager torch") for e in entries if e["kernel"] == kernel)
        mean, y = statistics.geometric_mean(values), row + (0 if alone else 0.38 * (k - 0.5))
        axis.barh(y, mean - 1, 0.36, left=1, color=list(AGAINST.values())[k], label=label)
        axis.plot([min(values), max(values)], [y, y], color="0.15", lw=1.2, solid_capstyle="butt")
        end = max(1.0, *values)
        axis.annotate(
            f"{mean:.3g}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
        label = None


# Memory


def plot_memory(entries: list[Entry]) -> Figure | None:
    """A line for each case, a point for each implementation; cases of a megabyte and more.

    Without the forward passes of kernels, whose memory is little more than their results.
    """
    fewest: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if entry["kernel"] != "scaling" and not entry["case"].endswith(", forward"):
            fewest.setdefault((entry["kernel"], entry["case"]), entry)
    shown = [(entry, megabytes(entry)) for entry in fewest.values()]
    shown = [
        (entry, points)
        for entry, points in shown
        if any(is_peer(name) and value >= 1 for name, value in points.items())
    ]
    if not shown:
        return None
    figure = new_figure(10, 0.27 * len(shown) + 1.8)
    axis = figure.subplots()
    names = dict.fromkeys(name for _, points in shown for name in points)
    for name in sorted(names, key=lambda name: (is_peer(name), list(names).index(name))):
        at = [(points[name], y) for y, (_, points) in enumerate(shown) if name in points]
        axis.scatter(
            *zip(*at, strict=True),
            s=52 if name == "molkern" else 30,
            marker="D" if name == "molkern" else "o",
            color=color_of(name),
            label=name,
            zorder=4 if name == "molkern" else 3,
        )
    for y, (_, points) in enumerate(shown):
        axis.plot([min(points.values()), max(points.values())], [y, y], color="0.8", lw=1, zorder=1)
    labels = [f"{entry['kernel']}: {entry['case']}" for entry, _ in shown]
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set(xscale="log", xlabel="most memory in use during a call, MB")
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.grid(axis="x", color="0.92", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def megabytes(entry: Entry) -> dict[str, float]:
    """By implementation, floors left out, and at least a hundredth for the logarithm."""
    return {
        row["implementation"]: max(row["peak_bytes"] / 1e6, 0.01)
        for row in entry["rows"]
        if row["peak_bytes"] is not None and not is_floor(row["implementation"])
    }


# Scaling


def plot_scaling(entries: list[Entry]) -> Figure | None:
    """Time per atom and memory by number of atoms."""
    series = scaling_series(entries)
    if not series:
        return None
    figure = new_figure(11, 4.8)
    axes = figure.subplots(1, 2)
    texts = ("microseconds per atom", "most memory in use during a call, MB")
    styles = {text: style for text, style in zip(distinct_cases(series), LINES, strict=False)}
    for axis, value, text in zip(axes, (microseconds, peak), texts, strict=True):
        for (case, name, threads), rows in series.items():
            points = [(atoms, value(row, atoms)) for atoms, row in sorted(rows.items())]
            points = [point for point in points if point[1] > 0]
            if points:
                label = ", ".join(filter(None, [name, case, f"{threads} threads"]))
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o" if threads == 1 else "s",
                    ls=styles.get((case, threads), "-"),
                    color=color_of(name),
                    label=label.replace("1 threads", "1 thread"),
                )
        axis.set(xscale="log", yscale="log", xlabel="atoms", ylabel=text)
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_formatter(lambda x, _: f"{x:,g}" if x >= 1 else f"{x:g}")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def microseconds(row: dict[str, Any], atoms: float) -> float:
    return row["median_s"] / atoms * 1e6


def peak(row: dict[str, Any], atoms: float) -> float:
    return (row["peak_bytes"] or 0) / 1e6


LINES = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]


def scaling_series(entries: list[Entry]) -> dict[tuple[str, str, int], dict[float, Any]]:
    """Rows by atoms, of each implementation in each case but for its number of atoms."""
    found: dict[tuple[str, str, int], dict[float, Any]] = {}
    for entry in entries:
        atoms = entry["size"].get("atoms")
        if entry["kernel"] != "scaling" or not atoms:
            continue
        case = re.sub(r"[\d,.]+ atoms( of \w+)?", "", entry["case"]).strip(" ,:")
        for row in entry["rows"]:
            name = row["implementation"]
            if not is_floor(name):
                found.setdefault((case, name, entry["threads"]), {})[atoms] = row
    return found


def distinct_cases(series: dict[tuple[str, str, int], Any]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((case, threads) for case, _, threads in series))
