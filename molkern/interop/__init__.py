"""Weights from other packages and from the authors' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from ..models import Potential
from . import dtnn, schnet

__all__ = ["from_pyg", "load"]

#: Recipes by a name that only that code's files have.
RECIPES = schnet.RECIPES | dict.fromkeys(dtnn.SIGNATURES, dtnn.from_official_dtnn)


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

    Knows the DTNN of the authors' 2017 code, and the SchNet of the authors' 2018 code, of
    SchNetPack 2 and of mlcg, of any size; what the
    tensors do not tell is read from the entry ``meta_json`` or ``hyper_json``. The model has the
    file's type and is in evaluation mode. An entry that has no place in the model is an error: it
    would be missing from the energies.

    Raises:
        ValueError: a file that is no archive or holds none of these, an entry that is missing or
            has no place in the model, or a wrong shape.
    """
    arrays = _arrays(path)
    try:
        return _convert(arrays).eval()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _arrays(path: str | Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    # TypeError and AttributeError: an array alone is no context manager
    except (ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is not an .npz archive of plain arrays: {error}") from error


def _convert(arrays: dict[str, np.ndarray]) -> Potential:
    meta = schnet.Entries({}, "its meta_json")
    for name in ("meta_json", "hyper_json"):
        if name in arrays:
            meta = schnet.Entries(_json_object(name, str(arrays.pop(name))), f"its {name}")
    numeric = {name: array for name, array in arrays.items() if array.dtype.kind in "fiu"}
    tensors = schnet.Entries({n: torch.from_numpy(a) for n, a in numeric.items()}, "the file")
    for name, recipe in RECIPES.items():
        if name in tensors:
            model = recipe(tensors, meta)
            if unknown := sorted(set(arrays) - tensors.read):
                raise ValueError(f"unknown entries, which {recipe.__name__} cannot use: {unknown}")
            return model
    raise ValueError(
        f"no model recognised by its variables (the first are {sorted(arrays)[:3]}); "
        f"one of {list(RECIPES)} is needed"
    )


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a JSON object: {error}") from error
