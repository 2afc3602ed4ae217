"""The filters of a model as splines: made for its weights, kept, and made anew."""

from __future__ import annotations

import copy
import itertools
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ..ops._modes import (
    is_hidden,
    is_transformed,
    ordinary_tensors,
    values_of,
    without_autocast,
)
from ..ops.splines import SplineGrid
from .fingerprint import Fingerprint
from .plain import OWN_HOOKS, PLAIN_TENSORS, has_backward_hooks, is_known
from .precision import network_tensor
from .splines import SplineReport, _with_slope, choose_grid, spline_tables

#: Largest error of the value, relative to the largest value, that a model's splines may have.
TOLERANCES = {torch.float32: 1e-7, torch.float64: 1e-9}
#: Of models' splines. Degree 3 takes a fifth less time on the CPU, but three to ten times as many
#: knots: float32 then rounds slopes, which are differences over knots, more than the network does.
DEGREE = 5
#: How far a copy of filters in float64 may be from them, by the network's type.
_ALIKE = {torch.float32: 1e-3, torch.float64: 1e-6}

#: What splines ask of layers that are not molkern's own, or not as they were made.
_NEEDED = "what makes them must work in a copy, in float64, and be smooth"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MadeSplines:
    """What was made of a model as it was at one moment. Nothing of it changes any more.

    Attributes:
        seen: tells whether the model still is as it was.
        obstacle: why there are no splines, and filters are exact; empty where there are some.
        report: the grid and its errors, where there are splines.
        tables: without gradients, one for each of the model's filters; None if not made yet.
        lean: what the model made of the tables for inference, or None.
        varying: parts of what makes the filters that do something else in training.
        weights: the tensors that the filters depend on, and copies of them as they were.
    """

    seen: Fingerprint
    obstacle: str = ""
    report: SplineReport | None = None
    tables: list[Tensor] | None = None
    lean: Any = None
    varying: tuple[nn.Module, ...] = ()
    weights: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def serves(self) -> bool:
        """Whether splines can stand for the filters now."""
        return self.report is not None and not any(part.training for part in self.varying)


