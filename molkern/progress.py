"""Progress bars, which say nothing where nobody could see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from .host import start_of_processes_kept

Item = TypeVar("Item")


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of tqdm's on stderr, switched off where a process has no stderr."""
    from tqdm import tqdm

    if sys.stderr is None:
        options["disable"] = True
    with start_of_processes_kept():  # the first bar makes a lock between processes
        return tqdm(items, file=sys.stderr, **options)


def progress_over(items: Iterable[Item], what: str, unit: str, shown: bool) -> Iterator[Item]:
    """The items, with a bar while they are worked on, where tqdm is there and somebody looks."""
    if shown:
        with suppress(ImportError):
            items = progress_bar(items, desc=what, unit=unit, disable=None, leave=False)
    yield from items
