"""One model in several threads: what is made once is made whole, and every call is consistent."""

import copy
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import molkern
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


THREADS = 8
COMMON = {"cutoff": 3.0, "num_elements": 9, "filters": "spline", "spline_tolerance": 1e-3}
DIRECTIONAL = {"num_blocks": 1, "num_spherical": 2, "num_radial": 2, "num_output_layers": 1}
MODELS = {
    "SchNet": lambda: SchNet(8, 8, 1, 6, **COMMON),
    "SchNet, mean": lambda: SchNet(8, 8, 1, 6, aggregation="mean", **COMMON),
    "PhysNet": lambda: PhysNet(8, 6, 1, lr_cut=3.0, **COMMON),
    "DTNN": lambda: DTNN(8, 8, 1, 8, width=0.5, zero_start=False, **COMMON),
    "DimeNet": lambda: DimeNet(8, output_init="glorot_orthogonal", **DIRECTIONAL, **COMMON),
    "DimeNetPlusPlus": lambda: DimeNetPlusPlus(
        8, output_init="glorot_orthogonal", **DIRECTIONAL, **COMMON
    ),
}


@pytest.fixture
def switches():
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def made(name):
    torch.manual_seed(1)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model


def batch():
    positions = torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [0.3, 1.1, 0.2]], dtype=torch.float64)
    return molkern.AtomicBatch(torch.tensor([8, 1, 6]), positions)


def together(*functions):
    """Runs functions in threads of their own that start at once; what they give, or raise."""
    start = threading.Barrier(len(functions))

    def run(function):
        start.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(run, f) for f in functions]]


def answers(model, system):
    """What the model may answer, with either kind of filters."""
    found = []
    for filters in ("exact", "spline"):
        model.filters = filters
        out = model(system, forces=True)
        found.append((out["energy"], out["forces"]))
    return found


def is_one_of(out, allowed):
    """Energy and forces of the same kind of filters, not one of each."""
    return any(
        torch.allclose(out["energy"], energy, rtol=1e-12, atol=1e-13)
        and torch.allclose(out["forces"], forces, rtol=1e-9, atol=1e-11)
        for energy, forces in allowed
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_first_call(name, switches):
    system = batch()
    expected = answers(made(name), system)[1]
    for _ in range(40 if name == "SchNet" else 2):
        model = made(name)
        outs = together(*[lambda m=model: m(system, forces=True)] * THREADS)
        for out in outs:
            assert is_one_of(out, [expected])


@pytest.mark.parametrize("name", MODELS)
def test_filters_toggled_and_forgotten_meanwhile(name, switches):
    model, system = made(name), batch()
    allowed = answers(model, system)
    done = threading.Event()

    def evaluate():
        try:
            return [model(system, forces=True) for _ in range(4)]
        finally:
            done.set()

    def toggle():
        while not done.is_set():
            for filters in ("exact", "spline"):
                model.filters = filters
        return []

    def forget():
        while not done.is_set():
            model.forget_splines()
        return []

    for outs in together(*[evaluate] * (THREADS - 2), toggle, forget):
        assert all(is_one_of(out, allowed) for out in outs)


@pytest.mark.parametrize("name", MODELS)
def test_weights_changed_meanwhile(name, switches):
    """Calls during a change may see either weights; those after it see the new ones."""
    model, system = made(name), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    done = threading.Event()

    def attempt():
        try:
            return [model(system, forces=True)]
        except RuntimeError as error:  # torch's, of weights that its tape still needs
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
            return []

    def evaluate():
        try:
            return [out for _ in range(3) for out in attempt()]
        finally:
            done.set()

    def train():
        while not done.is_set():
            for parameter in model.parameters():
                parameter.grad = 0.1 * torch.ones_like(parameter)
            optimizer.step()
        return []

    for outs in together(*[evaluate] * (THREADS - 1), train):
        assert all(torch.isfinite(out["forces"]).all() for out in outs)
    other = copy.deepcopy(model)
    other.filters = "spline"
    assert is_one_of(model(system, forces=True), answers(other, system)[1:])


def test_hooks_added_and_removed_meanwhile(switches):
    model, system = made("SchNet"), batch()
    plain = answers(model, system)[1]
    layer = model.interactions[0].lin
    handle = layer.register_forward_hook(lambda _m, _i, output: 1.1 * output)
    hooked = model(system, forces=True)
    handle.remove()
    done = threading.Event()

    def evaluate():
        try:
            return [model(system, forces=True) for _ in range(4)]
        finally:
            done.set()

    def hook():
        while not done.is_set():
            handle = layer.register_forward_hook(lambda _m, _i, output: 1.1 * output)
            done.wait(1e-3)
            handle.remove()
        return []

    allowed = [plain, (hooked["energy"], hooked["forces"])]
    for outs in together(*[evaluate] * (THREADS - 1), hook):
        assert all(is_one_of(out, allowed) for out in outs)


@pytest.mark.parametrize("name", MODELS)
def test_training_in_threads(name, switches):
    """Tables with gradients, on a grid that is measured once."""
    model, system = made(name).train(), batch()

    def gradients():
        out = model(system, forces=True)
        loss = out["forces"].square().sum() + out["energy"].square().sum()
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    first, *others = together(*[gradients] * THREADS)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_forgotten_while_they_are_made(name):
    """As by another thread at the worst moment: from what makes the filters."""
    model, system = made(name), batch()
    expected = answers(made(name), system)[1]
    model.basis.register_forward_hook(lambda *_: model.forget_splines())
    for _ in range(2):
        assert is_one_of(model(system, forces=True), [expected])
    model.spline_report()


@pytest.mark.parametrize("name", MODELS)
def test_weights_changed_while_tables_are_made(name):
    """Tables of the weights before must not pass for those of the weights after."""
    model, system = made(name), batch()

    class ChangesWhenCopied:
        """As an optimizer in another thread, just after the weights were copied."""

        done = False

        def __deepcopy__(self, memo):
            with torch.no_grad():
                for weight in [] if self.done else model.parameters():
                    weight.mul_(1.1)
            self.done = True
            return self

    model.other = ChangesWhenCopied()
    model.spline_report()
    assert model.other.done
    assert is_one_of(model(system, forces=True), answers(copy.deepcopy(model), system)[1:])


def test_one_thread_makes_the_tables(switches, monkeypatch):
    made_by, model, system = [], made("SchNet"), batch()
    renew = type(model._splines)._renew
    monkeypatch.setattr(
        type(model._splines),
        "_renew",
        lambda *a, **k: made_by.append(threading.get_ident()) or renew(*a, **k),
    )
    together(*[lambda: model(system, forces=True)] * THREADS)
    assert len(made_by) == 1


def test_copies_and_pickles_of_shared_models():
    model, system = made("SchNet"), batch()
    expected = model(system, forces=True)["forces"]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(system, forces=True)["forces"], expected)


def test_a_model_ends_with_its_last_reference():
    """Its tables hold no reference back, for which it would have to wait for the collector."""
    import gc
    import weakref

    model, system = made("SchNet"), batch()
    model(system, forces=True)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_lists_of_the_user_in_threads(switches):
    """What a list finds out about itself is found by several at once."""
    system = batch()
    pairs = system.neighbors(3.0).edge_index[:, :-1]
    for _ in range(20):
        graph = molkern.NeighborList.from_edge_index(pairs, 3)
        found = together(*[graph.reverse_edges] * THREADS)
        assert all(torch.equal(found[0], other) for other in found)
