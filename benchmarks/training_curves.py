"""Training with spline filters beside training with exact ones: the same steps, three seeds each.

    python benchmarks/training_curves.py [--steps 4000]

Trains the SchNet of molkern.training.ethanol on the ethanol set, with the same initial weights and
the same batches for both kinds of filters. Writes benchmarks/results/training_curves.json and .png:
validation errors by step, seconds of training, and the median time of a step of either kind, taken
in turns.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch

import molkern
from molkern.data import ethanol_frames
from molkern.training.ethanol import BATCH_SIZE, LEARNING_RATE, errors, new_model, train_step

RESULTS = Path(__file__).parent / "results" / "training_curves"
CHECKS = 20


def pair(seed: int, steps: int, split: dict) -> dict:
    """Two models trained in turns, step by step, from the same weights on the same batches."""
    torch.manual_seed(seed)
    exact = new_model(split["train"])
    models = {"exact": exact, "spline": copy.deepcopy(exact)}
    models["spline"].filters = "spline"
    optimizers = {k: torch.optim.Adam(m.parameters(), lr=LEARNING_RATE) for k, m in models.items()}
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers.values()]
    seconds: dict[str, list[float]] = {k: [] for k in models}
    curves: dict[str, list[tuple[int, float, float]]] = {k: [] for k in models}
    for step in range(1, steps + 1):
        frames = split["train"][torch.randint(len(split["train"]), (BATCH_SIZE,))]
        for kind, model in models.items():
            start = time.thread_time()
            train_step(model, optimizers[kind], frames)
            seconds[kind].append(time.thread_time() - start)
        for schedule in schedules:
            schedule.step()
        if step % (steps // CHECKS) == 0:
            for kind, model in models.items():
                # Exact filters in validation, so that the weights alone are compared
                judge = copy.deepcopy(model)
                judge.filters = "exact"
                curves[kind].append((step, *errors(judge, split["validation"])))
            print(seed, step, {k: c[-1][1:] for k, c in curves.items()}, flush=True)
    return {
        kind: {
            "seed": seed,
            "filters": kind,
            "curve": curves[kind],
            "median_step_ms": statistics.median(seconds[kind]) * 1e3,
            "seconds": sum(seconds[kind]),
        }
        for kind in models
    }


def plot(runs: list[dict], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    colors = {"exact": "0.75", "spline": "tab:blue"}
    for run in runs:
        rows = torch.tensor(run["curve"], dtype=torch.float64)
        label = f"{run['filters']} filters" if run["seed"] == 0 else None
        for axis, column in zip(axes, (2, 1), strict=True):
            style, width = ("-", 5) if run["filters"] == "exact" else ("--", 1.5)
            axis.plot(
                rows[:, 0],
                1e3 * rows[:, column],
                style,
                c=colors[run["filters"]],
                lw=width,
                label=label,
                zorder=-width,
            )
    names = ("force error, meV/Å", "energy error, meV")
    for axis, name in zip(axes, names, strict=True):
        axis.set(xlabel="step", ylabel=f"validation {name}", yscale="log")
        axis.legend()
    figure.suptitle("Ethanol, SchNet 64/3, three seeds each: the same batches with either filters")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    split = ethanol_frames()
    runs = []
    for seed in range(options.seeds):
        runs += pair(seed, options.steps, split).values()
    found = {
        "molkern": molkern.__version__,
        "torch": torch.__version__,
        "threads": 1,
        "batch_size": BATCH_SIZE,
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    plot(runs, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
