"""Weights from other packages and from the authors' checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from ..elements import referenced
from ..files import in_one_line
from ..host import random_states_kept
from ..models import Potential
from ..ops._arguments import checked
from ..ops._library import as_tensor
from ..ops._modes import ordinary_tensors
from . import dimenet, dtnn, physnet, schnet
from .audit import check_untouched
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

    Converts SchNet, DimeNet and DimeNetPlusPlus of ``torch_geometric.nn``. Everything is converted
    or refused by name: options, what was changed after the module was made, submodules of other
    classes, hooks, parametrisations, methods of a module's own. Frozen parameters stay frozen.

    The converted model sums over all neighbors within the cutoff: it does not truncate at
    ``max_num_neighbors``, of which fewer than the package's default are refused. An
    ``interaction_graph`` of one's own is tried out on some sets of atoms, and refused where it
    gives others than all neighbors within the cutoff: call the converted model with
    ``neighbors=NeighborList.from_edge_index(...)`` for those.

    SchNet's atomic references stay trainable, and tell the elements that the model knows
    (``model.elements``); with ``dipole=True`` the centre of mass follows from the module's own
    masses. DimeNet's angles are those of that package, and its spherical basis is as it is rounded
    there.

    Raises:
        TypeError: a module of another class.
        ValueError: what has no counterpart, by name.
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
    Frozen parameters stay frozen, and references tell the elements that the model knows. Hooks,
    parametrisations, other submodules and replaced methods are refused, as by :func:`from_pyg`.

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
    all neighbors within the cutoff: it does not truncate at ``max_num_neighbors``, of which fewer
    than mlcg's default are refused. Frozen parameters stay frozen. Hooks, parametrisations, other
    submodules and replaced methods are refused, as by :func:`from_pyg`.

    Raises:
        TypeError: a module of another class, one derived from these too.
        ValueError: a part that has no counterpart, by name.
    """
    inner: Any = module
    while is_one_of(inner, "mlcg", "GradientsOut", "EnergyOut"):
        check_untouched(inner, f"the wrapper {type(inner).__name__}")
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
        with random_states_kept():
            model = convert(module)
    except AttributeError as error:
        raise ValueError(
            f"this {kind(module)} is of a version that is not known here: {error}"
        ) from error
    return _told(model).train(module.training)


def _told(model: Potential) -> Potential:
    """The model, which knows the elements that it has references for, where it has any.

    And number 0, which is no element: packages pad with it.
    """
    found = referenced(model.config.get("reference"))
    if found is not None:
        model.elements = [0, *(z for z in found if z < model.num_elements)]
    return model


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
        ValueError: a file that is no checkpoint of tensors and plain values, an entry that is
            missing or has no place in the model, or an option that is not known or has no
            counterpart, by name.
    """
    if isinstance(state, str | Path):
        path, state = state, _checkpoint(state)
        try:
            return from_asparagus(state, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if isinstance(config, str | Path):
        config = _json_object(str(config), _text(config))
    if physnet.ASPARAGUS not in state:
        raise ValueError(f"no state of Asparagus' PhysNet: {physnet.ASPARAGUS!r} is missing")
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} in the state is a {type(value).__name__}, no tensor")
    tensors = {name: value.detach() for name, value in state.items()}
    with _one_kind_of_error():
        return _apply(physnet.from_asparagus_state, tensors, Entries(config, "its configuration"))


def _checkpoint(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, which is read without running code from it."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # which names the file
    except Exception as error:
        # Whatever torch says: damaged archives, pickles of other objects, which may hold code
        raise ValueError(
            f"{path} is not a checkpoint of tensors and plain values: {in_one_line(error)}"
        ) from error
    state = found.get("model_state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, no state of a model")
    return dict(state)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text: {error}") from error


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """What a recipe trips over in a strange file is a ValueError, in one line."""
    try:
        yield
    except ValueError:
        raise
    except (
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise ValueError(f"it is not what it seems: {in_one_line(error)}") from error


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
            has no place in the model, a wrong shape or type, or an option of its description that
            is not known or contradicts the tensors.
    """
    arrays = _arrays(path)
    try:
        with _one_kind_of_error():
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
    with random_states_kept():
        model = recipe(source, meta)
    if unknown := sorted(set(entries) - source.read):
        raise ValueError(f"unknown entries, which {recipe.__name__} cannot use: {unknown}")
    return _told(model).eval()


def _tensor(value: Any) -> torch.Tensor | None:
    """Numbers as a tensor; None for what is no number."""
    if isinstance(value, torch.Tensor):
        return value
    return as_tensor(value) if value.dtype.kind in "fiu" else None


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a JSON object: {error}") from error
