"""Stand-ins for modules of SchNetPack 2 and mlcg: their names, attributes and tensors, plain sums.

Converters tell modules by their names, so that these can be converted where the packages are not
installed. What they compute is in reference/schnet.py.
"""

import math
from itertools import pairwise

import torch
from reference.schnet import atomic_energies, cosine
from torch import nn


def _named(module):
    """Gives a class (or a function) a place in another package."""

    def place(thing):
        thing.__module__ = module
        thing.__qualname__ = thing.__name__
        return thing

    return place


def _tensors(layer):
    return layer.weight, layer.bias


# --- SchNetPack


@_named("schnetpack.nn.activations")
def shifted_softplus(x):
    return nn.functional.softplus(x) - math.log(2.0)


@_named("schnetpack.nn.base")
class Dense(nn.Linear):
    def __init__(
        self, in_features, out_features, bias=True, activation=None, weight_init=None,
        bias_init=None,
    ):  # fmt: skip
        super().__init__(in_features, out_features, bias)
        self.activation = nn.Identity() if activation is None else activation


@_named("schnetpack.nn.radial")
class GaussianRBF(nn.Module):
    def __init__(self, n_rbf, cutoff, start=0.0, trainable=False):
        super().__init__()
        self.n_rbf = n_rbf
        offsets = torch.linspace(start, cutoff, n_rbf)
        widths = torch.full_like(offsets, float(offsets[1] - offsets[0]))
        for name, value in {"widths": widths, "offsets": offsets}.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, d):
        return torch.exp(-0.5 * (d[:, None] - self.offsets) ** 2 / self.widths**2)


@_named("schnetpack.nn.radial")
class BesselRBF(nn.Module):
    def __init__(self, n_rbf, cutoff):
        super().__init__()
        self.n_rbf = n_rbf
        self.register_buffer("freqs", torch.arange(1, n_rbf + 1) * math.pi / cutoff)


class _SchNetPackCutoff(nn.Module):
    def __init__(self, cutoff):
        super().__init__()
        self.register_buffer("cutoff", torch.tensor([float(cutoff)]))

    def forward(self, d):
        return cosine(d, self.cutoff)


@_named("schnetpack.nn.cutoff")
class CosineCutoff(_SchNetPackCutoff):
    pass


@_named("schnetpack.nn.cutoff")
class MollifierCutoff(_SchNetPackCutoff):
    pass


@_named("schnetpack.representation.schnet")
class SchNetInteraction(nn.Module):
    def __init__(self, n_atom_basis, n_rbf, n_filters, activation=shifted_softplus):
        super().__init__()
        features, filters = n_atom_basis, n_filters
        self.in2f = Dense(features, filters, bias=False)
        self.f2out = nn.Sequential(Dense(filters, features, activation=activation))
        self.f2out.append(Dense(features, features))
        self.filter_network = nn.Sequential(Dense(n_rbf, filters, activation=activation))
        self.filter_network.append(Dense(filters, filters))

    def tensors(self):
        return {
            "filter_1": _tensors(self.filter_network[0]),
            "filter_2": _tensors(self.filter_network[1]),
            "in": _tensors(self.in2f),
            "out_1": _tensors(self.f2out[0]),
            "out_2": _tensors(self.f2out[1]),
        }


@_named("schnetpack.representation.schnet")
class SchNet(nn.Module):
    def __init__(
        self, n_atom_basis, n_interactions, radial_basis, cutoff_fn, n_filters=None,
        shared_interactions=False, activation=shifted_softplus, nuclear_embedding=None,
        electronic_embeddings=None,
    ):  # fmt: skip
        super().__init__()
        self.n_atom_basis, self.n_filters = n_atom_basis, n_filters or n_atom_basis
        self.radial_basis, self.cutoff_fn = radial_basis, cutoff_fn
        self.cutoff = cutoff_fn.cutoff
        self.embedding = nuclear_embedding or nn.Embedding(100, n_atom_basis)
        self.electronic_embeddings = nn.ModuleList(electronic_embeddings or [])
        self.interactions = nn.ModuleList(
            SchNetInteraction(
                n_atom_basis, radial_basis.n_rbf, n_filters or n_atom_basis, activation
            )
            for _ in range(n_interactions)
        )


@_named("schnetpack.representation.painn")
class PaiNN(nn.Module):
    pass


