"""SchNet weights of other codes: where each tensor stands under their names.

A layout maps molkern's parameter names to theirs; ``{i}`` counts interactions, and ``{k}`` stands
for the numbers of all layers of the head that there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models import SchNet
from .entries import copy, count


@dataclass(frozen=True)
class Layout:
    """Names of SchNet's tensors in another code."""

    embedding: str
    filters: tuple[str, ...]
    lin_in: str
    lin_out: tuple[str, str]
    head: tuple[str, ...]
    weight: str = ".weight"
    bias: str = ".bias"
    transposed: bool = False  # weights stored (in, out)


OFFICIAL = Layout(
    embedding="atom_embedding/embeddings/W:0",
    filters=("interaction_{i}/SchNetFilter/Dense", "interaction_{i}/SchNetFilter/Dense_1"),
    lin_in="interaction_{i}/CFConv/in2fac",
    lin_out=("interaction_{i}/CFConv/fac2out", "interaction_{i}/Dense"),
    head=("Dense", "Dense_1"),
    weight="/W:0",
    bias="/b:0",
    transposed=True,
)
PYG = Layout(
    embedding="embedding.weight",
    filters=("interactions.{i}.mlp.0", "interactions.{i}.mlp.2"),
    lin_in="interactions.{i}.conv.lin1",
    lin_out=("interactions.{i}.conv.lin2", "interactions.{i}.lin"),
    head=("lin1", "lin2"),
)
SCHNETPACK = Layout(
    embedding="representation.embedding.weight",
    filters=tuple(f"representation.interactions.{{i}}.filter_network.{k}" for k in (0, 1)),
    lin_in="representation.interactions.{i}.in2f",
    lin_out=("representation.interactions.{i}.f2out.0", "representation.interactions.{i}.f2out.1"),
    head=("output_modules.0.outnet.{k}",),
)
MLCG = Layout(
    embedding="embedding_layer.weight",
    filters=tuple(f"interaction_blocks.{{i}}.conv.filter_network.layers.{k}" for k in (0, 2)),
    lin_in="interaction_blocks.{i}.conv.lin1",
    lin_out=("interaction_blocks.{i}.conv.lin2", "interaction_blocks.{i}.lin"),
    head=("output_network.layers.{k}",),
)


def fill(model: SchNet, source: Mapping[str, Tensor], layout: Layout) -> SchNet:
    """Copies weights of ``source`` into the model, which takes their type and device."""
    embedding = source[layout.embedding]
    model.to(embedding.device, embedding.dtype)
    interaction: Any
    for index, interaction in enumerate(model.interactions):
        network = interaction.filter_network.layers
        pairs = [
            (network[0], layout.filters[0]),
            (network[2], layout.filters[1]),
            (interaction.conv.lin_in, layout.lin_in),
            (interaction.conv.lin_out, layout.lin_out[0]),
            (interaction.lin, layout.lin_out[1]),
        ]
        for layer, name in pairs:
            _fill_layer(layer, source, name.format(i=index), layout)
    for layer, name in zip(list(model.head.layers)[::2], _head(source, layout), strict=True):
        _fill_layer(layer, source, name, layout)
    copy(model.embedding.weight, embedding, layout.embedding)
    return model


def _fill_layer(layer: Any, source: Mapping[str, Tensor], name: str, layout: Layout) -> None:
    weight = source[name + layout.weight]
    copy(layer.weight, weight.T if layout.transposed else weight, name)
    if layer.bias is not None:
        copy(layer.bias, source[name + layout.bias], name)


