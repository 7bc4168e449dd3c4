"""`ptm report`: what became of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.commands.output import JsonFlag, examples, print_json

EXAMPLES = examples("ptm report runs/gpt2-124m", "ptm report runs/gpt2-124m --out reports/gpt2-124m --json")


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the report; left out: `report` in the run directory.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say where the time of a run went, how it recovered from failures, and whether its curve is whole.

    Writes timeline.png, report.md and report.json. The run may be alive.
    """
    from launcher.report.files import write_report
    from launcher.report.report import make_report
    from launcher.report.text import print_report

    made = make_report(run)
    written = write_report(made, out or run / "report")
    if as_json:
        print_json(made.as_json())
        return
    print_report(made)
    print(f"\n{', '.join(str(path) for path in written)}")
