"""``python -m molkern``."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="molkern")
