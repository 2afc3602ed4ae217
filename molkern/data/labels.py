"""Names, shapes and units of labels in files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: What files call labels that belong together, the most usual first.
NAMES: dict[str, tuple[str, ...]] = dict(
    energy=("energy",),
    forces=("forces", "force"),
    stress=("stress", "virial", "virials"),
    charges=("charges",),
    dipole=("dipole",),
)
#: What may stand before such a name, the same for all of a file.
PREFIXES = ("", "REF_", "ref_", "dft_", "DFT_")
#: Labels that are energies, whole or by length, with their units here.
ENERGIES = dict(energy="eV", forces="eV/Å", stress="eV/Å³")
#: Units here of labels that are none.
OTHERS = dict(charges="e", dipole="e·Å", total_charge="e")


def checked_names(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Names in a file by label, as they are given to readers.

    Raises:
        TypeError: something else.
    """
    if labels is None:
        return {}
    texts = isinstance(labels, Mapping) and all(
        isinstance(text, str) for pair in labels.items() for text in pair
    )
    if not texts:
        raise TypeError(f'labels must be names by label, {{"energy": "E0"}}, got {labels!r}')
    return dict(labels)


def choose(
    present: Collection[str], given: Mapping[str, str], where: str, extra: Collection[str] = ()
) -> dict[str, str]:
    """Which name in a file each label is read from.

    Labels that are not given are looked for by :data:`NAMES`, all with the prefix of those that are
    given, or else that of the energy (without an energy, of the first label found), so that an
    energy of one method does not meet forces of another; without a prefix where the file has no
    plain energy that they could belong to.

    Args:
        present: names in the file.
        given: names in the file by label.
        where: the file, for messages.
        extra: labels that may be given although they are not looked for here.

    Raises:
        ValueError: a name that is given but not there.
    """
    for label, name in given.items():
        if name not in present and label not in extra:
            known = ", ".join(sorted(present)) or "nothing else"
            raise ValueError(f"{where} has no {name!r} (data.labels: {label}): it has {known}")
    found = {label: name for label, name in given.items() if label not in extra}
    prefix = _prefix(present, given)
    for label, names in NAMES.items():
        if label in found:
            continue
        apart = "energy" in present and label in ("forces", "stress")
        befores = [prefix] if apart or not prefix else [prefix, ""]
        candidates = [before + name for before in befores for name in names]
        first = next((name for name in candidates if name in present), None)
        if first is not None and first not in given.values():
            found[label] = first
    return found


def _prefix(present: Collection[str], given: Mapping[str, str]) -> str:
    for label in ("energy", "forces", "stress"):
        for prefix in PREFIXES:
            if given.get(label) in [prefix + name for name in NAMES[label]]:
                return prefix
    for label in ("energy", "forces", "stress"):
        for prefix in PREFIXES:
            if any(prefix + name in present for name in NAMES[label]):
                return prefix
    return ""


def is_energy(label: str, name: str) -> bool:
    """Whether values are energies, by their label or their name in a file."""
    words = f"{label} {name}".lower()
    return label in ENERGIES or "energy" in words or "energies" in words


def unit_of(label: str, name: str = "") -> str | None:
    """The unit that a label has here; None for one that is taken as it is."""
    return ENERGIES.get(label) or OTHERS.get(label) or ("eV" if is_energy(label, name) else None)


def is_virial(name: str) -> bool:
    """Whether what a file calls so is a virial: −V times the stress."""
    return "virial" in name.lower()


def of_frame(label: str, name: str, value: Array, atoms: int) -> Array:
    """A frame's value of a label in the label's shape, float64.

    Raises:
        ValueError: a value of another shape.
    """
    shape = value.shape
    if label == "forces":
        return _required(name, value, shape == (atoms, 3), (atoms, 3))
    if label == "charges":
        fits = shape in ((atoms,), (atoms, 1)) or (atoms == 1 and shape == ())
        return _required(name, value, fits, (atoms,))
    if label == "dipole":
        return _required(name, value, shape in ((3,), (1, 3)), (3,))
    if label == "stress":
        if shape not in ((6,), (9,), (3, 3)):
            raise ValueError(f"{name} must have shape [3, 3], [6] or [9], got {list(shape)}")
        return tensors(value)
    if label == "energy" or shape != (3,):
        return _required(name, value, value.size == 1 and value.ndim <= 2, ())
    return value


def _required(name: str, value: Array, fits: bool, shape: tuple[int, ...]) -> Array:
    if not fits:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    return value.reshape(shape)


def tensors(values: Array) -> Array:
    """Stress or virials as ``[..., 3, 3]``.

    Six components are xx, yy, zz, yz, xz, xy (Voigt's order, ASE's), nine go down the columns, as
    in extended XYZ.
    """
    if values.shape[-2:] == (3, 3):
        return values
    order = [0, 5, 4, 5, 1, 3, 4, 3, 2] if values.shape[-1] == 6 else [0, 3, 6, 1, 4, 7, 2, 5, 8]
    return values[..., order].reshape(*values.shape[:-1], 3, 3)


def stress_of_virial(virial: Array, cell: Array) -> Array:
    """Stress −W / V of virials W, ``[..., 3, 3]``; NaN where the cell has no volume."""
    volume = np.abs(np.linalg.det(cell))[..., None, None]
    return np.where(volume > 0, -virial / np.where(volume > 0, volume, 1.0), np.nan)


def listed(names: Collection[str], most: int = 20) -> str:
    """Names in a sentence, not too many."""
    shown = list(names)[:most]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + more
