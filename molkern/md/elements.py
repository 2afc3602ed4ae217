"""Atomic numbers of elements, as engines name them."""

from __future__ import annotations

import operator
from collections.abc import Iterable

_SYMBOLS = (
    "H He "
    "Li Be B C N O F Ne "
    "Na Mg Al Si P S Cl Ar "
    "K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe "
    "Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn "
    "Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
_NUMBERS = {symbol: number for number, symbol in enumerate(_SYMBOLS.split(), start=1)}


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
        number = operator.index(element)
    except TypeError:
        raise TypeError(f"{element!r} is neither a chemical symbol nor an integer") from None
    if number < 0:
        raise ValueError(f"atomic numbers are not negative, got {number}")
    return number
