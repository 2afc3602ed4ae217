"""A run's folder: what is damaged or of another run is named, and two processes do not share it."""

import shutil

import numpy as np
import pytest
import torch
from planted import CONTENTS, Planted

from molkern.data import ethanol_frames
from molkern.files import locked_folder
from molkern.models import load
from molkern.training import results, run
from molkern.training.predict import predict
from molkern.training.records import BEST, FACTS, LAST, METRICS, Records, read_metrics

pytest.importorskip("ase")


def train(config, folder, **options):
    return run.train(config, folder, progress=False, device="cpu", say=lambda _: None, **options)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A finished run, and one of another seed and size."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(training__steps=6), folder / "one")
    other = tiny(training__steps=9, training__seed=5, data__split=dict(train=30, validation=9))
    train(other, folder / "other")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made / "one", tmp_path / "one")


@pytest.fixture
def structures(tmp_path):
    from ase import Atoms
    from ase.io import write

    frames = ethanol_frames()["test"]
    write(tmp_path / "in.xyz", Atoms(frames.numbers.numpy(), frames.positions[0].numpy()))
    return tmp_path / "in.xyz"


def use(what, folder, structures, config):
    """What reads a run's folder."""
    if what == "resume":
        train(config, folder, resume=True)
    elif what == "test":
        results.score(folder, progress=False, say=lambda _: None)
    else:
        predict(folder, structures, folder.parent / "p.csv", progress=False)


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


READ = {
    "resume": ("config.yaml", "split.npz", METRICS, LAST, BEST, FACTS),
    "test": ("config.yaml", "split.npz", METRICS, BEST, FACTS),
    "predict": ("config.yaml", BEST, FACTS),
}


@pytest.mark.parametrize("damage", ["empty", "cut", "other bytes", "text", "a pickle"])
@pytest.mark.parametrize(("what", "name"), [(k, n) for k, names in READ.items() for n in names])
def test_damaged_files_are_named(tiny, folder, structures, what, name, damage):
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2 + 1],
            "other bytes": whole[:-60] + bytes(50) + whole[-10:],
            "text": b"[{",
            "a pickle": b"\x80\x04]\x94.",
        }[damage]
    )
    before = content_of(folder)
    with pytest.raises(ValueError, match=r"\A[^\n]{1,600}\Z") as error:
        use(what, folder, structures, tiny(training__steps=6))
    assert str(path) in str(error.value)
    assert content_of(folder) == before


@pytest.mark.parametrize("what", READ)
def test_a_best_model_that_is_gone(tiny, folder, structures, what):
    """Nothing advises what does not help either."""
    (folder / BEST).unlink()
    with pytest.raises(
        ValueError, match=r"is gone: bring back a copy, or start .*--restart"
    ) as error:
        use(what, folder, structures, tiny(training__steps=6))
    assert str(folder / BEST) in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("what", "name"), [(k, n) for k, names in READ.items() for n in names])
def test_nothing_that_is_planted_is_run(tiny, folder, structures, what, name):
    marker = folder.parent / "planted"
    for kind, content in CONTENTS.items():
        if (kind, name) == ("database", FACTS):
            continue  # plain JSON, like these
        (folder / name).write_bytes(content(Planted(marker)))
        with pytest.raises(ValueError, match=name):
            use(what, folder, structures, tiny(training__steps=6))
        assert not marker.exists(), kind


@pytest.mark.parametrize(("what", "name"), [(k, n) for k, names in READ.items() for n in names])
def test_files_of_another_run_are_named(tiny, made, folder, structures, what, name):
    if name == FACTS:  # says what model there should be
        return
    shutil.copy(made / "other" / name, folder / name)
    with pytest.raises(ValueError, match=r"\A[^\n]{1,600}\Z") as error:
        use(what, folder, structures, tiny(training__steps=6))
    assert str(folder) in str(error.value)


def test_checkpoints_of_another_shape_change_nothing(tiny, folder):
    checkpoint = torch.load(folder / LAST, weights_only=True)
    key = next(key for key in checkpoint["state_dict"] if key.endswith("embedding.weight"))
    checkpoint["state_dict"][key] = torch.zeros(2, 2)
    torch.save(checkpoint, folder / LAST)
    before = content_of(folder)
    with pytest.raises(ValueError, match=r"last\.ckpt does not fit this run \(.*--restart\Z"):
        train(tiny(training__steps=6), folder, resume=True)
    del checkpoint["loops"]
    torch.save(checkpoint, folder / LAST)
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint of a run \(no loops\)"):
        train(tiny(training__steps=6), folder, resume=True)
    before[LAST] = (folder / LAST).read_bytes()
    assert content_of(folder) == before


def refusal(config, folder):
    """Why a run cannot go on; the folder's name where it can."""
    try:
        train(config, folder, resume=True)
    except ValueError as error:
        return str(error)
    return str(folder)


