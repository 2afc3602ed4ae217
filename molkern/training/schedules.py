"""Learning rates over steps, as in the papers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from .config import Optimizer, Schedule


def rate_at(schedule: Schedule, steps: int) -> Callable[[int], float]:
    """The learning rate at each step, relative to the first, of all schedules but the plateau."""

    def decay(step: int) -> float:
        if schedule.name == "exponential":
            times = step / schedule.decay_steps
            return schedule.rate ** (math.floor(times) if schedule.staircase else times)
        if schedule.name == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        return 1.0

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / (schedule.warmup + 1))
        return rise * decay(step)

    return rate


def make_schedule(
    schedule: Schedule, optimizer: torch.optim.Optimizer, steps: int
) -> LambdaLR | ReduceLROnPlateau:
    """The scheduler: a plateau is looked at after each validation, others follow every step."""
    if schedule.name == "plateau":
        return ReduceLROnPlateau(optimizer, factor=schedule.rate, patience=schedule.patience)
    return LambdaLR(optimizer, rate_at(schedule, steps))


def make_optimizer(
    options: Optimizer, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Adam as the configuration says; on a GPU in one kernel for all parameters."""
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(
        parameters,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        amsgrad=options.name == "amsgrad",
    )