class SplineTables:
    """The filters of a model as splines, made anew when the model has changed.

    Args:
        tolerance: see :class:`molkern.nn.SplineReport`; by default 1e-7 for float32 and 1e-9 for
            float64.

    A model's filters are what its method ``filter_values`` gives for distances between those of
    ``filter_span``, made by its ``filter_modules``. Without gradients the tables come from the
    filters in float64, once for a set of weights; with gradients from the network as it is, on a
    grid that is measured anew after some hundred changes of the weights.

    Fused optimizers and updates through ``weight.data`` leave no trace on what they write. After an
    evaluation that weights can be trained by, their values are compared.

    Threads may share a model: what was made is replaced as a whole and never changed, so that a
    call that took it can go on with it; one thread makes it while others wait.
    """

    #: Changes of the weights in training after which the grid is measured anew.
    renew_after = 500

    def __init__(self, tolerance: float | None = None):
        self.tolerance = _checked(tolerance)
        #: What was made last; read it once, it may be replaced at any time.
        self.made: MadeSplines | None = None
        self._making = threading.RLock()
        self._uses = 0
        #: Whether there was an evaluation that weights can be trained by; may be set at any time.
        self.trained = False
        #: How often :meth:`forget` was called, for what keeps the tables elsewhere.
        self.forgotten = 0

    def forget(self) -> None:
        """Drops tables and grid: the next use makes them as for a new model of these weights."""
        with self._making:
            self.made, self._uses = None, 0
            self.forgotten += 1

    def look_at_weights(self) -> None:
        """Drops what was made if weights have other values since an evaluation for training."""
        made = self.made
        if made is None or not made.weights:
            self.trained = False
            if made is not None and made.report is not None:
                self.forgotten += 1  # what keeps earlier tables is told, whatever they were
            return
        with self._making, torch.no_grad():
            if made is not self.made:
                return
            # As long as there are gradients a step may follow
            self.trained = any(
                tensor.is_leaf and tensor.grad is not None for tensor, _ in made.weights
            )
            if not all(torch.equal(tensor, copied) for tensor, copied in made.weights):
                self.trained = False
                # The next grid starts from this one
                self.made = replace(made, tables=None, lean=None, weights=())
                self.forgotten += 1

    def set_tolerance(self, tolerance: float | None) -> None:
        """Takes another tolerance, which the next use makes tables for."""
        tolerance = _checked(tolerance)
        with self._making:
            self.tolerance = tolerance
            self.forget()

    def __deepcopy__(self, memo: Any) -> SplineTables:
        return SplineTables(self.tolerance)

    def __reduce__(self) -> Any:
        return SplineTables, (self.tolerance,)

    def constant(self, model: Any) -> MadeSplines:
        """The tables without gradients of the model as it is; kept until it changes."""
        made = self.made
        if torch.compiler.is_compiling():
            if made is None or made.tables is None:
                raise RuntimeError(
                    "the model's splines are not made yet: call model.spline_report() before "
                    "compiling it, and again after its weights have changed"
                )
            return made
        if self.trained:
            self.look_at_weights()
            made = self.made
        if not _serves_constant(made):
            with self._making:
                made = self.made  # by another thread, perhaps
                if not _serves_constant(made):
                    made = self._renew(model, complete=True)
        return made

    def measured(self, model: Any) -> MadeSplines:
        """A grid for tables with gradients, measured anew now and then."""
        made = self.made
        if torch.compiler.is_compiling():
            if made is None:
                raise RuntimeError("call model.spline_report() before compiling the model")
            return made
        self._uses += 1
        if not self._serves_training(made):
            with self._making:
                made = self.made
                if not self._serves_training(made):
                    made = self._renew(model, complete=False)
        return made

    def _serves_training(self, made: MadeSplines | None) -> TypeGuard[MadeSplines]:
        return made is not None and self._uses <= self.renew_after and made.seen.same_structure()

    def _renew(self, model: Any, complete: bool) -> MadeSplines:
        """Chooses the grid for the model as it is, and makes the tables if they are wanted."""
        # Before the weights are read: what changes meanwhile is seen by the next use
        obstacle = model.spline_obstacle()
        makers = [] if obstacle else _makers(model)
        seen, before = Fingerprint(model, _parts(makers)), self.made
        if network_tensor(model).dtype not in TOLERANCES:
            raise TypeError(
                f"the model's weights are {network_tensor(model).dtype}, for which there are no "
                "splines: use model.float() or model.double()"
            )
        double, report = None, None
        obstacle = obstacle or _backward_obstacle(makers)
        if not obstacle:
            double, report, obstacle = self._fitted(model, makers, before)
        if double is None or report is None:
            _log.info("filters are exact, not splines: %s", obstacle)
            made = MadeSplines(seen, obstacle)
        else:
            tables = lean = None
            weights: list[tuple[Tensor, Tensor]] = []
            if complete:
                if seen.lasts:
                    weights = _copies(makers)
                tables = _constant_tables(double, report.grid, network_tensor(model))
                lean = model.make_lean(report.grid, tables)
            kinds = _varying(makers)
            made = MadeSplines(seen, "", report, tables, lean, kinds, tuple(weights))
        seen.settle()
        self.made, self._uses = made, 0
        return made

    def _fitted(
        self, model: Any, makers: list[nn.Module], before: MadeSplines | None
    ) -> tuple[Any, SplineReport | None, str]:
        """The filters in float64 and their grid, or why there is none.

        Modules of a user's own, hooks and replaced methods need not work in a copy or in float64
        (a hook may hold tensors of another type, a replaced method the layer that it came from),
        nor be smooth.
        """
        last = before.report if before else None
        if all(is_known(part) for maker in makers for part in maker.modules()):
            double = _double_copy(model, makers)
            return double, self._chosen(model, double, last), ""
        try:
            double = _double_copy(model, makers)
            if not _is_alike(model, double):
                return None, None, f"{_NEEDED}, but in a copy they give other values"
            return double, self._chosen(model, double, last), ""
        except NotImplementedError:
            raise
        except Exception as error:
            return None, None, f"{_NEEDED}, but {type(error).__name__}: {error}"

    def _chosen(self, model: Any, double: Any, before: SplineReport | None) -> SplineReport:
        start, stop, zero_beyond = model.filter_span()
        like = network_tensor(model)
        return choose_grid(
            double.filter_values,
            start,
            stop,
            tolerance=self.tolerance or TOLERANCES[like.dtype],
            degree=DEGREE,
            zero_beyond=zero_beyond,
            element=like.element_size(),
            intervals=before.grid.intervals if before else 128,
        )


