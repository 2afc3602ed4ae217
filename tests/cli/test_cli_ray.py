"""Work shared among two of Ray's workers, one of which is killed."""

import functools
import os
import signal

import numpy as np
import pytest

pytest.importorskip("ase")
ray = pytest.importorskip("ray")
import ase.build
import ase.io
from conftest import arrays

from molkern.md.evaluate import EvaluateWorker, chunks
from molkern.md.group import DynamicsWorker
from molkern.md.parallel import RayPool, run_here, run_pieces
from molkern.md.plan import Plan, Settings
from molkern.md.run import prepare_files
from molkern.md.source import ModelSource


@pytest.fixture(scope="module")
def cluster():
    """Ray, started once for all tests; pools use what runs in their process."""
    options = {"num_cpus": 4, "object_store_memory": 100 << 20, "log_to_driver": False}
    ray.init(include_dashboard=False, **options)
    yield
    ray.shutdown()


class Killer:
    """Kills one of a pool's workers when the first answer comes."""

    def __init__(self, pool):
        self.pids, self.answers = pool.pids(), 0

    def __call__(self, piece, answer):
        self.answers += 1
        if self.answers == 1:
            os.kill(self.pids[0], signal.SIGKILL)


def test_structures(cluster):
    """In order, with the bits of one process."""
    frames = [ase.build.molecule("CH3CH2OH") for _ in range(120)]
    for k, frame in enumerate(frames):
        frame.rattle(0.05, seed=k)
    pieces = list(chunks(frames, 20))
    factory = functools.partial(EvaluateWorker, ModelSource.open("ethanol"))
    expected = list(run_here(factory, pieces, lambda piece, answer: None, lambda: False))
    with RayPool(factory, 2) as pool:
        killer = Killer(pool)
        found = list(pool.run(pieces, killer))
        assert len(set(pool.pids()) - set(killer.pids)) == 1
    assert len(found) == len(expected) == killer.answers == 60
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.energies, b.energies)
        assert np.array_equal(a.forces, b.forces)
    wrong = chunks([ase.build.molecule("CH3CH2OH"), ase.Atoms("U")], 1)
    with pytest.raises(ValueError, match="frame 1: atom 0 has number 92"):
        list(run_pieces(factory, wrong, lambda piece, answer: None, workers=2))


def test_replicas(cluster, tmp_path):
    """The group of the dead worker goes on from its checkpoint; files as of one process."""

    def plan(name):
        settings = Settings("nvt", 400, 5, friction=5.0, every=20, checkpoint_every=60)
        source, atoms = ModelSource.open("ethanol"), ase.build.molecule("CH3CH2OH")
        (tmp_path / name).mkdir()
        return Plan(source, atoms, settings, tmp_path / name / "t.xyz", 2, "cpu", 1)

    one, two = plan("one"), plan("two")
    prepare_files(one, False, False)
    list(run_pieces(functools.partial(DynamicsWorker, one), range(3), lambda piece, answer: None))
    with RayPool(functools.partial(DynamicsWorker, two, 0.05), 2) as pool:
        killer = Killer(pool)
        reports = list(pool.run(range(3), killer))
        assert len(set(pool.pids()) - set(killer.pids)) == 1
    assert [report.group for report in reports] == [0, 1, 2]
    assert all(report.step == 400 for report in reports)
    for path in (*map(one.trajectory, range(5)), *map(one.energies, range(3))):
        assert (two.out.parent / path.name).read_bytes() == path.read_bytes()
    for group in range(3):
        assert arrays(one.checkpoint(group)) == arrays(two.checkpoint(group))


def test_command(cluster, molkern, ethanol):
    molkern(f"evaluate {ethanol} --workers 2 --batch-size 9 --out two.csv")
    molkern(f"evaluate {ethanol} --batch-size 9 --out one.csv")
    with open("one.csv") as one, open("two.csv") as two:
        assert one.read() == two.read()
    assert ray.is_initialized()
