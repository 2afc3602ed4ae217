"""All tensors that molkern makes name their device: a default one would send them elsewhere."""

import ast
from pathlib import Path

import molkern

MAKERS = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand"),
    *("randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros", "asarray", "normal"),
}
#: Parameters and buffers of layers, which are made on the default device as torch.nn's are.
LAYERS = {
    *("basis.py", "dimenet.py", "dispersion.py", "heads.py", "physnet.py", "properties.py"),
}


def makers_without_device(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value
        of_torch = isinstance(owner, ast.Name) and owner.id == "torch"
        named = {keyword.arg for keyword in node.keywords}  # None for **options
        if of_torch and node.func.attr in MAKERS and named.isdisjoint({"device", None}):
            yield f"{path.name}:{node.lineno}"


def test_devices_are_named():
    root = Path(molkern.__file__).parent
    found = [
        place
        for path in sorted(root.rglob("*.py"))
        # Conversions run within ordinary_tensors(), which sets it
        if path.parent.name != "interop"
        and not (path.parent.name in ("nn", "models") and path.name in LAYERS)
        for place in makers_without_device(path)
    ]
    assert not found
