"""Trains every row of the table of results: the same minutes for each, side by side on two cores.

    python benchmarks/training/table.py --minutes 4 --qm9 qm9.npz --out build/training

A row is a shipped configuration with a few changes. The steps that its minutes hold are measured
first, so that the learning rate falls to zero at their end; the configuration that comes of it is
kept with the results. Two rows run at once, each on a core and thread of its own, molkern's model
beside that of PyTorch Geometric, so that what else the machine does troubles both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROW_INTERVALS = 12


@dataclass(frozen=True)
class Row:
    """One training run.

    Attributes:
        name: of its folder.
        config: a shipped configuration.
        changes: of it, as for ``molkern train --set``.
        peer: whether PyTorch Geometric's model is trained in place of molkern's.
    """

    name: str
    config: str
    changes: tuple[str, ...] = ()
    peer: bool = False


HOMO = "objective={homo: {weight: 1/std, loss: mae}}"
DIPOLE = "objective={mu: {weight: 1/std, loss: mae}}"
SEVERAL = ", ".join(f"{name}: {{weight: 1/std, loss: mae}}" for name in ("U0", "homo", "mu"))
THREE = (f"objective={{{SEVERAL}}}", "model.readout=[sum, mean, mean]")
# PhysNet's loss of energies and dipoles together
BOTH = ("objective={U0: {weight: 1/std, loss: mae}, mu: {weight: 1/std, loss: mae}}",)
MEAN, MOMENT = (HOMO, "model.readout=mean"), (DIPOLE, "model.prediction=dipole_moment")


def rows() -> list[Row]:
    """Pairs that run at the same time, one after the other."""
    found = []
    for name, model in (("schnet", "schnet"), ("dimenetpp", "dimenetpp")):
        found += [
            Row(f"{name}-ethanol", f"{model}-ethanol-small"),
            Row(f"pyg-{name}-ethanol", f"{model}-ethanol-small", peer=True),
        ]
    for label, changes in (("U0", ()), ("homo", MEAN), ("mu", MOMENT)):
        found += [
            Row(f"schnet-{label}", "schnet-qm9-small", changes),
            Row(f"pyg-schnet-{label}", "schnet-qm9-small", changes, peer=True),
        ]
    found += [
        Row("dimenetpp-U0-homo-mu", "dimenetpp-qm9-small", THREE),
        Row("pyg-dimenetpp-U0-homo-mu", "dimenetpp-qm9-small", THREE, peer=True),
        Row("physnet-ethanol", "physnet-ethanol-small"),
        Row("dtnn-ethanol", "dtnn-ethanol-small"),
        Row("physnet-U0-mu", "physnet-qm9-small", BOTH),
        Row("dtnn-U0", "dtnn-qm9-small"),
        Row("physnet-homo", "physnet-qm9-small", (*MEAN, "model.use_electrostatics=false")),
        Row("dtnn-homo", "dtnn-qm9-small", MEAN),
        Row("dtnn-mu", "dtnn-qm9-small", (*MOMENT, "model.zero_start=false")),
    ]
    return found


def build_peer(config, labels, standards):
    from pyg_models import PyGPotential

    from molkern.training.standardize import build_model

    return PyGPotential(build_model(config, labels, standards))


def calibrated(row: Row, minutes: float, changes: list[str]):
    """The row's configuration with as many steps as the minutes hold."""
    from molkern.training import config as configs
    from molkern.training import run
    from molkern.training.module import TrainingData
    from molkern.training.objective import evaluate, needed
    from molkern.training.standardize import build_model

    config = configs.read_config(row.config, changes)
    prepared = run.prepare(config, None, build_peer if row.peer else build_model)
    module, labels = prepared.module, prepared.labels
    data = TrainingData(prepared.data, prepared.split, config, needed(labels, prepared.data))
    optimizer = module.configure_optimizers()["optimizer"]
    seconds = []
    for sample, share in islice(data.train_dataloader(), 25):
        start = time.perf_counter()
        out = evaluate(module.model, labels, sample)
        loss = module.objective.loss(out, sample, share.systems, share.atoms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.follow(1)
        seconds.append(time.perf_counter() - start)
    module.best.eval()
    start = time.perf_counter()
    for sample, _share in data.val_dataloader():
        evaluate(module.best, labels, sample)
    validation = time.perf_counter() - start
    step = statistics.median(seconds[5:]) + OVERHEAD
    left = 60 * minutes - ROW_INTERVALS * validation
    every = max(1, int(left / step / ROW_INTERVALS))
    steps = [f"training.steps={every * ROW_INTERVALS}", f"training.validate_every={every}"]
    return configs.read_config(row.config, [*changes, *steps])


#: What the loop around a step costs, seconds.
OVERHEAD = 0.002


def train(row: Row, minutes: float, qm9: str, out: Path) -> None:
    from molkern.training import results, run
    from molkern.training.standardize import build_model

    changes = [*row.changes, *([f"data.path={qm9}"] if "qm9" in row.config else [])]
    config = calibrated(row, minutes, changes)
    folder = out / row.name
    build = build_peer if row.peer else build_model
    run.train(config, folder, restart=True, device="cpu", progress=False, build=build)
    prepared = run.prepare(config, folder / run.SPLIT, build)
    model = prepared.model
    import safetensors.torch

    model.load_state_dict(safetensors.torch.load_file(folder / "best.safetensors"))
    members = prepared.split["test"]
    names = list(config.objective)
    found = results.predictions(model.eval(), prepared.labels, prepared.data, members, names)
    errors = {name: results.errors_of(*pair) for name, pair in found.items()}
    report = dict(errors=errors, systems=len(members), peer=row.peer)
    (folder / "test.json").write_text(json.dumps(report, indent=1) + "\n")


def work(core: int, queue, minutes: float, qm9: str, out: Path) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    while (row := queue.get()) is not None:
        try:
            print(time.strftime("%H:%M:%S"), row.name, flush=True)
            train(row, minutes, qm9, out)
        except Exception:
            traceback.print_exc()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--qm9", required=True)
    parser.add_argument("--out", type=Path, default=Path("build/training"))
    parser.add_argument("--only", nargs="*", help="names of rows; by default all")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for row in rows():
        if options.only is None or row.name in options.only:
            queue.put(row)
    cores = sorted(os.sched_getaffinity(0))[:2]
    for _ in cores:
        queue.put(None)
    arguments = (queue, options.minutes, options.qm9, options.out)
    workers = [context.Process(target=work, args=(core, *arguments)) for core in cores]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
