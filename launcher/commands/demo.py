"""`ptm demo`: the whole way once, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.output import examples

EXAMPLES = examples("ptm demo", "ptm demo --out /tmp/demo --fresh")


def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier demo made and begin anew.")] = False,
) -> None:
    """Go from raw text to a trained GPT with two processes, changing the layout half way.

    Takes about three minutes on two cores. What an earlier demo made is used again.
    """
    from launcher.demo import run_demo

    raise typer.Exit(run_demo(out, fresh))
