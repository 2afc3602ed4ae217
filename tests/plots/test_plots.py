"""Pictures: that files are made, and that what is drawn is what was asked for."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from molkern.data import ethanol_model
from molkern.models import PhysNet, SchNet
from molkern.plots import (
    draw_basis,
    draw_filters,
    error_histogram,
    filter_profiles,
    learning_curves,
    parity,
)

TABLE = dict(
    step=[10, 20, 30],
    minutes=[0.1, 0.2, 0.3],
    passes=[1.0, 2.0, 3.0],
    learning_rate=[1e-3, 5e-4, 0.0],
    train_loss=[3.0, 2.0, 1.0],
    val_loss=[2.0, 1.0, 1.5],
    val_energy_mae=[0.5, 0.25, 0.3],
)


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


def texts(figure):
    return " ".join(
        text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))
    )


def curves(figure):
    return [
        line.get_ydata()
        for axes in figure.findobj()
        if hasattr(axes, "lines")
        for line in axes.lines
    ]


def test_profiles_are_the_models_filters(tmp_path):
    model = ethanol_model()
    distances, filters = filter_profiles(model, 50)
    double = ethanol_model().double()
    wanted = double.filter_values(torch.from_numpy(distances))
    for found, exact in zip(filters, wanted, strict=True):
        assert np.allclose(found, exact.detach())
    figure = draw_filters(model, tmp_path / "f.png", block=1, count=3)
    assert is_picture(tmp_path / "f.png")
    _, fine = filter_profiles(model)
    strongest = fine[1][:, np.argmax(fine[1].std(0))]
    assert any(len(y) == len(strongest) and np.allclose(y, strongest) for y in curves(figure))


def test_pictures_with_images_repeat(tmp_path):
    model = SchNet(8, 8, 1, num_basis=8, cutoff=3.0)
    figure = draw_filters(model, tmp_path / "f.png", count=1, periodic_cell=2.0, extent=4.5)
    alone, periodic = (axes.images[0].get_array() for axes in figure.findobj() if _pictures(axes))
    assert np.allclose(periodic[:80], periodic[80:160], atol=1e-6)  # 80 points of 4.5 / 180 Å
    assert not np.allclose(alone[:80], alone[80:160], atol=1e-3)


def _pictures(item):
    return hasattr(item, "images") and len(item.images) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(count=0), "count must be"),
        (dict(block=7), "block must be from 0 to"),
        (dict(periodic_cell=np.zeros((3, 3))), "periodic_cell must be"),
        (dict(periodic_cell=[1.0, 2.0]), "periodic_cell must be"),
        (dict(extent=-1.0), "extent must be"),
    ],
)
def test_filters_that_cannot_be_drawn(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_filters(ethanol_model(), tmp_path / "f.png", **options)
    assert not (tmp_path / "f.png").exists()


def test_bases(tmp_path):
    draw_basis(tmp_path / "all.png")
    assert is_picture(tmp_path / "all.png")
    model = PhysNet(8, num_basis=5, num_interactions=1)
    figure = draw_basis(tmp_path / "one.png", model)
    assert len([y for y in curves(figure) if len(y) == 600]) == 5
    assert "PhysNet" in texts(figure)


def test_learning_curves(tmp_path):
    figure = learning_curves(
        tmp_path / "c.png", TABLE, title="a run", units={"val_energy_mae": "eV"}
    )
    assert is_picture(tmp_path / "c.png")
    assert any(np.array_equal(y, TABLE["val_energy_mae"]) for y in curves(figure))
    assert "a run" in texts(figure)
    assert "best: 0.25 eV at step 20" in texts(figure)
    one = {name: values[:1] for name, values in TABLE.items()}
    learning_curves(tmp_path / "one.png", one)


def test_parity_and_errors_say_what_numpy_says(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(500, 3))
    predicted = true + 0.1 * rng.normal(size=true.shape)
    figure = parity(tmp_path / "p.png", predicted, true, name="forces", unit="eV/Å", split="test")
    mae = np.abs(predicted - true).mean()
    assert f"MAE {mae:.4g} eV/Å" in texts(figure)
    assert is_picture(tmp_path / "p.png")
    error_histogram(tmp_path / "h.png", predicted - true, name="forces", unit="eV/Å")
    assert is_picture(tmp_path / "h.png")


@pytest.mark.parametrize("bad", [np.empty(0), np.array([1.0, np.nan])])
def test_nothing_to_draw(bad, tmp_path):
    with pytest.raises(ValueError, match=r"is empty|not finite"):
        parity(tmp_path / "p.png", bad, bad, name="energy")
    with pytest.raises(ValueError, match=r"is empty|not finite"):
        error_histogram(tmp_path / "h.png", bad, name="energy")


def test_an_owner_who_writes_in_latex(tmp_path, monkeypatch):
    """Pictures need no LaTeX, which may not be there, and whose signs their texts do not heed."""
    from matplotlib import rcParams, texmanager

    def fails(*args, **kwargs):
        raise RuntimeError("LaTeX was asked for")

    monkeypatch.setattr(texmanager.TexManager, "_run_checked_subprocess", fails)
    monkeypatch.setitem(rcParams, "text.usetex", True)
    learning_curves(tmp_path / "curve.png", TABLE)
    parity(tmp_path / "parity.png", np.arange(9.0), np.arange(9.0) + 0.1, name="energy_eV")
    error_histogram(tmp_path / "errors.png", np.arange(9.0), name="100 % of forces")
    draw_basis(tmp_path / "basis.png")
    assert all(map(is_picture, tmp_path.iterdir()))
    assert len(list(tmp_path.iterdir())) == 4
    assert rcParams["text.usetex"]