def _head(source: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Names of the head's layers, in order."""
    if "{k}" not in layout.head[0]:
        return list(layout.head)
    before, after = layout.head[0].split("{k}")
    pattern = re.escape(before) + r"(\d+)" + re.escape(after + layout.weight)
    found = sorted(int(match[1]) for name in source if (match := re.fullmatch(pattern, name)))
    return [f"{before}{k}{after}" for k in found or [0]]


def _sizes(source: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """Sizes that every layout tells by the shapes of its tensors."""
    elements, hidden = source[layout.embedding].shape
    filters_in = source[layout.filters[0].format(i=0) + layout.weight]
    if layout.transposed:
        filters_in = filters_in.T
    heads = [source[name + layout.weight] for name in _head(source, layout)[:-1]]
    return {
        "num_elements": elements,
        "hidden_channels": hidden,
        "num_filters": filters_in.shape[0],
        "num_basis": filters_in.shape[1],
        "num_interactions": count(source, layout.lin_in + layout.weight),
        "head_hidden": [w.shape[1] if layout.transposed else w.shape[0] for w in heads],
    }


def from_official(source: Mapping[str, Tensor], meta: dict[str, Any]) -> SchNet:
    """The authors' 2018 code (TensorFlow variables)."""
    model = SchNet(
        **_sizes(source, OFFICIAL),
        cutoff=meta["cutoff"],
        gaussian_coefficient=1.0 / meta["gap"],
        cutoff_function="none",
        activation="ssp_official",
        filter_activation=True,
        scale=float(source["std_per_atom:0"]),
        mean=float(source["mean_per_atom:0"]),
        reference=source["atomref/embeddings/W:0"].flatten().tolist(),
    )
    return fill(model, source, OFFICIAL)


def from_schnetpack_weights(source: Mapping[str, Tensor], meta: dict[str, Any]) -> SchNet:
    """SchNetPack 2: SchNet with Gaussians, cosine cutoff and an ``Atomwise`` head (SiLU).

    Mean and atomic references of an ``AddOffsets`` are those of an extensive energy, per atom.
    """
    mean, reference = _postprocessor(source, "mean"), _postprocessor(source, "atomref")
    heads = (re.fullmatch(r"(output_modules\.\d+\.outnet\.)\d+\.weight", name) for name in source)
    first = next((match[1] for match in heads if match), "output_modules.0.outnet.")
    layout = replace(SCHNETPACK, head=(first + "{k}",))
    model = SchNet(
        **_sizes(source, layout),
        cutoff=float(source["representation.cutoff_fn.cutoff"]),
        head_activation="silu",
        mean=0.0 if mean is None else float(mean),
        reference=None if reference is None else reference.flatten().tolist(),
    )
    with torch.no_grad():  # as stored, also where they were trained
        model.basis.centers.copy_(source["representation.radial_basis.offsets"])
        widths = source["representation.radial_basis.widths"].double()
        model.basis.widths.copy_(0.5 / widths**2)
    return fill(model, source, layout)


def _postprocessor(source: Mapping[str, Tensor], kind: str) -> Tensor | None:
    """That tensor of the first postprocessor that has one."""
    names = [n for n in source if n.startswith("postprocessors.") and n.endswith(f".{kind}")]
    return source[names[0]] if names else None


def from_mlcg_weights(source: Mapping[str, Tensor], meta: dict[str, Any]) -> SchNet:
    """The coarse-grained SchNet of mlcg: tanh, exponential-normal basis, cosine cutoff twice."""
    model = SchNet(
        **_sizes(source, MLCG),
        cutoff=meta["cutoff_upper"],
        basis="exponential",
        activation="tanh",
        filter_bias=MLCG.filters[1].format(i=0) + MLCG.bias in source,
        head_bias=_head(source, MLCG)[-1] + MLCG.bias in source,
    )
    with torch.no_grad():
        model.basis.centers.copy_(source["rbf_layer.means"])
        model.basis.widths.copy_(source["rbf_layer.betas"])
    return fill(model, source, MLCG)


Recipe = Callable[[Mapping[str, Tensor], dict[str, Any]], SchNet]

#: Recipes by a name that only that code's files have.
RECIPES: dict[str, Recipe] = {
    OFFICIAL.embedding: from_official,
    SCHNETPACK.embedding: from_schnetpack_weights,
    MLCG.embedding: from_mlcg_weights,
}


#: Classes of PyTorch Geometric's aggregations over atoms, and what they are called here.
PYG_READOUTS = {"SumAggregation": "sum", "MeanAggregation": "mean"}


def from_pyg_schnet(module: Any) -> SchNet:
    """PyTorch Geometric's ``SchNet`` with its weights, see :func:`molkern.interop.from_pyg`."""
    readout = type(module.readout).__name__
    if readout not in PYG_READOUTS:
        raise ValueError(
            "from_pyg converts SchNet with a sum or mean over atoms, this one has readout "
            f"{readout}"
        )
    state = module.state_dict()
    factor = 1.0 if module.scale is None else float(module.scale)
    if module.dipole and factor < 0:
        raise ValueError(f"from_pyg converts dipoles of a positive scale, this one has {factor}")
    scale = factor * (1.0 if module.std is None else float(module.std))
    mean = factor * (0.0 if module.mean is None else float(module.mean))
    # PyTorch Geometric applies the two only together, and neither they nor references to a dipole
    if module.dipole or (module.mean is None) != (module.std is None):
        scale, mean = factor, 0.0
    reference = None
    if module.atomref is not None and not module.dipole:
        reference = (factor * module.atomref.weight.detach().double().flatten()).tolist()
    model = SchNet(
        **_sizes(state, PYG),
        cutoff=float(module.cutoff),
        activation="ssp_pyg",
        scale=scale,
        mean=mean,
        reference=reference,
        trainable_reference=reference is not None,
        prediction="dipole_moment" if module.dipole else "energy",
        readout=PYG_READOUTS[readout],
    )
    with torch.no_grad():
        if model.readout.layer is not None:
            copy(model.readout.layer.masses, state["atomic_mass"], "atomic_mass")
        model.basis.centers.copy_(state["distance_expansion.offset"])
        model.basis.widths.fill_(-float(module.distance_expansion.coeff))
    return fill(model, state, PYG)
