"""Progress bars, which say nothing where nobody could see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from .host import start_of_processes_kept


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of tqdm's on stderr, switched off where a process has no stderr."""
    from tqdm import tqdm

    if sys.stderr is None:
        options["disable"] = True
    with start_of_processes_kept():  # the first bar makes a lock between processes
        return tqdm(items, file=sys.stderr, **options)