def test_checkpoints_with_strange_values(tiny, folder):
    """Whatever they hold, the error is one line with the name."""
    whole = torch.load(folder / LAST, weights_only=True)
    for key in whole:
        for value in (None, "x", [whole[key]]):
            torch.save({**whole, key: value}, folder / LAST)
            text = refusal(tiny(training__steps=6), folder)
            assert str(folder) in text
            assert "\n" not in text
            assert len(text) < 600


def test_two_processes_do_not_share_a_folder(tiny, folder):
    before = content_of(folder)
    config = tiny(training__steps=6)
    for options in (dict(resume=True), dict(restart=True), {}):
        with (
            locked_folder(folder),  # as another process holds it
            pytest.raises(ValueError, match="one is being written by another run"),
        ):
            train(config, folder, **options)
    assert content_of(folder) == before
    train(config, folder, resume=True)


def test_a_table_that_is_taken_away_is_missed(tiny, folder, monkeypatch):
    plain = Records._keep_best

    def takes_away(records, module):
        plain(records, module)
        (records.folder / METRICS).unlink(missing_ok=True)

    monkeypatch.setattr(Records, "_keep_best", takes_away)
    with pytest.raises(OSError, match=r"metrics\.csv is gone: it was taken away"):
        train(tiny(training__steps=6), folder, restart=True)


def test_a_restart_takes_no_inputs_away(tiny, folder):
    rng = np.random.default_rng(0)
    np.savez(folder / "test.npz", z=[1, 1], R=rng.random((60, 2, 3)), E=rng.random(60))
    config = tiny(
        data=dict(path=str(folder / "test.npz"), split=dict(train=40, validation=8)),
        objective=dict(energy={}),
    )
    before = content_of(folder)
    with pytest.raises(ValueError, match=r"test\.npz is the data itself"):
        train(config, folder, restart=True)
    assert content_of(folder) == before


def test_a_configuration_with_remarks_stays(tiny, tmp_path):
    config, folder = tiny(training__steps=3), tmp_path / "run"
    folder.mkdir()
    text = "# why\n" + config.dump()
    (folder / "config.yaml").write_text(text)
    train(config, folder, restart=True)
    assert (folder / "config.yaml").read_text() == text


def test_another_programs_files_are_no_run(tiny, tmp_path):
    (tmp_path / "config.yaml").write_text("server: 8080\n")
    (tmp_path / "test_page.png").touch()
    before = content_of(tmp_path)
    for options in (dict(restart=True), dict(resume=True), {}):
        with pytest.raises(ValueError, match="is a folder with other files"):
            train(tiny(training__steps=3), tmp_path, **options)
    assert content_of(tmp_path) == before


def test_a_restart_leaves_other_pictures(tiny, folder):
    (folder / "test_page.png").touch()
    train(tiny(training__steps=3), folder, restart=True)
    assert (folder / "test_page.png").exists()


@pytest.mark.parametrize("label", ["a/b", "../up", "a,b", 'a"b', "a$b$", "$", "µ x", "l" * 200])
def test_labels_of_any_name(tiny, tmp_path, label):
    rng = np.random.default_rng(0)
    from ase import Atoms
    from ase.io import write

    frames = [Atoms("H2", rng.random((2, 3)), info={"plain": rng.random()}) for _ in range(60)]
    write(tmp_path / "in.extxyz", frames)
    data = run.load_dataset(tmp_path / "in.extxyz", cache=tmp_path / "cache", progress=False)
    data.properties[label] = data.properties.pop("plain")
    folder = tmp_path / "run"
    config = tiny(
        data=dict(path="none", split=dict(train=40, validation=8)),
        objective={label: dict(loss="mae")},
        training__steps=3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_data", lambda config: data)
        patch.setattr(results, "load_data", lambda config: data)
        train(config, folder)
        errors = results.score(folder, progress=False, say=lambda _: None)
    assert errors[label]["mae"] > 0
    assert len(list(folder.glob("test_parity_*.png"))) == 1
    assert len(list(folder.glob("test_errors_*.png"))) == 1
    assert f"val_{label}_mae" in read_metrics(folder / METRICS)
    for end in ("csv", "npz", "extxyz"):
        assert predict(folder, tmp_path / "in.extxyz", tmp_path / f"p.{end}", progress=False) == 60
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["in.extxyz", "cache", "run", "p.csv", "p.npz", "p.extxyz"]
    )


def test_weights_that_are_no_numbers_are_no_results(folder, structures):
    model = load(folder / BEST)
    with torch.no_grad():
        model.head.layers[0].weight[0] = torch.nan
    model.save(folder / BEST)
    (folder / FACTS).unlink()
    with pytest.raises(ValueError, match=r"best\.safetensors predicts energy that is not finite"):
        results.score(folder, progress=False, say=lambda _: None)
    out = folder.parent / "p.csv"
    with pytest.raises(ValueError, match=r"frame 0: the predicted energy is not finite"):
        predict(folder, structures, out, progress=False)
    assert not out.exists()
    assert not (folder / "test.json").exists()
