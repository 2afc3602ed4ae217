"""The elements that a model was trained on, which it is not to be used beyond."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from ..elements import checked_elements, symbol, symbols
from ..graph import AtomicBatch

#: What to do who wants another element all the same.
INSIST = "model.allow_unknown_elements = True (--allow-unknown-elements in the command line)"


class KnowsElements(nn.Module):
    """A model with a table of elements, of which it may have been trained on some.

    Other elements are refused, wherever structures come from, but in training mode, where a model
    may be about to learn them. A model under :func:`torch.compile` does not look.
    """

    num_elements: int
    #: Whether elements that the model was not trained on are computed all the same.
    allow_unknown_elements: bool = False
    _elements: frozenset[int] | None = None

    @property
    def elements(self) -> tuple[int, ...] | None:
        """Atomic numbers of the elements that the model was trained on; None if not known.

        Training sets them, and they are saved with the model. Can be set, to any list of numbers
        in the model's table or to None; ``allow_unknown_elements = True`` lets others pass.
        """
        return None if self._elements is None else tuple(sorted(self._elements))

    @elements.setter
    def elements(self, value: Iterable[int] | None) -> None:
        known = None if value is None else frozenset(checked_elements(value, self.num_elements))
        self._elements = known

    def check_elements(
        self, numbers: Iterable[int] | Tensor, where: str = "", name: str | None = None
    ) -> None:
        """Refuses atoms beyond the model's table, and of elements that it was not trained on.

        Args:
            numbers: atomic numbers, ``[N]``.
            where: of which file or frame they are, for the message.
            name: of the model in the message; by default its class.

        Raises:
            ValueError: naming the atom, its element and those that the model knows.
        """
        table = range(self.num_elements)
        unlimited = self._elements is None or self.allow_unknown_elements
        known: Collection[int] = table if unlimited else self._elements or ()
        listed = numbers.tolist() if isinstance(numbers, Tensor) else numbers
        for atom, number in enumerate(map(int, listed)):
            if number not in known:
                hint = f"; {INSIST} computes it all the same" if number in table else ""
                raise ValueError(
                    f"{where}{': ' if where else ''}atom {atom} is {symbol(number)} ({number}), "
                    f"which {name or f'this {type(self).__name__}'} does not know: it knows "
                    f"{symbols([z for z in known if z])}{hint}"
                )

    def _check_numbers(self, batch: AtomicBatch) -> None:
        """Refuses numbers beyond the table and unknown elements; waits for a GPU once a batch."""
        known = self._elements
        if self.allow_unknown_elements or (self.training and torch.is_grad_enabled()):
            known = None
        present = batch.number_range if known is None else batch.elements
        if not present:
            return
        if present[0] < 0 or present[-1] >= self.num_elements:
            wrong = present[0] if present[0] < 0 else present[-1]
            atom = int((batch.numbers == wrong).nonzero()[0])
            raise ValueError(
                f"atom {atom} has number {wrong}, but the model's table goes from 0 to "
                f"{self.num_elements - 1}"
            )
        if known is not None and not known.issuperset(present):
            self.check_elements(batch.numbers)
