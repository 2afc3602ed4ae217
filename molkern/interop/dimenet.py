"""DimeNet and DimeNet++ weights of other codes: where each tensor stands under their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..models import DimeNet, DimeNetPlusPlus, Potential
from ..nn.triplets import legendre
from .audit import (
    ACTIVATION,
    EMBEDDING,
    LINEAR,
    LIST,
    Parts,
    audit,
    part,
    refuse_unused,
    tensors_of,
)
from .entries import check_options, copy, count, network_type, scalar, shape_of
from .entries import transposed as flipped
from .graphs import check_most_neighbors
from .modules import is_one_of

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
    name = their_name("embedding.emb.weight")
    first = source[name]
    model.to(first.device, network_type(first, name))
    for name, parameter in model.named_parameters():
        theirs = their_name(name)
        value = source[theirs]
        matrix = name.endswith(".weight") and not name.endswith("emb.weight")
        copy(parameter, flipped(value, theirs) if transposed and matrix else value, theirs)
    return model


def _sizes(
    source: Mapping[str, Tensor], their_name: Callable[[str], str], transposed: bool = False
) -> dict[str, Any]:
    """Sizes that both codes tell by the shapes of their tensors."""

    def shape(name: str, dims: int = 2) -> tuple[int, ...]:
        found = shape_of(source[their_name(name)], dims, their_name(name))
        return found[::-1] if transposed and not name.endswith("emb.weight") else found

    def number(pattern: str) -> int:
        return count(source, their_name(pattern))

    elements, hidden = shape("embedding.emb.weight")
    (functions,) = shape("basis.frequencies", 1)
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


#: Sizes that the official code has other names for, or none.
_OWN_SIZES = ("hidden_channels", "num_output_layers", "num_elements")


def _from_official(
    kind: type[Model], source: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> Model:
    sizes = _sizes(source, _official_name, transposed=True)
    cutoff = scalar(meta["cutoff"], "cutoff")
    exponent = scalar(meta["envelope_exponent"], "envelope_exponent")
    extensive = meta.get("extensive", True)
    check_options(
        meta,
        kind="dimenet" if kind is DimeNet else "dimenet_pp",
        activation="swish",
        emb_size=sizes["hidden_channels"],
        num_dense_output=sizes["num_output_layers"],
        output_init=meta.get("output_init"),  # of weights that are there
        **{name: size for name, size in sizes.items() if name not in _OWN_SIZES},
    )
    model = kind(
        **sizes,
        cutoff=cutoff,
        exponent=round(exponent) + 1,
        zeros_dtype="float32",
        readout="sum" if extensive else "mean",
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


PACKAGE = "torch_geometric"
_SHARED = "num_radial hidden_channels act"
_SKIPS = "num_spherical num_radial num_before_skip num_after_skip"
_OUTPUT = "num_radial hidden_channels out_channels num_layers act output_initializer"
_ARGUMENTS = (
    "hidden_channels out_channels num_blocks num_spherical num_radial cutoff max_num_neighbors "
    "envelope_exponent num_before_skip num_after_skip num_output_layers act output_initializer"
)
_RESIDUAL = part(PACKAGE, "ResidualLayer", "hidden_channels act")
_ENVELOPE = part(PACKAGE, "Envelope", "exponent")
_SKIP_LAYERS = "interaction_blocks.*.layers_before_skip", "interaction_blocks.*.layers_after_skip"
_COMMON: Parts = {
    "rbf": part(PACKAGE, "BesselBasisLayer", "num_radial cutoff envelope_exponent"),
    "sbf": part(
        PACKAGE, "SphericalBasisLayer", "num_spherical num_radial cutoff envelope_exponent"
    ),
    "rbf.envelope": _ENVELOPE,
    "sbf.envelope": _ENVELOPE,
    "emb": part(PACKAGE, "EmbeddingBlock", _SHARED),
    "emb.emb": EMBEDDING,
    "emb.lin_rbf": LINEAR,
    "emb.lin": LINEAR,
    "output_blocks": LIST,
    "output_blocks.*.lins": LIST,
    "interaction_blocks": LIST,
    **{f"output_blocks.*.{name}": LINEAR for name in ("lin_rbf", "lin", "lins.*")},
    **{f"interaction_blocks.*.{name}": LINEAR for name in ("lin_kj", "lin_ji", "lin")},
    **dict.fromkeys(_SKIP_LAYERS, LIST),
    **{f"{name}.*": _RESIDUAL for name in _SKIP_LAYERS},
    **{f"{name}.*.{lin}": LINEAR for name in _SKIP_LAYERS for lin in ("lin1", "lin2")},
    **{f"{name}.*.act": ACTIVATION for name in (*_SKIP_LAYERS, "output_blocks")},
    "interaction_blocks.*.act": ACTIVATION,
    "emb.act": ACTIVATION,
}
#: All that PyTorch Geometric's models consist of; activations are looked at for themselves.
PYG_PARTS: dict[str, Parts] = {
    "DimeNet": {
        **_COMMON,
        "": part(PACKAGE, "DimeNet", f"{_ARGUMENTS} num_bilinear"),
        "output_blocks.*": part(PACKAGE, "OutputBlock", _OUTPUT),
        "interaction_blocks.*": part(
            PACKAGE, "InteractionBlock", f"hidden_channels num_bilinear {_SKIPS} act"
        ),
        **{f"interaction_blocks.*.{name}": LINEAR for name in ("lin_rbf", "lin_sbf")},
    },
    "DimeNetPlusPlus": {
        **_COMMON,
        "": part(
            PACKAGE,
            "DimeNetPlusPlus",
            f"{_ARGUMENTS} int_emb_size basis_emb_size out_emb_channels",
        ),
        "output_blocks.*": part(PACKAGE, "OutputPPBlock", f"{_OUTPUT} out_emb_channels"),
        "output_blocks.*.lin_up": LINEAR,
        "interaction_blocks.*": part(
            PACKAGE,
            "InteractionPPBlock",
            f"hidden_channels int_emb_size basis_emb_size {_SKIPS} act",
        ),
        **{
            f"interaction_blocks.*.{name}": LINEAR
            for name in ("lin_rbf1", "lin_rbf2", "lin_sbf1", "lin_sbf2", "lin_down", "lin_up")
        },
    },
}


def from_pyg_dimenet(module: Any) -> DimeNet | DimeNetPlusPlus:
    """PyTorch Geometric's ``DimeNet`` or ``DimeNetPlusPlus``, see :func:`molkern.interop.from_pyg`.

    Its spherical basis is rounded to float32, zeros and norms, in a way that depends on the NumPy
    it was made with: the norms are taken from the module itself.
    """
    _check_activations(module)
    audit(module, PYG_PARTS[type(module).__name__])
    check_most_neighbors(module.max_num_neighbors, module)
    tensors = tensors_of(module)
    options = {
        **_sizes(tensors, _pyg_name),
        **_bases(module),
        "output_init": module.output_blocks[0].output_initializer,
        "zeros_dtype": "float32",
    }
    model: DimeNet | DimeNetPlusPlus
    if "num_bilinear" in options:
        model = fill(DimeNet(**options), tensors, _pyg_name)
    else:
        model = fill(DimeNetPlusPlus(**options), tensors, _pyg_name)
    refuse_unused(tensors)
    model.embedding.emb.padding_idx = module.emb.emb.padding_idx  # a row that is not trained
    _take_norms(model, module)
    return model


def _check_activations(module: Any) -> None:
    """Refuses others than swish in any place, functions too, which are no submodules."""
    for path, found in module.named_modules():
        act = getattr(found, "act", None)
        swish = type(act) is nn.SiLU or act is nn.functional.silu
        if act is not None and not (swish or is_one_of(act, PACKAGE, "swish")):
            name = getattr(act, "__name__", type(act).__name__)
            raise ValueError(
                f"{path}.act: from_pyg converts DimeNet with the activation swish (silu), not "
                f"{name}"
            )


def _bases(module: Any) -> dict[str, Any]:
    """Cutoff and envelope of the bases, which must be those of the graph and of each other."""
    cutoff = scalar(module.cutoff, "cutoff")
    power = module.rbf.envelope.p
    expected = dict(p=power, a=-(power + 1) * (power + 2) / 2, b=power * (power + 2))
    expected["c"] = -power * (power + 1) / 2
    for name in ("rbf", "sbf"):
        basis = getattr(module, name)
        if scalar(basis.cutoff, f"{name}.cutoff") != cutoff:
            raise ValueError(f"cutoff is {cutoff}, but that of {name} is {basis.cutoff}")
        for letter, value in expected.items():
            if getattr(basis.envelope, letter) != value:
                raise ValueError(
                    f"{name}.envelope has {letter}={getattr(basis.envelope, letter)}, {value} is "
                    f"needed: the one of exponent {power}"
                )
    return {"cutoff": cutoff, "exponent": power}


def _take_norms(model: DimeNet | DimeNetPlusPlus, module: Any) -> None:
    """The norms of the module's functions, which otherwise are those of ours, by least squares."""
    spherical = model.spherical
    like = spherical.zeros
    if (module.sbf.num_spherical, module.sbf.num_radial) != tuple(like.shape):
        raise ValueError(
            f"sbf has {module.sbf.num_spherical} orders of {module.sbf.num_radial} functions, the "
            f"weights are for {like.shape[0]} of {like.shape[1]}"
        )
    distances = model.cutoff * torch.linspace(0.3, 0.9, 61).to(like)
    edges = torch.arange(len(distances), device=like.device)
    angles = torch.zeros_like(distances)  # where all Legendre polynomials are 1
    with torch.no_grad():
        ours = spherical(distances)
        theirs = module.sbf(distances, angles, edges).reshape(ours.shape)
        spherical.norms *= (ours * theirs).sum(0) / (ours * ours).sum(0)
        angles = torch.linspace(0.1, 3.0, 61).to(like)
        ours = spherical(distances) * legendre(angles.cos(), len(like)).unsqueeze(2)
        theirs = module.sbf(distances, angles, edges).reshape(ours.shape)
        error = float((ours - theirs).abs().amax(0).max() / theirs.abs().max())
    if not error < 1e-5:
        raise ValueError(
            f"sbf has functions of its own, which differ by {error:.1g} from DimeNet's"
        )
