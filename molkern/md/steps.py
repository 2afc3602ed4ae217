"""How an evaluator's steps are run: on the CPU one by one, on a GPU as CUDA graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..graph import NeighborList
from ..models.potential import is_called_plainly
from ..nn.fingerprint import Fingerprint
from ..nn.plain import has_hooks
from .fixed import FixedList
from .verlet import VerletList

#: From a neighbor list, and whether stress is wanted, to what a model predicts.
Compute = Callable[[NeighborList, bool], dict[str, Tensor]]
#: From a function without arguments to one that gives the same tensors, with new values.
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]

_log = logging.getLogger(__name__)


class HostSteps:
    """Steps on the CPU. Their results lie in tensors that every step writes over."""

    def __init__(self, neighbors: VerletList, compute: Compute):
        self.list, self._compute = neighbors, compute
        self._results: dict[bool, dict[str, Tensor]] = {}

    def let_go(self) -> None:
        """Leaves the results given so far as they are: those that follow are other tensors."""
        self._results = {}

    def __call__(self, stress: bool) -> dict[str, Tensor]:
        if not self.list.valid():
            self.list.build()
        assert self.list.neighbors is not None
        out = self._compute(self.list.neighbors, stress)
        kept = self._results.get(stress)
        if kept is None:
            kept = self._results[stress] = {name: value.clone() for name, value in out.items()}
            return kept
        for name, value in out.items():
            kept[name].copy_(value)
        return kept


class GraphSteps:
    """Steps that are captured once and replayed, until the list outgrows its capacity.

    Whether the list was valid is found by the step itself, on the device: one that was not is done
    again. So are steps whose weights, layers or filters have changed, which are captured anew.
    Hooks are Python: steps of a model that has some, or a ``forward`` of its own, are run as they
    are.

    Args:
        neighbors: the list, whose tensors stay where they are.
        compute: the step.
        model: whose weights are watched.
        capture: makes a function that repeats what it was given (:func:`capture_graph`).
        insist: whether a step that cannot be captured is an error, or run as it is.
    """

    def __init__(
        self,
        neighbors: FixedList,
        compute: Compute,
        model: torch.nn.Module,
        capture: Capture,
        insist: bool = True,
    ):
        self.list, self._compute, self._model = neighbors, compute, model
        self._capture, self._insist = capture, insist
        self._runs: dict[bool, Callable[[], Any]] = {}
        self._tables: dict[bool, Any] = {}
        self._made_for: tuple[Any, Fingerprint] | None = None

    def let_go(self) -> None:
        """Leaves the results given so far as they are: those that follow are other tensors."""
        self._runs.clear()

    def __call__(self, stress: bool) -> dict[str, Tensor]:
        while True:
            self.list.prepare()
            out, verdict = self._run(stress)()
            if self.list.accept(verdict):
                return out
            _log.info("the list was not valid; step done again, capacity %d", self.list.capacity)

    def _run(self, stress: bool) -> Callable[[], Any]:
        made_for = self._made_for
        splines = getattr(self._model, "_splines", None)
        if splines is not None and splines.trained:
            splines.look_at_weights()
        filters = getattr(self._model, "filters", None), getattr(splines, "forgotten", 0)
        now = self.list.generation, *filters
        if made_for is None or made_for[0] != now or not made_for[1].holds():
            self._runs.clear()
            self._made_for = made_for = now, Fingerprint(self._model, self._model.modules())
        if stress not in self._runs:
            self._runs[stress] = self._captured(lambda: self._step(stress))
            made_for[1].settle()
            # A graph reads splines where they are, also when the model has made new ones
            self._tables[stress] = getattr(splines, "made", None)
        return self._runs[stress]

    def _step(self, stress: bool) -> tuple[dict[str, Tensor], Tensor]:
        neighbors, verdict = self.list.renew()
        return self._compute(neighbors, stress), verdict

    def _captured(self, step: Callable[[], Any]) -> Callable[[], Any]:
        if has_hooks(self._model) or not is_called_plainly(self._model):
            return step
        step()  # what models make once and keep is not captured
        try:
            return self._capture(step)
        except RuntimeError as error:
            if self._insist:
                raise
            warnings.warn(f"steps run without a CUDA graph, slower: {error}", stacklevel=4)
            return step


def capture_graph(function: Callable[[], Any]) -> Callable[[], Any]:
    """Captures what a function does on the GPU in a CUDA graph, which the result replays.

    The tensors given back are the same ones each time, with new values.
    """
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):  # as torch asks for: libraries make their workspaces
        for _ in range(2):
            function()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()

    def replay() -> Any:
        graph.replay()
        return out

    return replay
