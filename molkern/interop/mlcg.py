"""mlcg's SchNet as a module, see :func:`molkern.interop.from_mlcg`."""

from __future__ import annotations

from typing import Any

import torch

from ..models import SchNet
from .audit import (
    ACTIVATION,
    EMBEDDING,
    LINEAR,
    SEQUENTIAL,
    Parts,
    audit,
    part,
    refuse_unused,
    tensors_of,
)
from .entries import scalar
from .graphs import check_most_neighbors
from .modules import activation_name, common_activation, is_one_of, kind, require
from .schnet import MLCG, fill, freeze_basis, sizes_of, take_basis

PACKAGE = "mlcg"
_CUTOFF = part(PACKAGE, "CosineCutoff IdentityCutoff", "cutoff_lower cutoff_upper")
_MLP = part(PACKAGE, "MLP", "layer_widths activation_func last_bias hidden_bias")
_NETWORKS = "interaction_blocks.*.conv.filter_network", "output_network"
#: All that mlcg's SchNet consists of, where it is converted.
PARTS: Parts = {
    "": part(
        PACKAGE,
        "SchNet StandardSchNet",
        "embedding_layer interaction_blocks rbf_layer output_network self_interaction "
        "max_num_neighbors cutoff output_hidden_layer_widths hidden_channels embedding_size "
        "num_filters num_interactions activation aggr output_activation",
    ),
    "embedding_layer": EMBEDDING,
    "rbf_layer": part(PACKAGE, "ExpNormalBasis GaussianBasis", "cutoff num_rbf trainable"),
    "rbf_layer.cutoff": _CUTOFF,
    "interaction_blocks": SEQUENTIAL,
    "interaction_blocks.*": part(
        PACKAGE, "InteractionBlock", "cfconv_layer hidden_channels activation"
    ),
    "interaction_blocks.*.conv": part(
        PACKAGE, "CFConv", "filter_network cutoff in_channels out_channels num_filters aggr"
    ),
    "interaction_blocks.*.conv.aggr_module": part(
        "torch_geometric", "SumAggregation MeanAggregation"
    ),
    "interaction_blocks.*.conv.cutoff": _CUTOFF,
    **{f"interaction_blocks.*.{name}": LINEAR for name in ("conv.lin1", "conv.lin2", "lin")},
    "interaction_blocks.*.activation": ACTIVATION,
    **dict.fromkeys(_NETWORKS, _MLP),
    **{f"{name}.layers": SEQUENTIAL for name in _NETWORKS},
    **{f"{name}.layers.*": ACTIVATION for name in _NETWORKS},  # looked at one by one
}
_CUTOFFS = {"CosineCutoff": "cosine", "IdentityCutoff": "none"}
_AGGREGATIONS = {"add": "sum", "sum": "sum", "mean": "mean"}


def from_mlcg_module(module: Any) -> SchNet:
    """mlcg's SchNet with its weights; what has no counterpart is refused by name."""
    if getattr(module, "self_interaction", False):
        raise ValueError("self_interaction=True has no counterpart; False is needed")
    check_most_neighbors(getattr(module, "max_num_neighbors", 1000), module)
    require(module.embedding_layer, "torch", ("Embedding",), "the embedding layer")
    basis = module.rbf_layer
    require(basis, PACKAGE, ("ExpNormalBasis", "GaussianBasis"), "the radial basis")
    exponential = is_one_of(basis, PACKAGE, "ExpNormalBasis")
    cutoff, basis_cutoff = _cutoff(basis.cutoff, "the basis")
    options = _block_options(module.interaction_blocks, cutoff)
    head = _mlp(module.output_network, "output_network")
    activations = {f"output_network.layers.{k}": a for k, a in enumerate(head[1::2])}
    names = ["means", "betas"] if exponential else ["offset", "coeff"]
    trained = any(getattr(basis, name).requires_grad for name in names)
    audit(module, PARTS)
    tensors = tensors_of(module)
    model = SchNet(
        **sizes_of(tensors, MLCG),
        cutoff=cutoff,
        basis="exponential" if exponential else "gaussian",
        basis_cutoff_function=basis_cutoff,
        head_activation=common_activation(activations) if activations else None,
        head_bias=head[-1].bias is not None,
        trainable_basis=trained,
        **options,
    )
    fill(model, tensors, MLCG)
    model.embedding.padding_idx = module.embedding_layer.padding_idx  # a row not trained
    _take_basis(model, basis, names)
    refuse_unused(tensors, *(f"rbf_layer.{name}" for name in names))
    return model


