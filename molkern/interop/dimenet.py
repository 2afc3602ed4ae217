"""DimeNet and DimeNet++ weights of other codes: where each tensor stands under their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..models import DimeNet, DimeNetPlusPlus, Potential
from .entries import copy, count

#: Parts of molkern's names and what takes their place, in this order.
PYG = {
    "embedding.": "emb.",
    "basis.frequencies": "rbf.freq",
    "interactions.": "interaction_blocks.",
    "outputs.": "output_blocks.",
    ".bilinear": ".W",
}
OFFICIAL = {
    "embedding.emb.weight": "emb_block/embeddings",
    "embedding.lin_rbf.": "emb_block/dense_rbf/",
    "embedding.lin.": "emb_block/dense/",
    "basis.frequencies": "rbf_layer/frequencies",
    "lin_down.": "down_projection.",
    "lin_up.": "up_projection.",
    ".lin1.": ".dense_1.",
    ".lin2.": ".dense_2.",
    ".lins.": ".dense_layers.",
    ".lin_": ".dense_",
    "weight": "kernel",
    ".": "/",
    "interactions/": "int_blocks/",
    "outputs/": "output_blocks/",
}
#: What the layer ``lin`` of these blocks is called.
OFFICIAL_LAST = {"interactions": "final_before_skip", "outputs": "dense_final"}

Model = TypeVar("Model", DimeNet, DimeNetPlusPlus)


def _pyg_name(name: str) -> str:
    for ours, theirs in PYG.items():
        name = name.replace(ours, theirs)
    return name


def _official_name(name: str) -> str:
    for block, last in OFFICIAL_LAST.items():
        if name.startswith(block):
            name = name.replace(".lin.", f".{last}.")
    for ours, theirs in OFFICIAL.items():
        name = name.replace(ours, theirs)
    return name


def fill(
    model: Model,
    source: Mapping[str, Tensor],
    their_name: Callable[[str], str],
    transposed: bool = False,
) -> Model:
    """Copies weights of ``source`` into the model, which takes their type and device."""
    first = source[their_name("embedding.emb.weight")]
    model.to(first.device, first.dtype)
    for name, parameter in model.named_parameters():
        theirs = their_name(name)
        value = source[theirs]
        matrix = name.endswith(".weight") and not name.endswith("emb.weight")
        copy(parameter, value.T if transposed and matrix else value, theirs)
    return model


def _sizes(
    source: Mapping[str, Tensor], their_name: Callable[[str], str], transposed: bool = False
) -> dict[str, Any]:
    """Sizes that both codes tell by the shapes of their tensors."""

    def shape(name: str) -> tuple[int, ...]:
        found = tuple(source[their_name(name)].shape)
        return found[::-1] if transposed and not name.endswith("emb.weight") else found

    def number(pattern: str) -> int:
        return count(source, their_name(pattern))

    elements, hidden = shape("embedding.emb.weight")
    (functions,) = shape("basis.frequencies")
    sizes = {
        "hidden_channels": hidden,
        "num_elements": elements,
        "num_radial": functions,
        "num_targets": shape("outputs.0.lin.weight")[0],
        "num_blocks": number("interactions.{i}.lin.weight"),
        "num_before_skip": number("interactions.0.layers_before_skip.{i}.lin1.weight"),
        "num_after_skip": number("interactions.0.layers_after_skip.{i}.lin1.weight"),
        "num_output_layers": number("outputs.0.lins.{i}.weight"),
    }
    if their_name("interactions.0.bilinear") in source:
        bilinear, of_sphere = shape("interactions.0.lin_sbf.weight")
        return {**sizes, "num_spherical": of_sphere // functions, "num_bilinear": bilinear}
    embedded, of_sphere = shape("interactions.0.lin_sbf1.weight")
    return {
        **sizes,
        "num_spherical": of_sphere // functions,
        "basis_emb_size": embedded,
        "int_emb_size": shape("interactions.0.lin_down.weight")[0],
        "out_emb_size": shape("outputs.0.lin_up.weight")[0],
    }


def _from_official(
    kind: type[Model], source: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Model:
    model = kind(
        **_sizes(source, _official_name, transposed=True),
        cutoff=meta["cutoff"],
        exponent=meta["envelope_exponent"] + 1,
        zeros_dtype="float32",
    )
    return fill(model, source, _official_name, transposed=True)


def from_official(source: Mapping[str, Tensor], meta: dict[str, Any]) -> DimeNet:
    """DimeNet in the authors' code (TensorFlow variables)."""
    return _from_official(DimeNet, source, meta)


def from_official_plusplus(source: Mapping[str, Tensor], meta: dict[str, Any]) -> DimeNetPlusPlus:
    """DimeNet++ in the authors' code (TensorFlow variables)."""
    return _from_official(DimeNetPlusPlus, source, meta)


#: Recipes by a name that only that code's files have.
RECIPES: dict[str, Callable[[Mapping[str, Tensor], dict[str, Any]], Potential]] = {
    "int_blocks/0/bilinear": from_official,
    "int_blocks/0/down_projection/kernel": from_official_plusplus,
}


def from_pyg_dimenet(module: Any) -> DimeNet | DimeNetPlusPlus:
    """PyTorch Geometric's ``DimeNet`` or ``DimeNetPlusPlus``, see :func:`molkern.interop.from_pyg`.

    Its spherical basis is rounded to float32, zeros and norms, in a way that depends on the NumPy
    it was made with: the norms are taken from the module itself.
    """
    act = module.emb.act
    name = getattr(act, "__name__", type(act).__name__)
    if name.lower() not in ("silu", "swish"):
        raise ValueError(f"from_pyg converts DimeNet with the activation swish (silu), not {name}")
    state = module.state_dict()
    options = {
        **_sizes(state, _pyg_name),
        "cutoff": float(module.cutoff),
        "exponent": module.rbf.envelope.p,
        "zeros_dtype": "float32",
    }
    model: DimeNet | DimeNetPlusPlus
    if "num_bilinear" in options:
        model = fill(DimeNet(**options), state, _pyg_name)
    else:
        model = fill(DimeNetPlusPlus(**options), state, _pyg_name)
    _take_norms(model, module)
    return model


def _take_norms(model: DimeNet | DimeNetPlusPlus, module: Any) -> None:
    """The norms of the module's functions, which otherwise are those of ours, by least squares."""
    spherical = model.spherical
    device = spherical.zeros.device
    distances = model.cutoff * torch.linspace(0.3, 0.9, 61, dtype=torch.float64, device=device)
    angles = torch.zeros_like(distances)  # where all Legendre polynomials are 1
    edges = torch.arange(len(distances), device=device)
    with torch.no_grad():
        ours = spherical(distances)
        theirs = module.sbf(distances, angles, edges).reshape(ours.shape)
        spherical.norms *= (ours * theirs).sum(0) / (ours * ours).sum(0)
