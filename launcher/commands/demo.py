"""`ptm demo`: the whole way once, in minutes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.output import examples

EXAMPLES = examples("ptm demo", "ptm demo --family albert", "ptm demo --out /tmp/demo --fresh")


class DemoFamily(StrEnum):
    """Families that have a demo."""

    GPT = "gpt"
    BERT = "bert"
    ROBERTA = "roberta"
    ALBERT = "albert"


def demo(
    family: Annotated[DemoFamily, typer.Option(help="What to train.")] = DemoFamily.GPT,
    out: Annotated[
        Path | None, typer.Option(help="Folder of everything the demo makes; runs/demo or runs/demo-FAMILY.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier demo made and begin anew.")] = False,
) -> None:
    """Go from raw text to a trained model with two processes, changing the layout half way.

    Takes about three minutes on two cores. What an earlier demo made is used again.
    """
    from launcher.demo import run_demo

    places = Path("runs/demo" if family is DemoFamily.GPT else f"runs/demo-{family.value}")
    raise typer.Exit(run_demo(out or places, fresh, family=family.value))
