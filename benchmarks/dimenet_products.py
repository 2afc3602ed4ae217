"""The floor of DimeNet: what torch's matrix products alone take for its dense layers."""

import torch


def products(kind: str, edges: int, atoms: int):
    """Matrix products of the dense layers, forward and by the inputs, as torch computes them.

    Nobody computes these models faster on the same machine without faster products.
    """
    blocks, per_edge = 6, [(128, 128)] * 9 + [(1024, 128)]
    per_atom = [(128, 128)] * 3
    if kind == "DimeNetPlusPlus":
        blocks, per_edge = 4, [(128, 128)] * 9 + [(128, 64), (64, 128)]
        per_atom = [(128, 256)] + [(256, 256)] * 3
    layers = [(edges, *shape) for shape in per_edge * blocks + [(128, 128)]]
    layers += [(atoms, *shape) for shape in per_atom * (blocks + 1)]
    tensors = {s: (torch.randn(s[0], s[1]), torch.randn(s[2], s[1])) for s in set(layers)}

    def run():
        for shape in layers:
            x, w = tensors[shape]
            (x @ w.T) @ w

    return run
