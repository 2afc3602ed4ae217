"""Molecules of SDF and MOL files, V2000 and V3000, with charges and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

#: Charges by the code in an atom's line of V2000.
_CODES = {1: 3, 2: 2, 3: 1, 5: -1, 6: -2, 7: -3}


@dataclass
class Molecule:
    """One molecule of a file.

    Attributes:
        title: its first line.
        symbols: of its atoms, as written.
        positions: ``[n, 3]``, Å.
        charges: formal charges of atoms, ``[n]``.
        data: texts by name.
    """

    title: str
    symbols: list[str]
    positions: NDArray[np.float64]
    charges: NDArray[np.int64]
    data: dict[str, str] = field(default_factory=dict)


def molecules(lines: Iterator[str]) -> Iterator[Molecule]:
    """All molecules of a file, one after the other.

    Raises:
        ValueError: naming the molecule, which counts from 1: one that is cut short, or cannot be
            read.
    """
    number = 0
    while (title := next(lines, None)) is not None:
        number += 1
        record = [title.rstrip("\r\n")]
        ended = False
        for line in lines:
            ended = line.startswith("$$$$")
            if ended:
                break
            record.append(line.rstrip("\r\n"))
        if number > 1 and not ended and not any(line.strip() for line in record):
            return  # empty lines at the end
        try:
            yield _molecule(record)
        except IndexError as error:
            raise ValueError(f"it ends within molecule {number}") from error
        except ValueError as error:
            raise ValueError(f"molecule {number} cannot be read: {error}") from error


def _molecule(record: list[str]) -> Molecule:
    counts = record[3]
    if "V3000" in counts:
        symbols, places, charges, after = _v3000(record)
    elif "V2000" in counts or counts[:6].strip():
        symbols, places, charges, after = _v2000(record)
    else:
        raise ValueError("it is in neither V2000 nor V3000")
    return Molecule(
        record[0].strip(),
        symbols,
        np.array(places, dtype=np.float64).reshape(-1, 3),
        np.array(charges, dtype=np.int64),
        _data(record[after:]),
    )


def _v2000(record: list[str]) -> tuple[list[str], list[list[float]], list[int], int]:
    count, bonds = int(record[3][:3]), int(record[3][3:6])
    atoms = record[4 : 4 + count]
    if len(atoms) < count:
        raise IndexError
    symbols = [line[31:34].strip() for line in atoms]
    places = [[float(line[k : k + 10]) for k in (0, 10, 20)] for line in atoms]
    charges = [_CODES.get(int(line[36:39].strip() or 0), 0) for line in atoms]
    place = 4 + count + bonds
    replaced = False
    while not (line := record[place]).startswith("M  END"):
        if line.startswith("M  CHG"):
            if not replaced:  # then the codes in the lines of atoms do not count
                charges, replaced = [0] * count, True
            fields = [int(text) for text in line.split()[3:]]
            for atom, charge in zip(fields[::2], fields[1::2], strict=True):
                charges[_within(atom, count)] = charge
        place += 1
    return symbols, places, charges, place + 1


def _within(atom: int, count: int) -> int:
    if not 1 <= atom <= count:
        raise ValueError(f"it has {count} atoms, but a charge of atom {atom}")
    return atom - 1


def _v3000(record: list[str]) -> tuple[list[str], list[list[float]], list[int], int]:
    symbols, places, charges = list[str](), list[list[float]](), list[int]()
    place, inside, count = 4, False, -1
    while not record[place].startswith("M  END"):
        text = record[place].removeprefix("M  V30 ").strip()
        while text.endswith("-"):  # goes on in the next line
            place += 1
            text = text[:-1] + record[place].removeprefix("M  V30 ").strip()
        words = text.split()
        if words[:1] == ["COUNTS"]:
            count = int(words[1])
        elif words[:2] in (["BEGIN", "ATOM"], ["END", "ATOM"]):
            inside = words[0] == "BEGIN"
        elif inside:
            symbols.append(words[1])
            places.append([float(word) for word in words[2:5]])
            given = [word for word in words[6:] if word.startswith("CHG=")]
            charges.append(int(given[0].removeprefix("CHG=")) if given else 0)
        place += 1
    if len(symbols) != count:
        raise ValueError(f"it has {len(symbols)} atoms, but {count} by its counts")
    return symbols, places, charges, place + 1


def _data(lines: list[str]) -> dict[str, str]:
    """``> <NAME>``, then lines up to an empty one."""
    found: dict[str, str] = {}
    name = None
    for line in lines:
        if line.startswith(">") and "<" in line:
            name = line[line.index("<") + 1 :].partition(">")[0]
            found[name] = ""
        elif not line.strip():
            name = None
        elif name is not None:
            found[name] = f"{found[name]}\n{line}".strip()
    return found
