"""Small models of every kind with weights that are not zero, and a molecule for them; float64."""

import torch

import molkern
from molkern import models

MAKERS = {
    "DTNN": lambda **k: models.DTNN(8, 8, 2, num_basis=6, cutoff=4.0, num_elements=10, **k),
    "SchNet": lambda **k: models.SchNet(8, 8, 2, num_basis=6, cutoff=4.0, num_elements=10, **k),
    "PhysNet": lambda **k: models.PhysNet(8, 6, 2, cutoff=4.0, num_elements=10, **k),
    "DimeNet": lambda **k: models.DimeNet(
        8, num_blocks=1, num_bilinear=2, num_spherical=3, num_radial=3, cutoff=4.0,
        num_elements=10, **k,
    ),
    "DimeNetPlusPlus": lambda **k: models.DimeNetPlusPlus(
        8, num_blocks=1, int_emb_size=4, basis_emb_size=4, out_emb_size=8, num_spherical=3,
        num_radial=3, cutoff=4.0, num_elements=10, **k,
    ),
}  # fmt: skip
NAMES = list(MAKERS)


def small_model(name, **options):
    torch.manual_seed(0)
    model = MAKERS[name](**options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, -0.4, 0.4)
    return model


NUMBERS = torch.tensor([8, 1, 1, 6])
POSITIONS = torch.tensor(
    [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [0.3, 0.4, 1.3]], dtype=torch.float64
)


def molecule(positions=POSITIONS, **options):
    return molkern.AtomicBatch(NUMBERS, positions, **options)


def several(*positions):
    """A batch of the molecule at several positions."""
    systems = torch.arange(len(positions), device="cpu").repeat_interleave(len(NUMBERS))
    return molkern.AtomicBatch(NUMBERS.repeat(len(positions)), torch.cat(positions), systems)
