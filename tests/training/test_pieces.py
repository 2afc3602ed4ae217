"""Splits, batches, standards, schedules and losses, each against plain numbers."""

import numpy as np
import pytest
import torch

from molkern.data import load_dataset
from molkern.training.config import Schedule, Split
from molkern.training.objective import Objective, check_labels, match_labels
from molkern.training.schedules import make_schedule, rate_at
from molkern.training.split import BatchStream, Portions, load_split, make_split, save_split, usable
from molkern.training.standardize import build_model, composition, standards


def test_splits_are_disjoint_and_a_function_of_the_seed():
    keep = np.arange(100) * 3
    split = make_split(Split(train=60, validation=0.1, seed=5), keep, "d")
    assert [len(part) for part in split.values()] == [60, 10, 30]
    assert np.array_equal(np.sort(np.concatenate([*split.values()])), keep)
    again = make_split(Split(train=60, validation=10, test=5, seed=5), keep, "d")
    assert np.array_equal(again["train"], split["train"])
    assert len(again["test"]) == 5
    other = make_split(Split(train=60, validation=10, seed=6), keep, "d")
    assert not np.array_equal(other["train"], split["train"])


@pytest.mark.parametrize("sizes", [(100, 1, None), (50, 40, 20), (99, 1, 1)])
def test_splits_of_more_than_there_is(sizes):
    train, validation, test = sizes
    with pytest.raises(ValueError, match="more than the 99 systems"):
        make_split(Split(train=train, validation=validation, test=test), np.arange(99), "d")


def test_a_split_is_of_its_data(tmp_path):
    split = make_split(Split(train=5, validation=2), np.arange(9), "one")
    save_split(tmp_path / "s.npz", split, "one")
    assert np.array_equal(load_split(tmp_path / "s.npz", "one")["test"], split["test"])
    options = Split(train=1, validation=1, file=str(tmp_path / "s.npz"))
    without = make_split(options, np.setdiff1d(np.arange(9), split["train"][:2]), "one")
    assert np.array_equal(without["train"], split["train"][2:])
    assert np.array_equal(without["test"], split["test"])
    with pytest.raises(ValueError, match="made for other data"):
        load_split(tmp_path / "s.npz", "two")
    with pytest.raises(ValueError, match="is not a split"):
        load_split(tmp_path / "none.npz", "one")


def test_batches_go_through_all_systems_again_and_again():
    members, sizes = np.arange(10, 20), np.full(20, 2)
    stream = BatchStream(members, sizes, batch_size=4, steps=5, seed=1)
    seen = []
    for interval in range(2):
        stream.set_epoch(interval)
        for share in stream:
            assert (len(share.indices), share.systems, share.atoms) == (4, 4, 8)
            seen += share.indices.tolist()
    for turn in range(4):
        assert sorted(seen[10 * turn : 10 * turn + 10]) == members.tolist()
    assert seen[:10] != seen[10:20]
    # A batch is a function of its number alone
    assert stream.share(3).indices.tolist() == seen[12:16]
    longer = BatchStream(members, sizes, batch_size=4, steps=10, seed=1)
    assert [k for share in longer for k in share.indices] == seen


def test_processes_share_a_batch():
    members, sizes = np.arange(11), np.arange(11) + 1
    whole = BatchStream(members, sizes, 6, 4, 0)
    parts = [BatchStream(members, sizes, 6, 4, 0, rank, 2) for rank in range(2)]
    for share, *shares in zip(whole, *parts, strict=True):
        together = np.sort(np.concatenate([part.indices for part in shares]))
        assert np.array_equal(together, np.sort(share.indices))
        assert all(part.atoms == share.atoms for part in shares)
    portions = [s.indices for r in range(2) for s in Portions(members, sizes, 4, r, 2)]
    assert sorted(np.concatenate(portions)) == members.tolist()


def test_systems_with_labels_that_are_nan_are_named():
    data = load_dataset(format="ethanol").subset(range(20))
    data.properties["energy"][[3, 7]] = np.nan
    keep, notes = usable(data, ["energy", "forces"])
    assert set(range(20)) - set(keep) == {3, 7}
    assert len(notes) == 1
    assert "2 of 20 systems have a energy" in notes[0]
    assert "(3, 7)" in notes[0]


