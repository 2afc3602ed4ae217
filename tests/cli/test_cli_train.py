"""Training, testing, predicting and drawing on the command line."""

import csv

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")

QUICK = (
    "--set training.steps=6 --set training.validate_every=3 --set model.hidden_channels=8 "
    "--set model.num_filters=8 --set model.num_interactions=1 --set data.split.train=40 "
    "--set data.split.validation=8 --set data.split.test=6 --device cpu"
)
TRAIN = f"train schnet-ethanol-small --out run {QUICK}"


def test_from_a_configuration_to_predictions(molkern, ethanol, tmp_path):
    text = molkern(TRAIN)
    assert "test forces: MAE" in text
    folder = tmp_path / "run"
    kept = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml",
        "split.npz",
        "metrics.csv",
        "best.safetensors",
        "run.json",
        "test.json",
        "learning_curve.png",
        "test_parity_forces.png",
        "test_errors_energy.png",
    } <= kept
    assert "validation energy: MAE" in molkern("test run --part validation --device cpu")
    molkern("predict run ethanol.xyz --out p.csv --device cpu --batch-size 2")
    molkern("predict run ethanol.xyz --out p.npz --device cpu")
    molkern("predict run ethanol.xyz --out p.extxyz --device cpu")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    with np.load(tmp_path / "p.npz") as found:
        assert found["forces"].shape == (27, 3)
        assert np.allclose([float(row["energy"]) for row in rows], found["energy"], rtol=1e-6)
    from ase.io import read

    frames = read(tmp_path / "p.extxyz", ":")
    assert frames[2].get_potential_energy() == pytest.approx(float(rows[2]["energy"]), rel=1e-6)
    # A run's model serves in dynamics too
    molkern("evaluate ethanol.xyz --out e.csv", model="run/best.safetensors")


def test_runs_go_on_by_their_folder(molkern):
    molkern(TRAIN)
    assert "holds a run" in molkern(TRAIN, code=1)
    molkern("train run --resume --device cpu")


def test_elements_that_were_not_trained_on(molkern, tmp_path):
    from ase import Atoms
    from ase.io import write

    molkern(TRAIN)
    write(tmp_path / "hf.xyz", Atoms("HN", [[0, 0, 0], [0, 0, 1]]))
    assert "atom 1 is N (7)" in molkern("predict run hf.xyz --device cpu", code=1)
    molkern("predict run hf.xyz --device cpu --allow-unknown-elements")
    assert "which model run/best" in molkern(
        "evaluate hf.xyz --device cpu", code=1, model="run/best.safetensors"
    )
    assert "choose one of .csv" in molkern("predict run hf.xyz --out x.txt --device cpu", code=1)


def test_configurations_are_listed(molkern):
    text = molkern("configs")
    assert "schnet-ethanol-small" in text
    assert "hidden_channels: 64" in molkern("configs schnet-ethanol-small")
    assert "neither a file nor" in molkern("configs schnet-ethanol", code=1)


def test_pictures(molkern, tmp_path):
    molkern("plot filters ethanol --count 4 --cell 6.0 --out f.png")
    molkern("plot basis --out b.png")
    molkern("plot basis ethanol --out e.png")
    for name in ("f", "b", "e"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "is not there" in molkern("plot filters nothing", code=1)
