"""DimeNet (Klicpera et al., ICLR 2020) and DimeNet++ (arXiv 2011.14115)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import NeighborList
from ..nn import (
    AtomicReference,
    BesselBasis,
    DimeNetEmbedding,
    DimeNetInteraction,
    DimeNetOutput,
    DimeNetPlusPlusInteraction,
    DimeNetPlusPlusOutput,
    SphericalRadialBasis,
    SplineFilter,
)
from ..nn.plain import is_plain
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from ..ops.geometry import edge_norm
from .arguments import arguments_are_fixed
from .checks import check_reference, plain
from .potential import Potential
from .readout import check_readout
from .structure import Structure

#: Types that the zeros of the Bessel functions are rounded to, by the name in saved files.
ZEROS = {"float64": torch.float64, "float32": torch.float32}


#: Of the cutoff: edges that are shorter count as of length zero, which has no direction. Forces go
#: like the inverse of a distance there, and would overflow with their squares.
ON_TOP_OF_EACH_OTHER = 1e-6


class _Directional(Potential):
    """What DimeNet and DimeNet++ share: bases, the first messages, and the sum over blocks."""

    differentiated = "property"

    readout: str | list[str]
    reference: AtomicReference | None
    interactions: nn.ModuleList
    outputs: nn.ModuleList
    #: Which targets are means over atoms, ``[T]``; None where all are the same.
    averaged: Tensor | None

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        reference, readout = config["reference"], config["readout"]
        config = config | dict(
            cutoff=float(config["cutoff"]),
            scale=plain(config["scale"]),
            mean=plain(config["mean"]),
            reference=None if reference is None else plain(reference),
            readout=readout if isinstance(readout, str) else list(readout),
        )
        _check(config)
        self.remember(**config)
        self._fix(**{name: config[name] for name in ("cutoff", "num_elements", "readout")})
        if config["num_targets"] == 1:
            self.differentiated = "energy"
        mixed = isinstance(self.readout, list)
        averaged = torch.tensor([name == "mean" for name in self.readout]) if mixed else None
        self.register_buffer("averaged", averaged, persistent=False)
        self.register_module("reference", _reference(config))
        functions, exponent = config["num_radial"], config["exponent"]
        self.embedding = DimeNetEmbedding(
            functions,
            config["hidden_channels"],
            self.num_elements,
            activation=config["activation"],
        )
        self.basis = BesselBasis(functions, self.cutoff, exponent=exponent)
        self.spherical = SphericalRadialBasis(
            config["num_spherical"],
            functions,
            self.cutoff,
            exponent=exponent,
            zeros_dtype=ZEROS[config["zeros_dtype"]],
        )

    def predict(self, structure: Structure, **_conditions: Any) -> dict[str, Tensor]:
        graph = structure.neighbors
        if not torch.compiler.is_compiling():  # edges beyond the cutoff add nothing but time
            graph = graph.within(self.cutoff, structure.positions, structure.cell)
        vectors = _apart(graph.vectors(structure.positions, structure.cell), self.cutoff)
        distances = edge_norm(vectors)
        basis, blocks = self._radial_functions(distances)
        messages = self.embedding(structure.numbers, basis, graph)
        atoms = self.outputs[0](messages, basis, graph).double()
        for block, output in zip(blocks, self.outputs[1:], strict=True):
            messages = block(messages, basis, vectors, graph)
            atoms = atoms + output(messages, basis, graph).double()
        if self.reference is not None:
            atoms = self.reference(atoms, structure.numbers)
        total = self._read_out(atoms, structure)
        out = {"property": total}
        if total.shape[1] == 1:
            out["energy"] = total.squeeze(1)
        return out

    def _read_out(self, atoms: Tensor, structure: Structure) -> Tensor:
        """Sums or means over atoms, ``[N, T]`` → ``[B, T]``."""
        total = structure.sum_atoms(atoms)
        if self.readout == "sum":
            return total
        counts = structure.counts().unsqueeze(1)
        return total / (counts if self.averaged is None else torch.where(self.averaged, counts, 1))

    def _radial_functions(self, distances: Tensor) -> tuple[Tensor, list[_Block]]:
        """The radial basis ``[E, R]``, and the blocks with the functions that each sums."""
        blocks: list[Any] = list(self.interactions)
        splines = self.spline_filters(distances)
        if splines is None:
            spherical = self.spherical(distances)
            return self.basis(distances), [partial(_exact, block, spherical) for block in blocks]
        basis, *radials = splines
        pairs = zip(blocks, radials, strict=True)
        return basis.values(), [partial(_splined, block, radial) for block, radial in pairs]

    def filter_values(self, distances: Tensor) -> list[Tensor]:
        dtype = network_tensor(self).dtype
        spherical = self.spherical(distances).to(dtype)
        blocks: list[Any] = list(self.interactions)
        radials = [block.radial(spherical).flatten(1) for block in blocks]
        return [self.basis(distances).to(dtype), *radials]

    def filter_modules(self) -> list[nn.Module]:
        blocks: list[Any] = list(self.interactions)
        return [self.basis, self.spherical, *(block.radial_layer for block in blocks)]

    def spline_obstacle(self) -> str:
        kinds = DimeNetInteraction, DimeNetPlusPlusInteraction
        blocks: list[Any] = list(self.interactions)
        for k, block in enumerate(blocks):
            if not (is_plain(block, *kinds) and block.sums_by_order()):
                return (
                    f"interactions.{k} or a layer of its spherical basis is replaced, wrapped or "
                    "hooked"
                )
        return ""

    def filter_span(self) -> tuple[float, float, bool]:
        """From 0.06 of the cutoff on (0.3 of 5 Å): the bases grow as 1 / d towards zero."""
        return 0.06 * self.cutoff, self.cutoff, True

    def extra_repr(self) -> str:
        return f"parameters={sum(p.numel() for p in self.parameters()):,}"


def _apart(vectors: Tensor, cutoff: float) -> Tensor:
    """Vectors of edges, ``[E, 3]``, zero where two atoms are on top of each other."""
    short = edge_norm(vectors.detach()) < ON_TOP_OF_EACH_OTHER * cutoff
    return vectors.masked_fill(short.unsqueeze(1), 0.0)


#: From messages, radial basis, vectors and graph to new messages.
_Block = Callable[[Tensor, Tensor, Tensor, NeighborList], Tensor]


def _exact(
    block: Any,
    spherical: Tensor,
    messages: Tensor,
    basis: Tensor,
    vectors: Tensor,
    graph: NeighborList,
) -> Tensor:
    return block(messages, basis, spherical, vectors, graph)


def _splined(
    block: Any,
    radial: SplineFilter,
    messages: Tensor,
    basis: Tensor,
    vectors: Tensor,
    graph: NeighborList,
) -> Tensor:
    values = radial.values().unflatten(1, (block.num_spherical, -1))
    return block.from_radial(messages, basis, values, vectors, graph)


@arguments_are_fixed
class DimeNet(_Directional):
    """DimeNet: messages on edges, which reach the next edge by distance and angle.

    ``m_ji ← block(m_ji, Σ_k f(m_kj, d_kj, α))``, with one output per atom and block,
    ``t_i = Σ_blocks g(Σ_j m_ji)``, summed over atoms. Klicpera et al., ICLR 2020.

    A prediction has ``"property"`` ``[B, T]``, summed in float64; forces and stress are derivatives
    of its sum over targets. With one target it has ``"energy"`` ``[B]`` too, the same numbers.
    What is summed is ``scale · t_i + mean + reference[Z_i]``, by default t_i itself.

    The defaults are those of the published code, which takes the angle at the receiving atom i,
    not the ∠kji of the paper. Triplets leave out the reverse of an edge, not its sender, so that
    periodic images of one atom are neighbors like others.

    Args:
        hidden_channels: width of the messages F.
        num_targets: outputs T.
        num_blocks: number of interaction blocks.
        num_bilinear: size of the bilinear layer.
        num_spherical, num_radial: orders and functions of the spherical basis.
        cutoff: in the unit of the positions; 5 Å in the published models.
        exponent: p of the envelope; the published code's ``envelope_exponent`` is one less.
        num_before_skip, num_after_skip: residual layers of an interaction block.
        num_output_layers: dense layers of an output block.
        num_elements: size of the embedding; atomic numbers are 0 to ``num_elements − 1``.
        activation: ``"silu"`` (swish) or another one that :class:`molkern.nn.Dense` knows.
        angle: ``"at_i"``, ``"kji"`` or ``"plusplus"``, see :func:`molkern.ops.triplet_sum`.
        zeros_dtype: ``"float32"`` rounds the zeros of the Bessel functions as the published code
            does, by up to 6e-7 in predictions; ``"float64"`` does not.
        output_init: of the last layers: ``"zeros"`` or ``"glorot_orthogonal"``.
        readout: ``"sum"`` or ``"mean"`` over the atoms of a system, or a list with one of them
            for each target.
        filters, spline_tolerance: of the radial basis and the radial part of the spherical one,
            as each block sums it, see :class:`molkern.models.Potential`. Below 0.06 of the cutoff
            splines are constant.
        scale, mean: of each atom's outputs, a number for all targets or one for each, see
            :class:`molkern.nn.AtomicReference`.
        reference: what is added for each atom by atomic number, at least ``num_elements`` lists of
            one number per target; for one target also plain numbers.

    Raises:
        ValueError: a size below 1, a cutoff that is not positive and finite, an unknown
            activation, angle, type of the zeros, initialisation or readout, or a readout, scale,
            mean or reference for another number of targets or elements.

    >>> import torch, molkern
    >>> model = molkern.models.DimeNet(32, num_targets=2, num_blocks=2)
    >>> water = molkern.AtomicBatch(
    ...     torch.tensor([8, 1, 1]), torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ... )
    >>> out = model(water, forces=True)
    >>> out["property"].shape, out["forces"].shape
    (torch.Size([1, 2]), torch.Size([3, 3]))
    """

    @checked
    def __init__(
        self,
        hidden_channels: int = 128,
        num_targets: int = 1,
        num_blocks: int = 6,
        num_bilinear: int = 8,
        num_spherical: int = 7,
        num_radial: int = 6,
        cutoff: float = 5.0,
        *,
        exponent: int = 6,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        num_output_layers: int = 3,
        num_elements: int = 95,
        activation: str = "silu",
        angle: str = "at_i",
        zeros_dtype: str = "float64",
        output_init: str = "zeros",
        readout: str | Sequence[str] = "sum",
        filters: str = "exact",
        spline_tolerance: float | None = None,
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        reference: Sequence[float] | Sequence[Sequence[float]] | None = None,
    ):
        # Before any other variable: what locals() has here is what a saved model is rebuilt from
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(config)
        self.interactions = nn.ModuleList(
            DimeNetInteraction(
                hidden_channels,
                num_bilinear,
                num_spherical,
                num_radial,
                num_before_skip=num_before_skip,
                num_after_skip=num_after_skip,
                angle=angle,
                activation=activation,
            )
            for _ in range(num_blocks)
        )
        self.outputs = nn.ModuleList(
            DimeNetOutput(
                num_radial,
                hidden_channels,
                num_targets,
                num_output_layers,
                activation=activation,
                output_init=output_init,
            )
            for _ in range(num_blocks + 1)
        )


@arguments_are_fixed
class DimeNetPlusPlus(_Directional):
    """DimeNet++: DimeNet with a cheaper interaction and a wider output, more accurate and faster.

    Klicpera et al., arXiv 2011.14115. The sum over triplets has ``int_emb_size`` features and no
    bilinear layer. Predictions are as those of :class:`DimeNet`; the published code takes the angle
    between the vectors k→j and j→i, which is π − ∠kji.

    Args:
        hidden_channels: width of the messages F.
        num_targets: outputs T.
        num_blocks: number of interaction blocks.
        int_emb_size: features in the sum over triplets.
        basis_emb_size: width between the two linear maps of a basis.
        out_emb_size: width of the output blocks.
        num_spherical, num_radial, cutoff, exponent, num_before_skip, num_after_skip,
            num_output_layers, num_elements, activation, angle, zeros_dtype, output_init, readout,
            filters, spline_tolerance, scale, mean, reference: as in :class:`DimeNet`.

    Raises:
        ValueError: as :class:`DimeNet`.

    >>> import torch, molkern
    >>> model = molkern.models.DimeNetPlusPlus(32, num_blocks=2, output_init="glorot_orthogonal")
    >>> water = molkern.AtomicBatch(
    ...     torch.tensor([8, 1, 1]), torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ... )
    >>> out = model(water, forces=True)
    >>> out["energy"].shape, out["forces"].shape
    (torch.Size([1]), torch.Size([3, 3]))
    """

    @checked
    def __init__(
        self,
        hidden_channels: int = 128,
        num_targets: int = 1,
        num_blocks: int = 4,
        int_emb_size: int = 64,
        basis_emb_size: int = 8,
        out_emb_size: int = 256,
        num_spherical: int = 7,
        num_radial: int = 6,
        cutoff: float = 5.0,
        *,
        exponent: int = 6,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        num_output_layers: int = 3,
        num_elements: int = 95,
        activation: str = "silu",
        angle: str = "plusplus",
        zeros_dtype: str = "float64",
        output_init: str = "zeros",
        readout: str | Sequence[str] = "sum",
        filters: str = "exact",
        spline_tolerance: float | None = None,
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        reference: Sequence[float] | Sequence[Sequence[float]] | None = None,
    ):
        # Before any other variable: what locals() has here is what a saved model is rebuilt from
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(config)
        self.interactions = nn.ModuleList(
            DimeNetPlusPlusInteraction(
                hidden_channels,
                int_emb_size,
                basis_emb_size,
                num_spherical,
                num_radial,
                num_before_skip=num_before_skip,
                num_after_skip=num_after_skip,
                angle=angle,
                activation=activation,
            )
            for _ in range(num_blocks)
        )
        self.outputs = nn.ModuleList(
            DimeNetPlusPlusOutput(
                num_radial,
                hidden_channels,
                out_emb_size,
                num_targets,
                num_output_layers,
                activation=activation,
                output_init=output_init,
            )
            for _ in range(num_blocks + 1)
        )


def _check(config: dict[str, Any]) -> None:
    """What the layers would refuse by names that are not those of the model's arguments."""
    for name, value in config.items():
        least = 0 if name in ("num_before_skip", "num_after_skip", "num_output_layers") else 1
        if isinstance(value, int) and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 < config["cutoff"] < math.inf:
        raise ValueError(f"cutoff must be positive and finite, got {config['cutoff']}")
    if config["zeros_dtype"] not in ZEROS:
        choices = " or ".join(map(repr, ZEROS))
        raise ValueError(f"zeros_dtype must be {choices}, got {config['zeros_dtype']!r}")
    _check_readouts(config["readout"], config["num_targets"])
    check_reference(config)


def _check_readouts(readout: str | list[str], count: int) -> None:
    names = readout if isinstance(readout, list) else [readout]
    if isinstance(readout, list) and len(names) != count:
        raise ValueError(
            f"readout has {len(names)} entries, but num_targets is {count}: pass one for each "
            "target, or one for all, not in a list"
        )
    for name in names:
        check_readout(name)


def _reference(config: dict[str, Any]) -> AtomicReference | None:
    """Scale, mean and references; None if neutral, as in files from before there were any."""
    scale, mean, reference = config["scale"], config["mean"], config["reference"]
    made = AtomicReference(scale, mean, reference, num_targets=config["num_targets"])
    neutral = reference is None and np.all(np.equal(scale, 1)) and np.all(np.equal(mean, 0))
    return None if neutral else made
