"""``python -m molkern``."""

from .cli import app

app(prog_name="molkern")
