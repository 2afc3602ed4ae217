"""The training script of the shipped model."""

import re
from importlib.resources import files

import pytest

from molkern.models import load

pytest.importorskip("tqdm")


def test_training_runs_as_long_as_the_card_says(monkeypatch, tmp_path):
    from molkern.training import ethanol

    card = (files("molkern.data") / "ethanol_schnet.md").read_text()
    steps = int(re.search(r"([\d,]+) steps of", card)[1].replace(",", ""))
    asked = []

    def train(steps, seed):
        asked.append(steps)
        model = ethanol.new_model(ethanol.ethanol_frames()["train"])
        return model, {"test": (0.001, 0.002)}

    monkeypatch.setattr(ethanol, "train", train)
    out = tmp_path / "model.safetensors"
    monkeypatch.setattr("sys.argv", ["ethanol", "--out", str(out)])
    ethanol.main()
    assert asked == [steps]
    assert f"{steps:,} steps of" in out.with_suffix(".md").read_text()
    assert load(out).num_elements == 10
