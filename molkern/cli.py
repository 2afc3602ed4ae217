"""The command ``molkern``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


class Ensemble(str, Enum):
    nve = "nve"
    nvt = "nvt"


class Filters(str, Enum):
    exact = "exact"
    spline = "spline"


Model = Annotated[
    str, typer.Option(help="a file written by model.save(), or 'ethanol': the shipped model")
]
FilterKind = Annotated[Filters, typer.Option(help="networks on edges, or splines through them")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto: a GPU where there is one")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="threads of a process; by default its share of the cores")
]
EnergyUnit = Annotated[
    str, typer.Option(help="the model's unit of energy: eV, kcal/mol, kJ/mol or Hartree")
]
Charge = Annotated[
    float | None,
    typer.Option(
        help="total charge, for models that take one; by default what a frame states, or 0"
    ),
]
UnknownElements = Annotated[
    bool,
    typer.Option(
        "--allow-unknown-elements", help="compute elements that the model was not trained on too"
    ),
]
Workers = Annotated[
    int, typer.Option(min=0, help="workers of Ray that share the work; 0: this process does all")
]
Restart = Annotated[bool, typer.Option("--restart", help="write an output anew that exists")]
RayAddress = Annotated[
    str | None, typer.Option(help="of a Ray cluster ('auto': this machine's); else Ray starts here")
]


#: Errors whose text says what is wrong.
_FORESEEN = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What is wrong, on stderr, with exit code 1; MOLKERN_TRACEBACK=1 tells where."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if os.environ.get("MOLKERN_TRACEBACK") == "1":
            raise
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        if not text or not isinstance(error, _FORESEEN):
            text = f"{type(error).__name__}: {text} (MOLKERN_TRACEBACK=1 tells where)"
        typer.echo(f"molkern: {text}", err=True)
        raise typer.Exit(1) from error


@app.callback()
def main() -> None:
    """Fast message passing on molecules."""


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=100, help="steps of molecular dynamics")] = 5000,
    out: Annotated[Path, typer.Option(help="where the plot goes")] = Path("molkern_demo.png"),
) -> None:
    """Molecular dynamics of ethanol with a trained SchNet."""
    with _errors_in_one_line():
        from . import demo as demonstration
        from .plots.figures import picture_path

        demonstration.run(steps, picture_path(out), typer.echo)


@app.command()
def md(
    structure: Annotated[Path, typer.Argument(help="any file that ASE reads")],
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            help="trajectory, .xyz, .extxyz or .traj; of several replicas one file each: "
            "traj_0.xyz, traj_1.xyz, …"
        ),
    ] = Path("traj.xyz"),
    ensemble: Annotated[Ensemble, typer.Option(help="velocity Verlet, or BAOAB")] = Ensemble.nve,
    steps: Annotated[int, typer.Option(min=0, help="to be done in all")] = 1000,
    replicas: Annotated[int, typer.Option(min=1, help="of the structure")] = 1,
    frame: Annotated[int, typer.Option(help="which of the file's; -1: the last")] = -1,
    temperature: Annotated[
        float, typer.Option(help="of the first velocities and of the thermostat, K")
    ] = 300.0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="start with those in the file")
    ] = False,
    time_step: Annotated[float, typer.Option(help="fs")] = 0.5,
    friction: Annotated[float, typer.Option(help="of the thermostat, 1/ps")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="of velocities and thermostat")] = 0,
    every: Annotated[
        int, typer.Option(min=1, help="steps from frame to frame; the last state is one too")
    ] = 10,
    checkpoint_every: Annotated[
        int, typer.Option(min=1, help="steps from checkpoint to checkpoint")
    ] = 1000,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the checkpoint, if there is one")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="start anew over an earlier run's files")
    ] = False,
    allow_dissociation: Annotated[
        bool, typer.Option("--allow-dissociation", help="atoms may leave all others")
    ] = False,
    filters: FilterKind = Filters.spline,
    energy_unit: EnergyUnit = "eV",
    charge: Charge = None,
    allow_unknown_elements: UnknownElements = False,
    device: Device = "auto",
    threads: Threads = None,
    group: Annotated[
        int | None,
        typer.Option(min=1, help="replicas computed at once; by default by atoms and device"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="by default beside the trajectory")] = None,
    workers: Workers = 0,
    ray_address: RayAddress = None,
) -> None:
    """Molecular dynamics at constant energy or temperature, of one or many replicas."""
    from .md import command

    with _errors_in_one_line():
        code = command.dynamics(
            structure,
            command.model_source(model, filters.value, charge, allow_unknown_elements),
            out,
            dict(
                ensemble=ensemble.value,
                steps=steps,
                replicas=replicas,
                temperature=temperature,
                keep_velocities=keep_velocities,
                time_step=time_step,
                friction=friction,
                seed=seed,
                every=every,
                checkpoint_every=checkpoint_every,
                dissociation=allow_dissociation,
            ),
            energy_unit=energy_unit,
            frame=frame,
            resume=resume,
            restart=restart,
            device=device,
            threads=threads,
            group=group,
            plot=plot,
            workers=workers,
            ray_address=ray_address,
            say=typer.echo,
        )
        raise typer.Exit(code)


@app.command()
def evaluate(
    structures: Annotated[Path, typer.Argument(help="any file that ASE reads")],
    model: Model,
    out: Annotated[
        Path,
        typer.Option(help=".extxyz or .xyz, .npz, or .csv (energies only)"),
    ] = Path("results.extxyz"),
    stress: Annotated[bool, typer.Option("--stress", help="of periodic structures too")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="atoms of a batch, at most")] = 4096,
    max_edges: Annotated[int, typer.Option(min=1, help="pairs of a batch, at most")] = 2_000_000,
    filters: FilterKind = Filters.spline,
    energy_unit: EnergyUnit = "eV",
    charge: Charge = None,
    allow_unknown_elements: UnknownElements = False,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = 0,
    ray_address: RayAddress = None,
    restart: Restart = False,
    reference_unit: Annotated[
        str, typer.Option(help="of energies and forces in the file, where it does not say")
    ] = "eV",
) -> None:
    """Energies and forces of all structures of a file, in eV and Å."""
    from .md import command

    with _errors_in_one_line():
        command.energies(
            structures,
            command.model_source(model, filters.value, charge, allow_unknown_elements),
            out,
            energy_unit=energy_unit,
            stress=stress,
            batch_size=batch_size,
            max_edges=max_edges,
            device=device,
            threads=threads,
            workers=workers,
            ray_address=ray_address,
            say=typer.echo,
            restart=restart,
            reference_unit=reference_unit,
        )


@app.command()
def info(
    model: Annotated[str | None, typer.Option(help="a model's file, or 'ethanol'")] = None,
) -> None:
    """What the extension was built with, the devices here, and what a model is."""
    from .md import command

    with _errors_in_one_line():
        for line in command.description(model):
            typer.echo(line)


RunFolder = Annotated[Path, typer.Argument(help="a folder that `molkern train` made")]


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(help="a YAML file, a shipped configuration's name, or a run to go on with"),
    ],
    out: Annotated[
        Path | None, typer.Option(help="the run's folder; by default the configuration's name")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="another value: data.path=qm9.npz, say"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint, if there is one")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="start anew over a run")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="processes (GPUs) of a machine")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="threads of a process")] = None,
) -> None:
    """Trains a model: configuration, splits, metrics, best weights and plots in one folder."""
    from .training import command

    with _errors_in_one_line():
        command.train(
            config,
            out,
            change or [],
            resume=resume,
            restart=restart,
            device=device,
            devices=devices,
            nodes=nodes,
            threads=threads,
            say=typer.echo,
        )


@app.command("test")
def score(
    run: RunFolder,
    part: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
) -> None:
    """Errors of a trained model on a part of its run's data, with plots."""
    from .training import command

    with _errors_in_one_line():
        command.score(run, part, device, typer.echo)


