"""The same bits for every number of threads, of models whose dense layers are molkern's own.

The others have torch's matrix products, whose sums may be split among threads.
"""

import pytest
import torch

from molkern import AtomicBatch, models

MODELS = {
    "DimeNet": lambda: models.DimeNet(32, num_blocks=2, output_init="glorot_orthogonal"),
    "DimeNetPlusPlus": lambda: models.DimeNetPlusPlus(
        64, num_blocks=2, output_init="glorot_orthogonal"
    ),
}


@pytest.mark.unemulated
@pytest.mark.parametrize("name", MODELS)
def test_same_bits_for_every_number_of_threads(name, threads):
    model = MODELS[name]().eval()
    with torch.no_grad():  # some layers start at zero
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    batch = AtomicBatch(torch.arange(60) % 8 + 1, 6 * torch.rand(60, 3), torch.arange(60) // 20)
    results = []
    for count in (1, 2, 3, 1):
        threads(count)
        out = model(batch, forces=True)
        results.append((out["energy"], out["forces"]))
    assert results[0][1].any()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
