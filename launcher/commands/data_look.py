"""`ptm data verify`, `inspect`, `stats`: what lies in a folder of token shards."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `ptm data`."""