def test_schedules():
    steps = np.arange(200)
    staircase = Schedule(name="exponential", rate=0.5, decay_steps=50, staircase=True)
    assert np.allclose([rate_at(staircase, 0)(k) for k in steps], 0.5 ** (steps // 50))
    smooth = Schedule(name="exponential", rate=0.01, decay_steps=100, warmup=9)
    found = np.array([rate_at(smooth, 0)(k) for k in steps])
    assert np.allclose(found, np.minimum(1, (steps + 1) / 10) * 0.01 ** (steps / 100))
    cosine = [rate_at(Schedule(name="cosine"), 200)(k) for k in (0, 100, 200)]
    assert np.allclose(cosine, [1, 0.5, 0])
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = make_schedule(Schedule(name="plateau", rate=0.1, patience=1), optimizer, 9)
    for loss in (1.0, 1.0, 1.0, 1.0):
        plateau.step(loss)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


QM9 = dict(data__format="qm9", data__split=dict(train=50, validation=5))


def starts(tiny, molecules, **changes):
    """Standards of a configuration of made-up molecules, its model, and its training part."""
    config = tiny(**{**QM9, "data__path": str(molecules), **changes})
    data, labels = load_dataset(molecules, format="qm9"), match_labels(config)
    check_labels(config, labels, data)
    train = np.arange(50)
    found = standards(config, labels, data, train)
    return config, data, labels, found, build_model(config, labels, found)


def test_energies_per_atom(tiny, molecules):
    _, data, _, (item,), model = starts(tiny, molecules, objective=dict(U0={}))
    parts = (data.properties["U0"] / data.sizes)[:50]
    assert item.mean == pytest.approx(parts.mean())
    assert item.scale == pytest.approx(parts.std())
    assert float(model.reference.mean) == pytest.approx(parts.mean())


def test_references_by_least_squares(tiny, molecules):
    _, data, _, (item,), model = starts(
        tiny, molecules, objective=dict(U0={}), references="fit", standardize="none"
    )
    assert np.allclose(item.reference[[1, 6, 8]], [-1, -5, -7], atol=0.02)
    counts = composition(data)
    assert np.abs(counts @ item.reference - data.properties["U0"]).max() < 0.06
    batch = data.collate(range(len(data))).batch
    # With a head of zeros the model is the fit
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    assert np.allclose(model(batch)["energy"].detach(), counts @ item.reference)


def test_means_over_atoms(tiny, molecules):
    _config, data, _, (item,), _ = starts(
        tiny, molecules, objective=dict(homo={}), model__readout="mean"
    )
    values = data.properties["homo"][:50]
    assert (item.mean, item.scale) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    with pytest.raises(ValueError, match=r"per_molecule needs model\.readout: mean"):
        starts(tiny, molecules, objective=dict(homo={}), standardize="per_molecule")


def test_several_targets(tiny, molecules):
    model = dict(
        name="DimeNetPlusPlus",
        hidden_channels=8,
        num_blocks=1,
        int_emb_size=4,
        out_emb_size=8,
        num_elements=10,
        readout=["sum", "mean"],
    )
    _, data, labels, found, built = starts(
        tiny, molecules, model=model, objective=dict(U0={}, homo={}), references="fit"
    )
    assert built.num_targets == 2
    out = built(data.collate(range(50)).batch)  # its last layers start at zero
    for k, (name, item) in enumerate(zip(("U0", "homo"), found, strict=True)):
        counts = composition(data)[:50]
        parts = counts if k == 0 else counts / data.sizes[:50, None]
        atoms = data.sizes[:50] if k == 0 else 1
        wanted = parts @ item.reference + item.mean * atoms
        assert np.allclose(labels.predicted(out, name).detach(), wanted)


def test_elements_beyond_the_table(tiny, molecules):
    with pytest.raises(ValueError, match=r"model\.num_elements is 8, but the data have element 8"):
        starts(tiny, molecules, objective=dict(U0={}), references="fit", model__num_elements=8)


def test_references_by_symbol(tiny, molecules):
    given = {"H": -1.5, "C": -4.5, "O": -7.5, "N": 3.0}
    _, data, _, (item,), _ = starts(tiny, molecules, objective=dict(U0={}), references=given)
    assert item.reference[[1, 6, 8]].tolist() == [-1.5, -4.5, -7.5]
    left = data.properties["U0"] - composition(data) @ item.reference
    assert item.mean == pytest.approx((left / data.sizes)[:50].mean())
    with pytest.raises(ValueError, match="needs the energy of a free O too"):
        starts(tiny, molecules, objective=dict(U0={}), references={"H": -1.0, "C": -4.0})
    with pytest.raises(ValueError, match="'Q' is no element"):
        tiny(references={"Q": 1.0})


def test_dipoles_need_charges_to_begin_with(tiny, molecules):
    model = dict(name="DTNN", num_elements=10, prediction="dipole_moment")
    with pytest.raises(ValueError, match=r"model\.zero_start"):
        starts(tiny, molecules, model=model, objective=dict(mu={}))
    physnet = dict(name="PhysNet", num_elements=10, hidden_channels=8, num_basis=4)
    *_, built = starts(tiny, molecules, model=physnet, objective=dict(U0={}, mu={}))
    assert built.config["charge_shift"][8] != 0


def test_losses_are_what_their_names_say(tiny):
    config = tiny(objective=dict(energy=dict(weight=0.5, loss="mae"), forces=dict(weight=2.0)))
    data = load_dataset(format="ethanol")
    objective = Objective(config, match_labels(config), data, np.arange(40))
    sample = data.collate([0, 5, 9])
    out = {"energy": torch.randn(3), "forces": torch.randn(27, 3)}
    energy = (out["energy"].double() - sample.targets["energy"]).abs().mean()
    forces = (out["forces"].double() - sample.targets["forces"]).square().sum(1).mean()
    assert float(objective.loss(out, sample, 3, 27)) == pytest.approx(
        float(0.5 * energy + 2 * forces), rel=1e-12
    )
    found = objective.report(objective.errors(out, sample))
    errors = (out["forces"].double() - sample.targets["forces"]).numpy()
    assert found["forces_mae"] == pytest.approx(np.abs(errors).mean())
    assert found["forces_rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()))


def test_weights_by_deviation(tiny):
    config = tiny(objective=dict(energy=dict(weight="1/std")))
    data = load_dataset(format="ethanol")
    objective = Objective(config, match_labels(config), data, np.arange(40))
    variance = data.properties["energy"][:40].var()
    assert objective.parts[0].weight == pytest.approx(1 / variance)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (dict(gap={}), "has no such label, it has energy, forces"),
        (dict(forces={}, energy={}), None),
    ],
)
def test_labels_that_data_lack(tiny, objective, message):
    config = tiny(objective=objective)
    data = load_dataset(format="ethanol")
    if message is None:
        check_labels(config, match_labels(config), data)
        return
    with pytest.raises(ValueError, match=message):
        check_labels(config, match_labels(config), data)
