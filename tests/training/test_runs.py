"""Runs: what they leave behind, and that they go on as if nothing had happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from molkern.data import load_dataset
from molkern.models import load
from molkern.training import results, run
from molkern.training.predict import predict
from molkern.training.records import BEST, LAST, METRICS
from molkern.training.schedules import make_optimizer
from molkern.training.split import Share

ROOT = Path(__file__).parents[2]


def train(config, folder, **options):
    return run.train(config, folder, progress=False, device="cpu", say=lambda _: None, **options)


def table(folder):
    """The metrics without times."""
    with (folder / METRICS).open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "minutes"} for row in rows]


def command(config, folder, *options, **environment):
    """``molkern train`` as a process of its own."""
    path = folder.with_suffix(".yaml")
    path.write_text(config.dump())
    line = [sys.executable, "-m", "molkern", "train", str(path), "--out", str(folder)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *PATHS]), **environment}
    return [*line, "--device", "cpu", "--threads", "1", *options], variables


PATHS = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []


def test_a_run_leaves_everything_behind(tiny, tmp_path):
    config, folder = tiny(), tmp_path / "run"
    train(config, folder)
    assert [row["step"] for row in table(folder)] == ["3", "6", "9", "12"]
    assert float(table(folder)[-1]["passes"]) == pytest.approx(12 * 8 / 40)
    assert yaml.safe_load((folder / "config.yaml").read_text())["training"]["steps"] == 12
    facts = json.loads((folder / "run.json").read_text())
    assert facts["elements"] == [1, 6, 8]
    errors = results.score(folder, "validation", progress=False, say=lambda _: None)
    best = min(table(folder), key=lambda row: float(row["val_loss"]))
    assert errors["forces"]["mae"] == pytest.approx(float(best["val_forces_mae"]), rel=1e-5)


def test_elements_that_only_the_test_part_has_are_noted(tiny, tmp_path, molecules):
    config = tiny(
        data=dict(format="qm9", path=str(molecules), split=dict(train=40, validation=8, test=11)),
        objective=dict(U0=dict(loss="mae")),
    )
    first = int(run.prepare(config).split["test"][0])
    number = load_dataset(molecules, format="qm9").ids[first]
    with np.load(molecules) as content:
        arrays = dict(content)
    arrays["Z"][np.repeat(arrays["id"], arrays["N"]) == number] = 9
    np.savez(molecules, **arrays)
    said = []
    run.train(config, tmp_path / "run", progress=False, device="cpu", say=said.append)
    assert any("no system of the training part has F, which the test part has" in x for x in said)
    model = results.Run.open(tmp_path / "run").model()
    assert model.elements == (1, 6, 8)
    assert not model.allow_unknown_elements
    results.score(tmp_path / "run", progress=False, say=said.append)


def test_training_further_keeps_what_is_known(tiny):
    def build(*arguments):
        model = run.build_model(*arguments)
        model.elements = [1, 7]
        return model

    assert run.prepare(tiny(), build=build).model.elements == (1, 6, 7, 8)
    module = run.prepare(tiny(), build=build).module
    assert module.averaged.elements == (1, 6, 7, 8)


def test_training_learns(tiny, tmp_path):
    config = tiny(training__steps=150, training__validate_every=50)
    train(config, tmp_path / "run")
    first, *_, last = (float(row["val_forces_mae"]) for row in table(tmp_path / "run"))
    constant = np.abs(load_dataset(format="ethanol").properties["forces"]).mean()
    assert last < first
    assert last < 0.6 * constant


def test_the_same_run_twice(tiny, tmp_path):
    for name in ("a", "b"):
        train(tiny(model__filters="spline"), tmp_path / name)
    assert table(tmp_path / "a") == table(tmp_path / "b")
    assert (tmp_path / "a" / BEST).read_bytes() == (tmp_path / "b" / BEST).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        dict(model__filters="spline"),
        dict(schedule=dict(name="plateau", patience=0), training__early_stopping=3),
    ],
    ids=["splines", "plateau"],
)
def test_killed_runs_go_on_bit_for_bit(tiny, tmp_path, changes):
    config = tiny(**{**changes, "training__steps": 60})
    train(config, tmp_path / "whole")
    line, environment = command(config, tmp_path / "killed", "--resume")
    process = subprocess.Popen(
        line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "killed" / METRICS
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with metrics.open("a") as file:  # as if it had been killed in the middle of a row
        file.write("99,0.1,")
    train(config, tmp_path / "killed", resume=True)
    assert table(tmp_path / "killed") == table(tmp_path / "whole")
    assert (tmp_path / "killed" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()


def test_a_run_killed_before_its_first_checkpoint(tiny, tmp_path):
    config = tiny()
    train(config, tmp_path / "whole")
    for name in ("early", "torn"):
        (tmp_path / name).mkdir()
    (tmp_path / "early" / "config.yaml").write_text(config.dump())
    (tmp_path / "early" / METRICS).write_text("step,minutes\n3,0.1\n")
    (tmp_path / "torn" / "config.yaml.part").write_text("model: {na")
    for name in ("early", "torn"):
        train(config, tmp_path / name, resume=True)
        assert table(tmp_path / name) == table(tmp_path / "whole")


def test_a_process_without_systems_counts_them_all_the_same(tiny):
    module = run.prepare(tiny()).module
    data = load_dataset(format="ethanol")
    module.validation_step((data.collate([0]), Share(np.empty(0, dtype=int), 1, 9)), 0)
    assert module._systems == 1


def test_labels_that_are_nan_are_left_out_and_named(tiny, tmp_path, molecules):
    with np.load(molecules) as content:
        arrays = dict(content)
    arrays["U0"][5] = np.nan  # the molecule 1006
    np.savez(molecules, **arrays)
    config = tiny(
        data=dict(format="qm9", path=str(molecules), split=dict(train=40, validation=8)),
        objective=dict(U0=dict(loss="mae")),
    )
    said = []
    run.train(config, tmp_path / "run", progress=False, device="cpu", say=said.append)
    assert any("1 of " in note and "(1006)" in note for note in said)
    data = load_dataset(molecules, format="qm9")
    with np.load(tmp_path / "run" / "split.npz") as split:
        members = np.concatenate([split[part] for part in ("train", "validation", "test")])
    assert 1006 not in data.ids[members]
    assert len(members) == len(data) - 1


def test_crystals_with_stress(tiny, tmp_path, monkeypatch):
    pytest.importorskip("ase")
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import read, write

    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))
    frames = []
    for seed in range(12):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        atoms.get_forces()
        frames.append(atoms)
    write(tmp_path / "cu.extxyz", frames)
    config = tiny(
        model__num_elements=30,
        data=dict(path=str(tmp_path / "cu.extxyz"), split=dict(train=8, validation=4)),
        objective=dict(energy={}, forces={}, stress=dict(weight=10.0)),
    )
    train(config, tmp_path / "run")
    assert float(table(tmp_path / "run")[-1]["val_stress_mae"]) > 0
    predict(tmp_path / "run", tmp_path / "cu.extxyz", tmp_path / "p.extxyz", progress=False)
    batch = load_dataset(tmp_path / "cu.extxyz").collate([3]).batch
    wanted = load(tmp_path / "run" / BEST)(batch, stress=True)["stress"][0]
    found = read(tmp_path / "p.extxyz", 3).get_stress(voigt=False)
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_interrupted_runs_say_how_to_go_on(tiny, tmp_path):
    config, folder = tiny(training__steps=3000), tmp_path / "run"
    line, environment = command(config, folder)
    process = subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / LAST).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"go on with: molkern train {folder} --resume" in output


def test_two_processes_train_like_one(tiny, tmp_path):
    # The last portion of the validation has one system: none for the second process
    config = tiny(training__validation_batch_size=5, training__precision="64")
    train(config, tmp_path / "one")
    line, environment = command(config, tmp_path / "two", "--devices", "2")
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert len(one) == len(two) == 4
    for expected, found in zip(one, two, strict=True):
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), rel=1e-9), name


def test_batches_that_processes_cannot_share(tiny, tmp_path):
    with pytest.raises(ValueError, match="is not a multiple of the 3 processes"):
        train(tiny(), tmp_path / "run", devices=3)


def test_folders_that_are_there(tiny, tmp_path):
    config, folder = tiny(training__steps=3), tmp_path / "run"
    train(config, folder)
    with pytest.raises(ValueError, match="holds a run: go on with --resume"):
        train(config, folder)
    with pytest.raises(ValueError, match=r"with model.cutoff: 4.0, which cannot go on with 3.0"):
        train(tiny(training__steps=3, model__cutoff=3.0), folder, resume=True)
    fewer = tiny(training__steps=3, objective=dict(energy=dict(weight=0.01)))
    with pytest.raises(ValueError, match=r"with objective\.forces\.\w+: .*cannot go on with None"):
        train(fewer, folder, resume=True)
    train(tiny(training__steps=3, model__cutoff=3.0), folder, restart=True)
    assert load(folder / BEST).cutoff == 3.0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="with other files"):
        train(config, tmp_path / "other")
    assert not (tmp_path / "other" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(objective=dict(gap={})), "has no such label"),
        (dict(model__num_elements=8), "leaves out element 8"),
        (dict(model__basis="splines"), "model: basis must be"),
        (dict(data__split=dict(train=3000, validation=1)), "more than the 2,000 systems"),
        (dict(training__batch_size=41), "more than the 40 systems"),
        (dict(data__path="none.npz", data__format="npz"), "is not there"),
        (dict(data__path="$NOT_SET/x.npz", data__format="npz"), "variable of the environment"),
    ],
)
def test_nothing_is_begun_that_cannot_be_done(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number(tiny, tmp_path):
    config = tiny(optimizer=dict(learning_rate=1e30), training__clip=None, schedule={})
    with pytest.raises(ValueError, match=r"the loss is .* at step \d+.*lower optimizer"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize("precision", ["64", "bf16-mixed"])
def test_precisions(tiny, tmp_path, precision):
    config = tiny(training__precision=precision, objective=dict(energy=dict(loss="mae")))
    train(config, tmp_path / "run")
    kept = load(tmp_path / "run" / BEST)
    wanted = torch.float64 if precision == "64" else torch.float32
    assert next(kept.parameters()).dtype == wanted
    assert all(np.isfinite(float(row["val_loss"])) for row in table(tmp_path / "run"))


def test_the_average_follows(tiny):
    config = tiny()
    module = run.prepare(config).module
    before = [p.clone() for p in module.averaged.parameters()]
    optimizer = make_optimizer(config.optimizer, list(module.model.parameters()))
    sum(p.square().sum() for p in module.model.parameters()).backward()
    optimizer.step()
    module.follow(3)
    decay = min(0.9, 4 / 13)
    triples = zip(before, module.model.parameters(), module.averaged.parameters(), strict=True)
    for old, new, average in triples:
        assert torch.allclose(average, decay * old + (1 - decay) * new, atol=1e-6)
        assert not average.requires_grad


def test_tensorboard_and_time(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    train(tiny(training__tensorboard=True, training__minutes=5.0), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_a_run_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        results.score(tmp_path, say=lambda _: None)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match="has no model yet"):
        results.score(tmp_path, say=lambda _: None)


def test_data_that_changed(tiny, tmp_path, molecules):
    config = tiny(
        data=dict(format="qm9", path=str(molecules), split=dict(train=40, validation=8)),
        objective=dict(U0=dict(loss="mae")),
    )
    folder = tmp_path / "run"
    train(config, folder)
    assert not (folder / (LAST + ".part")).exists()
    with np.load(molecules) as content:
        arrays = dict(content)
    arrays["U0"][0] += 1
    np.savez(molecules, **arrays)
    with pytest.raises(ValueError, match="made for other data"):
        results.score(folder, say=lambda _: None)