@_named("schnetpack.atomistic.atomwise")
class Atomwise(nn.Module):
    def __init__(
        self, n_in, n_out=1, n_hidden=None, n_layers=2, activation=nn.functional.silu,
        aggregation_mode="sum", output_key="y", per_atom_output_key=None,
    ):  # fmt: skip
        super().__init__()
        self.per_atom_output_key = per_atom_output_key
        self.n_out, self.aggregation_mode, self.output_key = n_out, aggregation_mode, output_key
        hidden = [n_in // 2**k for k in range(1, n_layers)] if n_hidden is None else n_hidden
        widths = [n_in, *hidden, n_out]
        self.outnet = nn.Sequential(
            *(Dense(a, b, activation=activation) for a, b in pairwise(widths[:-1])),
            Dense(widths[-2], n_out),
        )  # fmt: skip


@_named("schnetpack.atomistic.atomwise")
class DipoleMoment(nn.Module):
    pass


@_named("schnetpack.atomistic.response")
class Forces(nn.Module):
    def __init__(
        self, calc_forces=True, calc_stress=False, energy_key="energy", force_key="forces",
        stress_key="stress",
    ):  # fmt: skip
        super().__init__()
        self.energy_key = energy_key


@_named("schnetpack.atomistic.response")
class Strain(nn.Module):
    pass


@_named("schnetpack.atomistic.distances")
class PairwiseDistances(nn.Module):
    pass


@_named("schnetpack.transform.atomistic")
class AddOffsets(nn.Module):
    def __init__(
        self, property, add_mean=False, add_atomrefs=False, is_extensive=True, zmax=100,
        atomrefs=None, property_mean=None,
    ):  # fmt: skip
        super().__init__()
        self._property, self.is_extensive = property, is_extensive
        self.add_mean, self.add_atomrefs = add_mean, add_atomrefs
        self.register_buffer("atomref", torch.zeros(zmax))
        self.register_buffer("mean", torch.zeros(1))


@_named("schnetpack.transform.atomistic")
class ScaleProperty(nn.Module):
    pass


@_named("schnetpack.transform.casting")
class CastTo64(nn.Module):
    pass


@_named("schnetpack.model.base")
class NeuralNetworkPotential(nn.Module):
    def __init__(
        self, representation, input_modules=None, output_modules=None, postprocessors=None,
        input_dtype_str="float32", do_postprocessing=True,
    ):  # fmt: skip
        super().__init__()
        self.input_dtype_str = input_dtype_str
        self.spk_version, self.do_postprocessing = "2.1.1", do_postprocessing
        self.representation = representation
        self.input_modules = nn.ModuleList(input_modules or [])
        self.output_modules = nn.ModuleList(output_modules or [])
        self.postprocessors = nn.ModuleList(postprocessors or [])

    def energies_of_atoms(self, numbers, distances, pairs):
        """What the real one adds up for one system, offsets included."""
        representation = self.representation
        atomwise = next(m for m in self.output_modules if isinstance(m, Atomwise))
        y = atomic_energies(
            representation.embedding(numbers),
            distances,
            pairs,
            blocks=[block.tensors() for block in representation.interactions],
            head=[_tensors(layer) for layer in atomwise.outnet],
            basis=representation.radial_basis,
            envelope=representation.cutoff_fn,
            activation=representation.interactions[0].f2out[0].activation,
            head_activation=atomwise.outnet[0].activation,
        )
        for step in self.postprocessors if self.do_postprocessing else ():
            if isinstance(step, AddOffsets):
                y = y + step.mean * step.add_mean + step.atomref[numbers] * step.add_atomrefs
        return y


# --- mlcg


class _MlcgCutoff(nn.Module):
    def __init__(self, cutoff_lower=0.0, cutoff_upper=5.0):
        super().__init__()
        self.cutoff_lower, self.cutoff_upper = cutoff_lower, cutoff_upper


@_named("mlcg.nn.cutoff")
class MlcgCosineCutoff(_MlcgCutoff):
    def forward(self, d):
        return cosine(d, self.cutoff_upper)


@_named("mlcg.nn.cutoff")
class IdentityCutoff(_MlcgCutoff):
    def forward(self, d):
        return torch.ones_like(d)


@_named("mlcg.nn.cutoff")
class ShiftedCosineCutoff(_MlcgCutoff):
    pass


@_named("mlcg.nn.radial_basis.exp_normal")
class ExpNormalBasis(nn.Module):
    def __init__(self, cutoff, num_rbf=50, trainable=True):
        super().__init__()
        self.cutoff, self.num_rbf = cutoff, num_rbf
        self.alpha = 5.0 / cutoff.cutoff_upper
        start = math.exp(-cutoff.cutoff_upper)
        means = torch.linspace(start, 1.0, num_rbf)
        betas = torch.full((num_rbf,), (2 / num_rbf * (1 - start)) ** -2)
        self.means = nn.Parameter(means, requires_grad=trainable)
        self.betas = nn.Parameter(betas, requires_grad=trainable)

    def forward(self, d):
        functions = torch.exp(-self.betas * (torch.exp(-self.alpha * d)[:, None] - self.means) ** 2)
        return functions * self.cutoff(d)[:, None]


@_named("mlcg.nn.radial_basis.exp_normal")
class ExtendedExpNormalBasis(ExpNormalBasis):
    pass


@_named("mlcg.nn.radial_basis.gaussian")
class GaussianBasis(nn.Module):
    def __init__(self, cutoff, num_rbf=50, trainable=False):
        super().__init__()
        self.cutoff, self.num_rbf = cutoff, num_rbf
        offset = torch.linspace(0.0, cutoff.cutoff_upper, num_rbf)
        self.register_buffer("offset", offset)
        self.register_buffer("coeff", -0.5 / (offset[1] - offset[0]) ** 2)

    def forward(self, d):
        return torch.exp(self.coeff * (d[:, None] - self.offset) ** 2) * self.cutoff(d)[:, None]


@_named("mlcg.nn.mlp")
class MLP(nn.Module):
    def __init__(self, layer_widths, activation_func, last_bias=True, hidden_bias=True):
        super().__init__()
        layers, widths, activation = [], layer_widths, activation_func
        for inputs, outputs in pairwise(widths[:-1]):
            layers += [nn.Linear(inputs, outputs), activation]
        layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
        self.layers = nn.Sequential(*layers)

    def tensors(self):
        return [_tensors(layer) for layer in self.layers[::2]]


@_named("mlcg.nn.mlp")
class TypesMLP(nn.Module):
    pass


@_named("mlcg.nn.schnet")
class CFConv(nn.Module):
    def __init__(
        self, filter_network, cutoff, in_channels=128, out_channels=128, num_filters=128,
        aggr="add",
    ):  # fmt: skip
        super().__init__()
        channels, filters = in_channels, num_filters
        self.lin1 = nn.Linear(channels, filters, bias=False)
        self.lin2 = nn.Linear(filters, channels)
        self.filter_network, self.cutoff, self.aggr = filter_network, cutoff, aggr


@_named("mlcg.nn.schnet")
class InteractionBlock(nn.Module):
    def __init__(self, cfconv_layer, hidden_channels=128, activation=None):
        super().__init__()
        self.conv, self.activation = cfconv_layer, activation
        self.lin = nn.Linear(hidden_channels, hidden_channels)

    def tensors(self):
        filter_1, filter_2 = self.conv.filter_network.tensors()
        return {
            "filter_1": filter_1,
            "filter_2": filter_2,
            "in": _tensors(self.conv.lin1),
            "out_1": _tensors(self.conv.lin2),
            "out_2": _tensors(self.lin),
        }


@_named("mlcg.nn.schnet")
class StandardSchNet(nn.Module):
    def __init__(
        self, rbf_layer, cutoff, output_hidden_layer_widths, hidden_channels=128,
        embedding_size=100, num_filters=128, num_interactions=3, activation=None,
        max_num_neighbors=1000, aggr="add", output_activation=None,
    ):  # fmt: skip
        super().__init__()
        activation = activation or nn.Tanh()
        self.max_num_neighbors, self.self_interaction = max_num_neighbors, False
        self.embedding_layer = nn.Embedding(embedding_size, hidden_channels)
        self.rbf_layer = rbf_layer
        blocks = []
        for _ in range(num_interactions):
            widths = [rbf_layer.num_rbf, num_filters, num_filters]
            network = MLP(widths, activation, last_bias=False)
            conv = CFConv(network, cutoff, hidden_channels, hidden_channels, num_filters, aggr)
            blocks.append(InteractionBlock(conv, hidden_channels, activation))
        self.interaction_blocks = nn.Sequential(*blocks)
        widths = [hidden_channels, *output_hidden_layer_widths, 1]
        self.output_network = MLP(widths, output_activation or activation, last_bias=False)

    def energies_of_atoms(self, numbers, distances, pairs):
        block = self.interaction_blocks[0]
        return atomic_energies(
            self.embedding_layer(numbers),
            distances,
            pairs,
            blocks=[block.tensors() for block in self.interaction_blocks],
            head=self.output_network.tensors(),
            basis=self.rbf_layer,
            envelope=block.conv.cutoff,
            activation=block.activation,
            head_activation=self.output_network.layers[1],
            mean=block.conv.aggr == "mean",
        )


@_named("mlcg.nn.gradients")
class GradientsOut(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


@_named("mlcg.nn.gradients")
class SumOut(nn.Module):
    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleDict(models)


MlcgCosineCutoff.__qualname__ = MlcgCosineCutoff.__name__ = "CosineCutoff"
