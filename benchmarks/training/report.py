"""The table and the curves of trained rows, from the folders that table.py made.

python benchmarks/training/report.py build/training --out benchmarks/results/training
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TITLES = dict(schnet="SchNet", physnet="PhysNet", dtnn="DTNN", dimenetpp="DimeNet++")
#: Published errors (110,000 molecules; 1,000 frames of MD17's ethanol), for orientation only.
PUBLISHED = {
    ("SchNet", "U0"): "14 meV",
    ("SchNet", "homo"): "41 meV",
    ("SchNet", "mu"): "0.033 D",
    ("PhysNet", "U0"): "8.15 meV",
    ("PhysNet", "homo"): "32.9 meV",
    ("PhysNet", "mu"): "0.0529 D",
    ("DimeNet++", "U0"): "6.32 meV",
    ("DimeNet++", "homo"): "24.6 meV",
    ("DimeNet++", "mu"): "0.0297 D",
    ("SchNet", "energy"): "3.5 meV (MD17)",
    ("SchNet", "forces"): "17 meV/Å (MD17)",
    ("PhysNet", "energy"): "2.6 meV (MD17)",
    ("PhysNet", "forces"): "6.9 meV/Å (MD17)",
}
#: Shown in thousandths.
MILLI = {"U0": "meV", "homo": "meV", "energy": "meV", "forces": "meV/Å"}


def read(folder: Path) -> dict:
    """One row: what it is, its errors and its validation errors by the minute."""
    with (folder / "metrics.csv").open() as file:
        metrics = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    facts = json.loads((folder / "run.json").read_text())
    test = json.loads((folder / "test.json").read_text())
    peer = folder.name.startswith("pyg-")
    model = TITLES[folder.name.removeprefix("pyg-").split("-")[0]]
    return dict(
        row=folder.name,
        model=model,
        code="PyTorch Geometric" if peer else "molkern",
        steps=facts["steps"],
        minutes=facts["minutes"],
        parameters=facts["parameters"],
        threads=facts["threads"],
        device=facts["device"],
        torch=facts["torch"],
        date=facts["date"],
        errors={name: values["mae"] for name, values in test["errors"].items()},
        curve=[{k: v for k, v in row.items() if not k.endswith("rmse")} for row in metrics],
    )


def shown(name: str, value: float) -> str:
    if name in MILLI:
        return f"{value * 1e3:.1f} {MILLI[name]}"
    return f"{value:.3f} D"


def table(rows: list[dict]) -> str:
    lines = [
        "| data | label | model | code | minutes | steps | MAE, test part | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label in ("forces", "energy", "U0", "homo", "mu"):
        found = [row for row in rows if label in row["errors"]]
        data = "ethanol" if label in ("forces", "energy") else "QM9, 10,000"
        for row in sorted(found, key=lambda row: row["errors"][label]):
            several = len(row["errors"]) > 1 and data != "ethanol"
            others = [k for k in row["errors"] if k != label]
            name = f"{label} (with {', '.join(others)})" if several else label
            published = PUBLISHED.get((row["model"], label), "")
            lines.append(
                f"| {data} | {name} | {row['model']} | {row['code']} | {row['minutes']:.1f} | "
                f"{row['steps']:,} | {shown(label, row['errors'][label])} | {published} |"
            )
    return "\n".join(lines)


def curves(rows: list[dict], path: Path) -> None:
    """Validation errors by the minute, a panel for each label."""
    labels = ("forces", "energy", "U0", "homo", "mu")
    figure = Figure(figsize=(16, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    colors = dict(zip(TITLES.values(), ("C0", "C2", "C1", "C3"), strict=True))
    for axis, label in zip(figure.subplots(1, len(labels)), labels, strict=True):
        scale, unit = (1e3, MILLI[label]) if label in MILLI else (1, "D")
        for row in rows:
            if label not in row["errors"]:
                continue
            minutes = [point["minutes"] for point in row["curve"]]
            errors = [scale * point[f"val_{label}_mae"] for point in row["curve"]]
            peer = row["code"] != "molkern"
            axis.plot(
                minutes,
                errors,
                color=colors[row["model"]],
                ls="--" if peer else "-",
                label=f"{row['model']}, {row['code']}",
            )
        axis.set(title=label, xlabel="minutes", ylabel=f"validation MAE, {unit}", yscale="log")
        axis.grid(alpha=0.3, which="both")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training"))
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.runs.glob("*/test.json"))
    rows = [read(folder) for folder in folders]
    options.out.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        text = (folder / "config.yaml").read_text()
        (options.out / f"{folder.name}.yaml").write_text(_without_paths(text))
    (options.out / "training.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.out / "training.md").write_text(table(rows) + "\n")
    curves(rows, options.out / "training.png")
    print(table(rows))


def _without_paths(text: str) -> str:
    """Where the data lay is nobody else's business."""
    lines = text.splitlines()
    return (
        "\n".join("  path: null" if line.startswith("  path:") else line for line in lines) + "\n"
    )


if __name__ == "__main__":
    main()
