"""Weights from other packages and from the authors' checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from ..models import Potential
from ..ops._arguments import checked
from ..ops._modes import ordinary_tensors
from . import dimenet, dtnn, physnet, schnet
from .entries import Entries
from .mlcg import from_mlcg_module
from .modules import is_one_of, kind
from .schnetpack import from_schnetpack_module

__all__ = ["from_asparagus", "from_mlcg", "from_pyg", "from_schnetpack", "load"]

#: Converters by the name of PyTorch Geometric's class.
PYG_MODELS: dict[str, Callable[[Any], Potential]] = {
    "SchNet": schnet.from_pyg_schnet,
    "DimeNet": dimenet.from_pyg_dimenet,
    "DimeNetPlusPlus": dimenet.from_pyg_dimenet,
}
#: Recipes by a variable that only files of that code and model have.
RECIPES: dict[str, Callable[[Any, Any], Potential]] = {
    **schnet.RECIPES,
    **physnet.RECIPES,
    **dimenet.RECIPES,
    **dict.fromkeys(dtnn.SIGNATURES, dtnn.from_official_dtnn),
}


def from_pyg(module: nn.Module) -> Potential:
    """A model of PyTorch Geometric as molkern's, with its weights, type and device.

    Converts SchNet, DimeNet and DimeNetPlusPlus of ``torch_geometric.nn``. The converted model sums
    over all neighbors within the cutoff: it does not truncate at ``max_num_neighbors``. SchNet's
    atomic references stay trainable; with ``dipole=True`` the centre of mass follows from the
    module's own masses. DimeNet's angles are those of that package, and its spherical basis is as
    it is rounded there.

    Raises:
        TypeError: a module of another class.
        ValueError: an option that has no counterpart, by name.
    """
    for name, convert in PYG_MODELS.items():
        if is_one_of(module, "torch_geometric", name):
            return _converted(convert, module)
    names = ", ".join(f"torch_geometric.nn.{name}" for name in PYG_MODELS)
    raise TypeError(f"from_pyg converts {names}, got {kind(module)}")


def from_schnetpack(module: nn.Module) -> Potential:
    """A model of SchNetPack 2 as molkern's, with its weights, type and device.

    Converts ``schnetpack.model.NeuralNetworkPotential`` (or an ``AtomisticModel`` with the same
    parts) of a ``SchNet`` representation with Gaussians and the cosine cutoff, one ``Atomwise``
    that sums to an energy, ``Forces``, and the postprocessors ``AddOffsets`` and casts. Its type
    and device are those of the embedding. Forces and stress are asked for when calling it; the
    stress is per volume of the cell. A trained basis stays trainable, but molkern's widths are
    ``1 / (2 σ²)``. Interactions that share their weights become copies, which training parts.

    Raises:
        TypeError: a module of another class, one derived from these too: it may compute something
            else.
        ValueError: a part that has no counterpart or is of another version, by name.
    """
    if not is_one_of(module, "schnetpack", "NeuralNetworkPotential", "AtomisticModel"):
        raise TypeError(
            "from_schnetpack converts schnetpack.model.NeuralNetworkPotential and AtomisticModel, "
            f"got {kind(module)}"
        )
    return _converted(from_schnetpack_module, module)


def from_mlcg(module: nn.Module) -> Potential:
    """A coarse-grained SchNet of mlcg as molkern's, with its weights, type and device.

    Converts ``mlcg.nn.StandardSchNet`` and ``SchNet``, also inside ``GradientsOut`` or
    ``EnergyOut``. Prior terms are not part of it: of a ``SumOut``, give ``module.models["SchNet"]``
    and add the others yourself. Numbers of atoms are mlcg's types. The converted model sums over
    all neighbors within the cutoff: it does not truncate at ``max_num_neighbors``.

    Raises:
        TypeError: a module of another class, one derived from these too.
        ValueError: a part that has no counterpart, by name.
    """
    inner: Any = module
    while is_one_of(inner, "mlcg", "GradientsOut", "EnergyOut"):
        inner = inner.model
    if not is_one_of(inner, "mlcg", "SchNet", "StandardSchNet"):
        hint = ""
        if is_one_of(inner, "mlcg", "SumOut"):
            hint = f"; its terms are {list(inner.models)}: give that of the network"
        raise TypeError(
            f"from_mlcg converts mlcg.nn.SchNet and StandardSchNet, got {kind(inner)}{hint}"
        )
    return _converted(from_mlcg_module, inner)


@ordinary_tensors()
def _converted(convert: Callable[[Any], Potential], module: nn.Module) -> Potential:
    try:
        model = convert(module)
    except AttributeError as error:
        raise ValueError(
            f"this {kind(module)} is of a version that is not known here: {error}"
        ) from error
    return model.train(module.training)


def from_asparagus(
    state: Mapping[str, torch.Tensor] | str | Path, config: Mapping[str, Any] | str | Path
) -> Potential:
    """The PhysNet of Asparagus as molkern's, with its weights and type, in evaluation mode.

    Its functions, ranges and units are taken over: activated skips and outputs, Gaussians,
    shielding, dispersion. Its dipole is about the centre of mass, molkern's of the positions as
    given: they differ for ions.

    Args:
        state: the model's ``state_dict()``, or the path of a checkpoint (``best_model.pt``), which
            is read without running code from it.
        config: its configuration, or the JSON file that Asparagus wrote beside the checkpoints.

    Raises:
        ValueError: an entry that is missing or has no place in the model, or an option that has no
            counterpart, by name.
    """
    if isinstance(state, str | Path):
        checkpoint = torch.load(state, map_location="cpu", weights_only=True)
        state = dict(checkpoint.get("model_state_dict", checkpoint))
    if isinstance(config, str | Path):
        config = _json_object(str(config), Path(config).read_text())
    if physnet.ASPARAGUS not in state:
        raise ValueError(f"no state of Asparagus' PhysNet: {physnet.ASPARAGUS!r} is missing")
    tensors = {name: value.detach() for name, value in state.items()}
    return _apply(physnet.from_asparagus_state, tensors, Entries(config, "its configuration"))


@checked
def load(path: str | Path) -> Potential:
    """A model from an ``.npz`` of published variables, recognised by their names.

    Knows the authors' DTNN, the SchNet of the authors' 2018 code, of SchNetPack 2 and of mlcg, the
    PhysNet of the authors' code and of Asparagus (with its configuration as ``meta_json``), and the
    authors' DimeNet and DimeNet++, of any size; what the tensors do not tell is read from the entry
    ``meta_json`` or ``hyper_json``. The model has the file's type and is in evaluation mode. An
    entry that has no place in the model is an error: it would be missing from the energies.

    Raises:
        ValueError: a file that is no archive or holds none of these, an entry that is missing or
            has no place in the model, or a wrong shape.
    """
    arrays = _arrays(path)
    try:
        return _convert(arrays)
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
    meta = Entries({}, "its meta_json")
    for name in ("meta_json", "hyper_json"):
        if name in arrays:
            meta = Entries(_json_object(name, str(arrays.pop(name))), f"its {name}")
    for name, recipe in RECIPES.items():
        if name in arrays:
            return _apply(recipe, arrays, meta)
    raise ValueError(
        f"no model recognised by its variables (the first are {sorted(arrays)[:3]}); "
        f"one of {list(RECIPES)} is needed"
    )


@ordinary_tensors()
def _apply(
    recipe: Callable[[Any, Any], Potential], entries: Mapping[str, Any], meta: Entries
) -> Potential:
    """The recipe's model, unless there are entries that it did not use."""
    tensors = {name: _tensor(value) for name, value in entries.items()}
    source = Entries({n: t for n, t in tensors.items() if t is not None}, "the file")
    model = recipe(source, meta)
    if unknown := sorted(set(entries) - source.read):
        raise ValueError(f"unknown entries, which {recipe.__name__} cannot use: {unknown}")
    return model.eval()


def _tensor(value: Any) -> torch.Tensor | None:
    """Numbers as a tensor; None for what is no number."""
    if isinstance(value, torch.Tensor):
        return value
    return torch.from_numpy(value) if value.dtype.kind in "fiu" else None


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a JSON object: {error}") from error
