"""Weights from other packages and from the authors' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models import Potential
from . import schnet

__all__ = ["from_pyg", "load"]


def from_pyg(module: nn.Module) -> Potential:
    """A model of PyTorch Geometric as molkern's, with its weights, type and device.

    Converts ``torch_geometric.nn.SchNet``. The converted model sums over all neighbors within the
    cutoff: it does not truncate at ``max_num_neighbors``. Atomic references stay trainable.

    Raises:
        TypeError: a module of another class.
        ValueError: an option that has no counterpart, by name.
    """
    kind = f"{type(module).__module__}.{type(module).__name__}"
    if not (kind.startswith("torch_geometric.") and kind.endswith(".SchNet")):
        raise TypeError(f"from_pyg converts torch_geometric.nn.SchNet, got {kind}")
    return schnet.from_pyg_schnet(module).train(module.training)


def load(path: str | Path) -> Potential:
    """A model from an ``.npz`` of published variables, recognised by their names.

    Knows the SchNet of the authors' 2018 code, of SchNetPack 2 and of mlcg, of any size; what the
    tensors do not tell is read from the entry ``meta_json`` or ``hyper_json``. The model has the
    file's type and is in evaluation mode.

    Raises:
        ValueError: a file that holds none of these.
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta: dict[str, Any] = {}
    for name in ("meta_json", "hyper_json"):
        if name in arrays:
            meta = json.loads(str(arrays.pop(name)))
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    for name, recipe in schnet.RECIPES.items():
        if name in tensors:
            return recipe(tensors, meta).eval()
    raise ValueError(
        f"{path}: no model recognised by its variables (the first are {sorted(arrays)[:3]}); "
        f"one of {list(schnet.RECIPES)} is needed"
    )