def _checked(tolerance: float | None) -> float | None:
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"the spline tolerance must be positive, got {tolerance}")
    return tolerance


def _serves_constant(made: MadeSplines | None) -> TypeGuard[MadeSplines]:
    if made is None or (made.tables is None and not made.obstacle):
        return False
    return made.seen.holds()


def _constant_tables(double: Any, grid: SplineGrid, like: Tensor) -> list[Tensor]:
    with ordinary_tensors():
        tables = spline_tables(double.filter_values, grid, network_tensor(double))
        return [table.to(like.device, like.dtype).contiguous() for table in tables]


def _makers(model: Any) -> list[nn.Module]:
    """The modules that the model's ``filter_values`` calls; all, where its class does not say."""
    for kind in type(model).__mro__:
        if "filter_modules" in vars(kind):
            return list(model.filter_modules())
        if "filter_values" in vars(kind):
            break
    return [model]


def _parts(makers: list[nn.Module]) -> list[nn.Module]:
    """The modules and those within them, each once."""
    return list(dict.fromkeys(part for maker in makers for part in maker.modules()))


def _copies(makers: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """The tensors of modules, each with a copy of its values."""
    parts = _parts(makers)
    found = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values())]
    with ordinary_tensors():
        return [(t, t.detach().clone()) for t in found if t is not None]


def _backward_obstacle(makers: list[nn.Module]) -> str:
    if any(map(has_backward_hooks, makers)):
        return "backward hooks on modules that make them would see no gradients of splines"
    return ""


def _varying(makers: list[nn.Module]) -> tuple[nn.Module, ...]:
    kinds = _DropoutNd, _NormBase
    return tuple(m for maker in makers for m in maker.modules() if isinstance(m, kinds))


def _is_alike(model: Any, double: Any) -> bool:
    if is_transformed():  # the model's tensors belong to the transform
        return True
    start, stop, _ = model.filter_span()
    like = network_tensor(model)
    points = torch.linspace(start, stop, 8, dtype=torch.float64, device="cpu")[1:-1]
    with torch.no_grad(), without_autocast(like):
        theirs = model.filter_values(points.to(like.device))
    with torch.inference_mode(False):
        ours = [value for value, _ in _with_slope(double.filter_values, points.clone())]
    for a, b in zip(ours, theirs, strict=True):
        allowed = _ALIKE[like.dtype] * max(float(a.abs().max()), 1e-30)
        if a.shape != b.shape or not bool(((a - b.to(a)).abs() <= allowed).all()):
            return False
    return True


def _double_copy(model: Any, makers: list[nn.Module]) -> Any:
    """A copy of the model in float64 on the CPU, of which no more is there than makes filters.

    Raises:
        RuntimeError: weights that :func:`torch.vmap` hides.
    """
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if is_hidden(tensor):
            raise RuntimeError(
                f"torch.vmap over {name}: there are no splines of weights that it hides; set "
                "model.filters = 'exact' for ensembles of weights"
            )
    needed = {id(part) for maker in makers for part in maker.modules()}
    known: dict[int, Any] = {}
    for part in model.modules():
        if id(part) not in needed and needed.isdisjoint(map(id, part.modules())):
            known[id(part)] = nn.Identity()
            continue
        known |= _copied_tensors(part)
        if id(part) not in needed:
            known |= {id(getattr(part, name)): OrderedDict() for name in OWN_HOOKS}
    with ordinary_tensors():
        double = copy.deepcopy(model, known).to("cpu", torch.float64)
        return double.requires_grad_(False).eval()


def _copied_tensors(module: nn.Module) -> dict[int, Any]:
    """A module's own tensors by identity, as ordinary ones of float64 whatever they are.

    Those of a kind of their own, or that :func:`torch.vmap` hides, are left to copy themselves.
    """
    own: dict[str, Any] = module.__dict__
    copies: dict[int, Any] = {}
    for tensor in (*own.values(), *own["_parameters"].values(), *own["_buffers"].values()):
        if not isinstance(tensor, Tensor) or type(tensor) not in PLAIN_TENSORS:
            continue
        values = values_of(tensor)
        if values is None:
            continue
        with ordinary_tensors():
            dtype = torch.float64 if values.is_floating_point() else values.dtype
            made = values.detach().to("cpu", dtype, copy=True)
            parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(made, False) if parameter else made
    return copies
