"""A report as files in a folder."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.errors import UserError
from launcher.outcome import json_text
from launcher.report.plot import plot_timeline
from launcher.report.report import Report
from launcher.report.text import PICTURE, markdown
from ptm_dist.checkpoint.files import write_atomically


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write the picture, the page and the values for scripts; each appears whole or not at all.

    Raises: UserError if the folder cannot be written.
    """
    picture, page, values = (folder / name for name in (PICTURE, "report.md", "report.json"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        plot_timeline(report, picture)
        write_atomically(page, markdown(report))
        write_atomically(values, json_text(report.as_json()) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder}: {error.strerror}; choose another folder with --out"
        ) from error
    return [picture, page, values]
