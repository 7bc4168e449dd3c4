"""`ptm data import` and `export`: other formats of tokens."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `ptm data`."""
