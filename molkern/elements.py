"""Chemical elements: their symbols, and those that a model knows."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_TABLE = (
    "X "
    "H He "
    "Li Be B C N O F Ne "
    "Na Mg Al Si P S Cl Ar "
    "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe "
    "Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn "
    "Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
#: By atomic number; 0 is no element.
SYMBOLS = tuple(_TABLE.split())
_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}


def atomic_numbers(elements: Iterable[str | int]) -> list[int]:
    """Atomic numbers of chemical symbols; integers are taken as they are.

    Raises:
        ValueError: a string that is no chemical symbol, a negative number.
        TypeError: something that is neither a string nor an integer.

    >>> atomic_numbers(["H", "Og", 8])
    [1, 118, 8]
    """
    numbers = []
    for element in elements:
        if isinstance(element, str) and element not in _NUMBERS:
            raise ValueError(f"{element!r} is no chemical symbol: write them as in 'H' or 'Cl'")
        numbers.append(_NUMBERS[element] if isinstance(element, str) else _whole(element))
    return numbers


def _whole(element: int) -> int:
    try:
        if isinstance(element, bool):
            raise TypeError
        number = operator.index(element)
    except TypeError:
        raise TypeError(f"{element!r} is neither a chemical symbol nor an integer") from None
    if number < 0:
        raise ValueError(f"atomic numbers are not negative, got {number}")
    return number


def symbol(number: int) -> str:
    """The symbol of an element; ``"?"`` for numbers of none."""
    return SYMBOLS[number] if 0 <= number < len(SYMBOLS) else "?"


def symbols(numbers: Collection[int]) -> str:
    """Symbols of elements in their order; of more than 20 the first and the last.

    >>> symbols({8, 1, 6})
    'H, C, O'
    """
    ordered = sorted(numbers)
    names = [symbol(z) if symbol(z) != "?" else str(z) for z in ordered]
    if len(names) > 20:
        return f"{names[0]} to {names[-1]}, {len(names)} elements"
    return ", ".join(names)


def referenced(reference: Sequence[Any] | None) -> tuple[int, ...] | None:
    """The atomic numbers for which a list of reference energies has any other than zero.

    Models that came without a list of their elements were made for these. None where that tells
    nothing: without references, or where all are zero.

    Args:
        reference: by atomic number, numbers or lists of numbers (one for each target).

    >>> referenced([0.0, -13.6, 0.0, [0.0, -1.0]])
    (1, 3)
    """
    if reference is None:
        return None
    found = tuple(z for z, energy in enumerate(reference) if z and _nonzero(energy))
    return found or None


def _nonzero(energy: Any) -> bool:
    return any(map(_nonzero, energy)) if isinstance(energy, list | tuple) else energy != 0


def checked_elements(elements: Any, table: int) -> tuple[int, ...]:
    """Atomic numbers, sorted and each once, for a model's table of ``table`` elements.

    Raises:
        ValueError: not a list of integers, an empty one, or a number outside the table.
    """
    try:
        numbers = sorted({_integer(number) for number in elements})
    except TypeError as error:
        raise ValueError(f"elements must be a list of atomic numbers, got {elements!r}") from error
    if not numbers:
        raise ValueError("elements must name at least one; None stands for not known")
    for number in (numbers[0], numbers[-1]):
        if not 0 <= number < table:
            raise ValueError(
                f"elements has {number}, but the model's table goes from 0 to {table - 1}"
            )
    return tuple(numbers)


def _integer(number: Any) -> int:
    if isinstance(number, bool | str) or int(number) != number:
        raise TypeError(f"{number!r} is no atomic number")
    return int(number)
