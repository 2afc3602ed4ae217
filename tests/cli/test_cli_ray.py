"""Work shared among two of Ray's workers, one of which is killed."""

import functools
import os
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("ase")
pytest.importorskip("ray")
import ase.build
import ray
from cli_files import arrays

from molkern.md.evaluate import EvaluateWorker, chunks
from molkern.md.group import DynamicsWorker
from molkern.md.parallel import RayPool, check_shared_memory, run_here
from molkern.md.source import ModelSource


@pytest.fixture(scope="module")
def cluster():
    """Ray, started once for all tests; pools use what runs in their process."""
    try:
        check_shared_memory()
    except OSError as error:
        pytest.skip(str(error))
    options = {"num_cpus": 2, "object_store_memory": 100 << 20, "log_to_driver": False}
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
    """In order, with the bits of one process; what a worker refuses is raised here."""
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
        wrong = chunks([ase.build.molecule("CH3CH2OH"), ase.Atoms("U")], 1)
        with pytest.raises(ValueError, match="frame 1: atom 0 has number 92"):
            list(pool.run(wrong))
    assert len(found) == len(expected) == killer.answers == 60
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a.energies, b.energies)
        assert np.array_equal(a.forces, b.forces)
    assert ray.is_initialized()


def squares():
    """A class of workers, which travels with them as it is no module's."""

    class Squares:
        def work(self, piece):
            return True, piece**2

        def pause(self):
            pass

    return Squares


class Losing:
    """Ray, but for the first answer, which is lost."""

    def __init__(self, error):
        self.errors = [error]

    def __getattr__(self, name):
        return getattr(ray, name)

    def get(self, reference):
        if self.errors:
            raise self.errors.pop()
        return ray.get(reference)


def test_workers_out_of_memory(cluster, monkeypatch):
    """Ray ends one when a machine is short of memory, with an error of another kind."""
    with RayPool(squares(), 2) as pool:
        monkeypatch.setattr(pool, "_ray", Losing(ray.exceptions.OutOfMemoryError("none is left")))
        assert list(pool.run(range(4))) == [0, 1, 4, 9]


def test_more_workers_than_the_cluster_has_room_for(cluster):
    with pytest.raises(ValueError, match=r"3 workers need 3 cores, but Ray has 2: use fewer"):
        RayPool(squares(), 3)
    with pytest.raises(ValueError, match=r"2 workers need 2 GPUs, but Ray has 0: use fewer"):
        RayPool(squares(), 2, gpus=1)


def test_workers_that_cannot_be_made(cluster):
    """Their error is told, and not tried again."""

    def factory():
        raise ValueError("there is no such model")

    refused = pytest.raises(RuntimeError, match="could not be made: ValueError: there is no such")
    with RayPool(factory, 2) as pool, refused:
        list(pool.run(range(4)))


def test_replicas(cluster, molkern, ethanol, tmp_path, monkeypatch):
    """The group of the dead worker goes on from its checkpoint; files as of one process."""
    command = f"md {ethanol} --ensemble nvt --steps 200 --replicas 5 --group 2 --every 20"
    molkern(f"{command} --checkpoint-every 60 --out one")
    plain, seen = RayPool.run, []

    def run(pool, pieces, progress, stopped):
        killer = Killer(pool)

        def both(piece, answer):
            killer(piece, answer)
            progress(piece, answer)

        yield from plain(pool, pieces, both, stopped)
        seen.append(set(pool.pids()) - set(killer.pids))

    monkeypatch.setattr(RayPool, "run", run)
    monkeypatch.setattr(DynamicsWorker.__init__, "__defaults__", (0.02,))
    molkern(f"{command} --checkpoint-every 60 --out two --workers 2")
    assert len(seen[0]) == 1  # a new worker
    names = [*(f"_{k}.xyz" for k in range(5)), *(f".group{k}.csv" for k in range(3))]
    for name in names:
        assert (tmp_path / f"one{name}").read_bytes() == (tmp_path / f"two{name}").read_bytes()
    for k in range(3):
        one, two = (arrays(tmp_path / f"{n}.group{k}.checkpoint") for n in ("one", "two"))
        assert one == two


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory of Linux")
def test_no_shared_memory(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/shm")
    with pytest.raises(OSError, match=r"/dev/shm, which is missing or read-only here: mount it"):
        check_shared_memory()
