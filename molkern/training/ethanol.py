"""Trains the SchNet that is shipped with molkern: ``python -m molkern.training.ethanol``.

Minimises ``ρ (E - Ê)² + mean |F - F̂|²`` (Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 9)
with Adam, a cosine schedule and an exponential moving average of the weights, of which the best on
the validation frames is kept. Writes the weights and a card with errors and settings.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch

from ..data import Frames, ethanol_frames
from ..files import write_whole
from ..host import random_states_kept, usual_torch
from ..models import SchNet
from ..progress import progress_bar

ENERGY_WEIGHT = 0.05
BATCH_SIZE = 10
LEARNING_RATE = 2e-3
AVERAGE = 0.998
CHECKS = 50  # how often the validation error is taken in a run


def new_model(train: Frames) -> SchNet:
    """A small SchNet whose mean energy per atom is that of the training frames."""
    mean = float(train.energies.mean()) / train.numbers.shape[0]
    model = SchNet(64, 64, 3, num_basis=32, cutoff=5.0, num_elements=10, mean=mean)
    model.elements = train.numbers.tolist()
    return model


def errors(model: SchNet, frames: Frames) -> tuple[float, float]:
    """Mean absolute errors of energies in eV and of force components in eV/Å."""
    model.eval()
    out = model(frames.batch(), forces=True)
    forces = out["forces"].double().reshape(frames.forces.shape)
    energy_error = (out["energy"] - frames.energies).abs().mean()
    return float(energy_error), float((forces - frames.forces).abs().mean())


def train_step(model: SchNet, optimizer: torch.optim.Optimizer, frames: Frames) -> None:
    model.train()
    out = model(frames.batch(), forces=True)
    energy_loss = (out["energy"] - frames.energies).square().mean()
    wanted = frames.forces.reshape(-1, 3).to(out["forces"].dtype)
    force_loss = (out["forces"] - wanted).square().sum(1).mean()
    optimizer.zero_grad()
    (ENERGY_WEIGHT * energy_loss + force_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()


@random_states_kept()
@usual_torch()
def train(steps: int, seed: int = 0) -> tuple[SchNet, dict[str, tuple[float, float]]]:
    """Trains for a number of steps; returns the best average model and its errors by split."""
    torch.manual_seed(seed)
    split = ethanol_frames()
    model = new_model(split["train"])
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, best_error = copy.deepcopy(model), float("inf")
    progress = progress_bar(range(1, steps + 1), desc="training", unit="step")
    for step in progress:
        choice = torch.randint(len(split["train"]), (BATCH_SIZE,), device="cpu")
        train_step(model, optimizer, split["train"][choice])
        schedule.step()
        with torch.no_grad():
            decay = min(AVERAGE, step / (step + 10))
            for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        if step % max(1, steps // CHECKS) == 0:
            energy_error, force_error = errors(averaged, split["validation"])
            progress.set_postfix(
                E=f"{energy_error * 1e3:.1f} meV", F=f"{force_error * 1e3:.1f} meV/Å"
            )
            if force_error < best_error:
                best, best_error = copy.deepcopy(averaged), force_error
    return best, {name: errors(best, frames) for name, frames in split.items()}


def card(results: dict[str, tuple[float, float]], steps: int, minutes: float) -> str:
    rows = "\n".join(
        f"| {name} | {energy * 1e3:.2f} | {force * 1e3:.2f} |"
        for name, (energy, force) in results.items()
    )
    return f"""# ethanol_schnet

SchNet for one ethanol molecule: 64 features, 3 interactions, 32 Gaussians, cosine cutoff at 5 Å;
energies in eV, lengths in Å, float32. Made to show molkern at work, not for research.

**Data**: `ethanol_gfn2_500K.npz`, 2,000 frames of a Langevin trajectory at 500 K, 5 fs apart,
labelled with GFN2-xTB (tblite 0.8.0); made for this project, MIT like the code. Split at random
(seed 0): 1,000 training, 200 validation, 800 test frames. Consecutive frames are alike, so these
errors say little about geometries far from a trajectory at 500 K.

| mean absolute error | energy, meV | force component, meV/Å |
|---|---|---|
{rows}

**Training**: {steps:,} steps of {BATCH_SIZE} molecules, Adam from {LEARNING_RATE:g} on a cosine
schedule, loss {ENERGY_WEIGHT:g}·(E - Ê)² + |F - F̂|², average of the weights with decay {AVERAGE};
{minutes:.0f} minutes on {torch.get_num_threads()} CPU thread(s). To train it again:
`python -m molkern.training.ethanol --steps {steps}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("ethanol_schnet.safetensors"))
    options = parser.parse_args()
    start = time.monotonic()
    model, results = train(options.steps, options.seed)
    minutes = (time.monotonic() - start) / 60
    model.save(options.out)
    text = card(results, options.steps, minutes)
    write_whole(options.out.with_suffix(".md"), text.encode())
    print(text)


if __name__ == "__main__":
    main()