def _take_basis(model: SchNet, basis: Any, names: list[str]) -> None:
    """The functions as they are stored, those that are frozen too."""
    centers, widths = (getattr(basis, name) for name in names)
    if names[1] == "coeff":  # one number for all Gaussians
        number = -scalar(widths, "rbf_layer.coeff")
        values = torch.full_like(model.basis.widths, number).detach()
    else:
        values = widths.detach()
        alpha = scalar(basis.alpha, "rbf_layer.alpha")
        if abs(alpha * model.cutoff / 5.0 - 1.0) > 1e-6:
            raise ValueError(f"rbf_layer has alpha={alpha}, {5.0 / model.cutoff} is needed")
    take_basis(model, centers, values, *(f"rbf_layer.{name}" for name in names))
    freeze_basis(model, centers, widths)


def _block_options(blocks: Any, cutoff: float) -> dict[str, Any]:
    activations, filter_biases, cutoffs, aggregations = {}, set(), set(), set()
    for i, block in enumerate(blocks):
        role = f"interaction block {i}"
        require(block, PACKAGE, ("InteractionBlock",), role)
        require(block.conv, PACKAGE, ("CFConv",), f"the convolution of {role}")
        network = _mlp(block.conv.filter_network, f"the filter network of {role}")
        if len(network) != 3 or network[0].out_features != network[2].out_features:
            widths = [layer.out_features for layer in network[::2]]
            raise ValueError(
                f"the filter network of {role} has layers of widths {widths}; two of one width are "
                "needed"
            )
        activations[f"{role}, filter_network"] = network[1]
        activations[role] = block.activation
        filter_biases.add(network[2].bias is not None)
        cutoffs.add(_cutoff(block.conv.cutoff, role))
        aggregations.add(str(block.conv.aggr))
    if len(filter_biases) > 1 or len(aggregations) > 1 or len(cutoffs) > 1:
        raise ValueError("the interaction blocks differ in bias, aggregation or cutoff function")
    if not aggregations:
        raise ValueError("a model without interaction blocks has no counterpart")
    aggregation, (upper, function) = aggregations.pop(), cutoffs.pop()
    if aggregation not in _AGGREGATIONS:
        raise ValueError(
            f"aggregation {aggregation!r} has no counterpart; converted are {list(_AGGREGATIONS)}"
        )
    if upper != cutoff and function != "none":
        raise ValueError(f"the filters' cutoff {upper} is not that of the basis, {cutoff}")
    return {
        "activation": common_activation(activations),
        "cutoff_function": function,
        "filter_bias": filter_biases.pop(),
        "aggregation": _AGGREGATIONS[aggregation],
    }


def _cutoff(function: Any, role: str) -> tuple[float, str]:
    """Range and molkern's name of a cutoff function."""
    require(function, PACKAGE, _CUTOFFS, f"the cutoff function of {role}")
    if function.cutoff_lower != 0:
        raise ValueError(
            f"the cutoff function of {role} has a lower cutoff of {function.cutoff_lower}, which "
            "has no counterpart; 0 is needed"
        )
    return float(function.cutoff_upper), _CUTOFFS[kind(function).rsplit(".", 1)[1]]


def _mlp(network: Any, role: str) -> list[Any]:
    """The layers of an MLP: linear ones with an activation between each two."""
    require(network, PACKAGE, ("MLP",), role)
    layers = list(network.layers)
    for k, layer in enumerate(layers):
        if k % 2 == 0:
            require(layer, "torch", ("Linear",), f"layer {k} of {role}")
        elif activation_name(layer, f"layer {k} of {role}") is None:
            raise ValueError(f"layer {k} of {role} has no activation, which has no counterpart")
    for layer in layers[:-1:2]:
        if layer.bias is None:
            raise ValueError(f"{role} has hidden layers without bias, which have no counterpart")
    if layers[-1].out_features != 1 and role == "output_network":
        raise ValueError(f"{role} has {layers[-1].out_features} outputs; 1 is needed")
    return layers
