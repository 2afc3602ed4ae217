"""The command ``molkern``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.callback()
def main() -> None:
    """Fast message passing on molecules."""


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=100, help="steps of molecular dynamics")] = 5000,
    out: Annotated[Path, typer.Option(help="where the plot goes")] = Path("molkern_demo.png"),
) -> None:
    """Molecular dynamics of ethanol with a trained SchNet."""
    from . import demo as demonstration

    if not out.parent.is_dir():
        typer.echo(f"{out.parent} is not a folder: make it, or choose another --out", err=True)
        raise typer.Exit(1)
    demonstration.run(steps, out, typer.echo)


@app.command()
def info() -> None:
    """What the extension was built with."""
    from . import __version__, build_info

    typer.echo(f"molkern {__version__}")
    for key, value in build_info().items():
        typer.echo(f"  {key}: {', '.join(value) if isinstance(value, list) else value}")