@app.command()
def predict(
    run: RunFolder,
    structures: Annotated[Path, typer.Argument(help="any file that ASE reads")],
    out: Annotated[Path, typer.Option(help=".csv, .npz or .extxyz")] = Path("predictions.csv"),
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="structures at once")] = 256,
    restart: Restart = False,
    allow_unknown_elements: UnknownElements = False,
) -> None:
    """What a trained model predicts for the structures of a file."""
    from .training import command

    with _errors_in_one_line():
        command.predict(
            run,
            structures,
            out,
            device,
            batch_size,
            typer.echo,
            restart=restart,
            allow_unknown_elements=allow_unknown_elements,
        )


@app.command()
def configs(
    name: Annotated[str | None, typer.Argument(help="one to be shown in full")] = None,
) -> None:
    """The shipped training configurations."""
    from .training import command

    with _errors_in_one_line():
        command.configs(name, typer.echo)


plot = typer.Typer(no_args_is_help=True, help="Pictures of what a model has learned.")
app.add_typer(plot, name="plot")
Source = Annotated[str, typer.Argument(help="a run's folder, a model's file, or 'ethanol'")]


@plot.command()
def filters(
    model: Source,
    cell: Annotated[
        float | None, typer.Option(help="edge of a cubic cell, Å: pictures with images too")
    ] = None,
    block: Annotated[int | None, typer.Option(min=0, help="of the model; by default all")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="of filters")] = None,
    out: Annotated[Path, typer.Option(help="the picture")] = Path("filters.png"),
) -> None:
    """Learned filters by distance, and as cuts through a plane around an atom."""
    from .training import command

    with _errors_in_one_line():
        command.draw_filters(model, out, cell, block, count, typer.echo)


@plot.command()
def basis(
    model: Annotated[
        str | None,
        typer.Argument(help="a run's folder, a model's file, or 'ethanol'; else all models' bases"),
    ] = None,
    cutoff: Annotated[float, typer.Option(help="Å, where no model is given")] = 5.0,
    out: Annotated[Path, typer.Option(help="the picture")] = Path("basis.png"),
) -> None:
    """Radial and spherical bases."""
    from .training import command

    with _errors_in_one_line():
        command.draw_basis(model, out, cutoff, typer.echo)
