"""Energy drift of ethanol at constant energy, with exact and with spline filters.

    python benchmarks/nve_drift.py [--steps 100000] [--dtype float32]

The shipped model drives ASE's velocity Verlet with steps of 0.5 fs from
the same frame and velocities. Writes benchmarks/results/nve_drift.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import molkern
from molkern.data import ethanol_frames, ethanol_model
from molkern.demo import simulate

RESULTS = Path(__file__).parent / "results" / "nve_drift.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frame = ethanol_frames()["test"][:1]
    rows = []
    for filters in ("spline", "exact"):
        model = ethanol_model().to(getattr(torch, options.dtype))
        model.filters = filters
        run = simulate(model, frame, options.steps, temperature=300)
        steady = run.total - np.polyval(np.polyfit(run.times, run.total, 1), run.times)
        tenth = len(run.total) // 10
        change = run.total[-tenth:].mean() - run.total[:tenth].mean()
        rows.append(
            {
                "dtype": options.dtype,
                "filters": filters,
                "steps": options.steps,
                "drift_meV_per_ps": run.drift * 1e3,
                "fluctuation_meV": float(np.std(steady)) * 1e3,
                "change_first_to_last_tenth_meV": float(change) * 1e3,
                "steps_per_second": run.steps_per_second,
            }
        )
        print(rows[-1], flush=True)
    found = {"molkern": molkern.__version__, "torch": torch.__version__, "threads": 1, "runs": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
