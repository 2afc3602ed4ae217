"""Configurations: what is wrong is said with its key, before anything else happens."""

import pytest

from molkern.training.config import check_config, read_config, shipped_configs
from molkern.training.objective import match_labels

SMALL = "schnet-ethanol-small"


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configurations_are_right(name):
    config = read_config(name)
    match_labels(config)
    assert check_config(config.model_dump(mode="json")) == config


def test_every_model_has_its_papers_and_a_small_variant():
    names = set(shipped_configs())
    for model in ("schnet", "physnet", "dtnn", "dimenet", "dimenetpp"):
        for kind in ("qm9", "md", "qm9-small", "ethanol-small"):
            assert f"{model}-{kind}" in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.batch_size=-1", r"training\.batch_size: .*greater than 0, got -1"),
        ("training.stepz=3", r"training\.stepz: unknown key: did you mean 'steps'"),
        ("objective.forces.wieght=3", r"objective\.forces\.wieght: unknown key: .*'weight'"),
        ("model.hidden_chanels=3", r"SchNet has no argument 'hidden_chanels': .*channels"),
        ("data.split.trian=3", r"data\.split\.trian: unknown key: did you mean 'train'"),
        ("optimizer.name=sgd", r"optimizer\.name: .*'adam'.*got 'sgd'"),
        ("nothing=1", r"nothing: unknown key \(it has model, data"),
        ("training.steps=501", r"steps \(501\) must be a multiple of validate_every"),
        ("objective={}", r"objective: "),
        ("model.name=Foo", r"name must be one of DTNN.*got 'Foo'"),
        ("model.scale=2", r"scale is set from the data"),
        ("objective.energy.weight=-1", r"objective\.energy\.weight: must be positive"),
        ("training.precision=bf16-mixed", r"precision: bf16-mixed would spoil forces"),
        ("nonhierarchicality=0.1", r"nonhierarchicality is PhysNet's"),
        ("training=null", r"training: "),
        ("data.split=null", r"data\.split: "),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message) as error:
        read_config(SMALL, [change])
    assert "\n" not in str(error.value)
    assert SMALL in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("objective={forces: {}}", "need a label of the model's own"),
        ("objective={energy: {}, homo: {}}", "SchNet predicts one property"),
        ("objective={energy: {}, dipole: {}}", "PhysNet does"),
    ],
)
def test_labels_that_a_model_has_not(change, message):
    with pytest.raises(ValueError, match=message):
        match_labels(read_config(SMALL, [change]))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "cannot be read"), ("just words", "must hold keys"), ("training: {}", "missing")],
)
def test_files_that_are_no_configuration(text, message, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="neither a file nor one of the shipped"):
        read_config(tmp_path / "d.yaml")


def test_changes_on_the_command_line():
    config = read_config(SMALL, ["training.ema=0.5", "model.spline_tolerance=1e-6"])
    assert config.training.ema == 0.5
    assert config.model["spline_tolerance"] == 1e-6
    for change in ("training.ema", "=3", "training.ema.x=1"):
        with pytest.raises(ValueError, match="--set"):
            read_config(SMALL, [change])
