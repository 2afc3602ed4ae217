"""Uses of molkern, each between two snapshots of its process: ``python uses.py GROUP``.

Prints a line ``use TAB what changed`` for each use; nothing changed where the second is empty.
"""

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
from pathlib import Path

import torch
from snapshot import differences, snapshot

WATER = [8, 1, 1], [[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]


def batch(periodic=False):
    import molkern

    cell = 7.0 * torch.eye(3) if periodic else None
    return molkern.AtomicBatch(torch.tensor(WATER[0]), torch.tensor(WATER[1]), cell=cell)


def models():
    from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet

    return [
        SchNet(16, 16, 2, num_basis=8, cutoff=4.0),
        SchNet(16, 16, 2, num_basis=8, cutoff=4.0, filters="spline"),
        PhysNet(16, 8, 2, cutoff=4.0, lr_cut=5.0),
        DTNN(16, 16, 2, cutoff=4.0),
        DimeNet(16, cutoff=4.0, num_blocks=1),
        DimeNetPlusPlus(16, cutoff=4.0, num_blocks=1),
    ]


MADE = []


def made():
    """Models made before the first snapshot: their constructors draw weights, like all of torch."""
    return MADE or MADE.extend(models()) or MADE


def water():
    from ase import Atoms

    return Atoms(*WATER, cell=[7.0] * 3, pbc=True)


# Uses


def importing():
    import molkern  # noqa: F401


def forward():
    for model in made():
        model.eval()(batch(), forces=True)
        model.hessian(batch())
        model(batch(True), forces=True, stress=True)


def training_steps():
    for model in made():
        out = model.train()(batch(), forces=True)
        (out["energy"].sum() + out["forces"].square().sum()).backward()


def evaluators():
    from molkern.md import Evaluator

    for model in made():
        evaluator = Evaluator(model, batch(True), stress=True)
        for _ in range(3):
            evaluator(batch().positions)


def failures():
    import molkern
    from molkern.md import Evaluator

    model = made()[0].eval()
    evaluator = Evaluator(model, batch())
    for wrong in (
        lambda: evaluator(batch().positions * float("nan")),
        lambda: model(batch(), forces=True, stress=True),
        lambda: molkern.models.load(b"nothing"),
        lambda: molkern.neighbor_list(batch().positions, -1.0),
    ):
        with contextlib.suppress(Exception):
            wrong()
            raise SystemExit("that should have failed")


def saving_and_loading():
    import copy

    import molkern
    from molkern.data import ethanol_frames, ethanol_model

    for model in made():
        model.save("model.safetensors")
        molkern.models.load("model.safetensors")
        copy.deepcopy(model)
    ethanol_model()
    ethanol_frames()
    molkern.empty_cache()


def converting():
    from torch_geometric.nn.models import SchNet

    import molkern

    with torch.random.fork_rng(devices=[]):
        module = SchNet(16, 16, 1, 8, 4.0)
    molkern.interop.from_pyg(module)


def dynamics():
    import numpy as np

    from molkern.md import Evaluator
    from molkern.md.dynamics import Langevin, ReplicaNoise, VelocityVerlet

    start = (batch().positions.double(), torch.zeros(3, 3).double(), torch.ones(3).double(), 0.1)
    dynamics = VelocityVerlet(Evaluator(made()[0], batch()), *start)
    thermostat = Langevin(
        Evaluator(made()[1], batch()),
        *start,
        temperature=300.0,
        friction=0.1,
        noise=ReplicaNoise(0, [0], 3),
    )
    for walk in (dynamics, thermostat):
        walk.compute()
        walk.advance()
    assert np.isfinite(float(dynamics.potential))


def pictures():
    import numpy as np

    from molkern import plots

    plots.draw_basis("basis.png")
    plots.draw_filters(made()[0], "filters.png")
    table = {"step": [1.0, 2, 3], "train_loss": [3.0, 2, 1], "val_loss": [3.0, 2, 2]}
    plots.learning_curves("curve.png", table)
    plots.parity("parity.png", np.arange(9.0), np.arange(9.0) + 0.1, name="energy")
    plots.error_histogram("errors.png", np.arange(9.0), name="energy")


def with_ase():
    from molkern.md import ASECalculator

    atoms = water()
    for model in made():
        atoms.calc = ASECalculator(model)
        atoms.get_forces()
        atoms.get_stress()


def with_torchsim():
    import torch_sim as ts

    from molkern.md import TorchSimModel

    wrapped = TorchSimModel(made()[0])
    wrapped(ts.initialize_state([water()], wrapped.device, wrapped.dtype))


def with_openmm():
    import openmm

    from molkern.md import openmm_force

    system = openmm.System()
    for mass in (16.0, 1.0, 1.0):
        system.addParticle(mass)
    system.addForce(openmm_force(made()[0], WATER[0], periodic=False))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    context.setPositions(0.1 * batch().positions.double().numpy())
    context.getIntegrator().step(2)


def with_lammps():
    import molkern

    lmp = molkern.md.start_lammps()
    lmp.commands_string("""
        units metal
        region box block 0 10 0 10 0 10
        create_box 2 box
        create_atoms 1 single 5 5 5
        create_atoms 2 single 5.9 5 5
        mass 1 15.999
        mass 2 1.008
    """)
    molkern.md.LAMMPSFix(lmp, made()[0], ["O", "H"])
    lmp.command("run 2")
    lmp.close()


class Pairs:
    """What LAMMPS's ML-IAP hands over: two atoms, one pair from both ends."""

    npairs, nlistatoms, ntotal = 2, 2, 2
    pair_i, pair_j = torch.tensor([0, 1]), torch.tensor([1, 0])
    elems, rij = torch.tensor([0, 1]), torch.tensor([[0.9, 0, 0], [-0.9, 0, 0]])

    def update_pair_forces(self, forces):
        self.forces = forces


def with_mliap():
    from molkern.md import MLIAPMolkern

    for model in made():
        MLIAPMolkern(model, ["O", "H"]).compute_forces(Pairs())


def command_info():
    from typer.testing import CliRunner

    from molkern import cli
    from molkern.md import command

    list(command.description("ethanol"))
    cli.info("ethanol")
    assert CliRunner().invoke(cli.app, ["info"]).exit_code == 0


def _ethanol():
    from ase import Atoms
    from ase.io import write

    from molkern.data import ethanol_frames

    frames = ethanol_frames()["test"]
    atoms = [Atoms(frames.numbers.numpy(), p.numpy()) for p in frames.positions[:3]]
    write("ethanol.xyz", atoms)
    return Path("ethanol.xyz")


def command_md():
    from molkern.md import command

    for ensemble, threads in (("nve", 3), ("nvt", None)):
        settings = dict(ensemble=ensemble, steps=4, every=2, replicas=2)
        command.dynamics(
            _ethanol(),
            command.model_source("ethanol", "spline", None),
            Path(f"{ensemble}.xyz"),
            settings,
            energy_unit="eV",
            frame=0,
            device="cpu",
            threads=threads,
            group=1,
            resume=False,
            restart=False,
            plot=None,
            workers=0,
            ray_address=None,
            say=str,
        )


def command_md_fails():
    from molkern.md import command

    source = command.model_source("ethanol", "spline", None)
    settings = dict(steps=4, replicas=1, time_step=1e4)
    options = dict(energy_unit="eV", frame=0, device="cpu", threads=3, group=1, resume=False,
                   restart=False, plot=None, workers=0, ray_address=None, say=str)  # fmt: skip
    with contextlib.suppress(ValueError, RuntimeError):
        command.dynamics(_ethanol(), source, Path("wild.xyz"), settings, **options)
        raise SystemExit("that should have failed")


def _evaluate(out, threads, workers):
    from molkern.md import command

    command.energies(
        _ethanol(),
        command.model_source("ethanol", "spline", None),
        Path(out),
        energy_unit="eV",
        stress=False,
        batch_size=16,
        max_edges=1000,
        device="cpu",
        threads=threads,
        workers=workers,
        ray_address=None,
        say=str,
    )


def command_evaluate():
    _evaluate("results.extxyz", threads=3, workers=0)


def command_evaluate_by_ray():
    _evaluate("shared.extxyz", threads=1, workers=1)


def demonstration():
    from molkern import demo

    torch.set_num_threads(3)
    try:
        demo.run(100, Path("demo.png"), str)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


TINY = """
model: {name: SchNet, hidden_channels: 8, num_filters: 8, num_interactions: 1, num_basis: 8,
        cutoff: 4.0, num_elements: 10}
data: {format: ethanol, split: {train: 40, validation: 16, test: 8}}
objective: {energy: {weight: 0.01}, forces: {weight: 1.0}}
optimizer: {learning_rate: 5e-3}
schedule: {name: cosine}
training: {steps: 4, batch_size: 8, validate_every: 2, ema: 0.9, precision: "%s"}
"""


def command_train():
    from molkern.training import command

    # Owners that compute without gradients, count on their random numbers, and have a cluster
    os.environ["WORLD_SIZE"] = "1"
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = snapshot()
    try:
        for precision in ("32", "64"):
            Path("tiny.yaml").write_text(TINY % precision)
            command.train("tiny.yaml", Path(f"run{precision}"), [], resume=False, restart=False,
                          device="cpu", devices=1, nodes=1, threads=3, say=str)  # fmt: skip
        assert not (changed := differences(before, snapshot())), changed
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_grad_enabled(True)
        del os.environ["WORLD_SIZE"]


def command_train_interrupted():
    from molkern.training import command, records

    original = records.Records.on_train_epoch_end

    def interrupted(self, trainer, module):
        raise KeyboardInterrupt

    records.Records.on_train_epoch_end = interrupted
    try:
        command.train("tiny.yaml", Path("stopped"), [], resume=False, restart=False,
                      device="cpu", devices=1, nodes=1, threads=3, say=str)  # fmt: skip
        raise AssertionError("that should have been interrupted")
    except SystemExit:
        pass
    finally:
        records.Records.on_train_epoch_end = original


def command_score_and_predict():
    from molkern.training import command

    command.score(Path("run32"), "validation", "cpu", str)
    command.predict(Path("run32"), _ethanol(), Path("predictions.csv"), "cpu", 2, str)
    command.draw_filters("run32", Path("filters.png"), None, None, None, str)
    command.configs(None, str)


def training_of_the_shipped_model():
    from molkern.training import ethanol

    ethanol.CHECKS = 1
    ethanol.train(steps=1)


#: Commands that need one of these import it, and are to leave no trace of that either.
TRAINING = ["+pytorch_lightning", "+pydantic", "+yaml", "+matplotlib", "+tqdm", "+ase"]
#: By group, a process each: uses and the packages that they need.
GROUPS = {
    "import": [(importing, [])],
    "models": [
        (forward, []),
        (training_steps, []),
        (evaluators, []),
        (failures, []),
        (saving_and_loading, []),
        (converting, ["torch_geometric"]),
        (dynamics, []),
        (pictures, ["matplotlib"]),
    ],
    "adapters": [
        (with_ase, ["ase"]),
        (with_mliap, []),
        (with_torchsim, ["ase", "torch_sim"]),
        (with_openmm, ["openmm"]),
        (with_lammps, ["lammps"]),
    ],
    "commands": [
        (command_info, ["ase"]),
        (command_md, ["ase", "tqdm", "matplotlib"]),
        (command_md_fails, ["ase", "tqdm", "matplotlib"]),
        (command_evaluate, ["ase", "tqdm"]),
        (demonstration, ["ase", "tqdm", "matplotlib"]),
    ],
    "ray": [(command_evaluate_by_ray, ["ase", "tqdm", "ray"])],
    "training": [
        (command_train, ["ase", "scipy.special", *TRAINING]),
        (command_train_interrupted, TRAINING),
        (command_score_and_predict, TRAINING),
        (training_of_the_shipped_model, ["tqdm"]),
    ],
}


def present(package):
    """Whether it is there; it is imported before the first snapshot, but for a plus."""
    if importlib.util.find_spec(package.removeprefix("+")) is None:
        return False
    if not package.startswith("+"):
        importlib.import_module(package)
    return True


def main(group):
    os.chdir(tempfile.mkdtemp())
    if group != "import":
        made()
    if group == "training":
        torch.use_deterministic_algorithms(False)  # loads torch.compile, which sets a variable
    for use, packages in GROUPS[group]:
        missing = [package for package in packages if not present(package)]
        if missing:
            print(f"{use.__name__}\tskipped: no {', '.join(missing)}", flush=True)
            continue
        before = snapshot()
        with contextlib.redirect_stdout(io.StringIO()):
            use()
        changed = differences(before, snapshot())
        print(f"{use.__name__}\t{'; '.join(changed)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
