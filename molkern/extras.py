"""Packages that the base installation does without."""

from __future__ import annotations

from importlib import import_module


def require(extra: str, *packages: str) -> None:
    """Refuses to go on without packages of an extra.

    Raises:
        ImportError: naming the package and how to install the extra.
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f"this needs {package} ({error}): pip install 'molkern[{extra}]'"
            ) from error
