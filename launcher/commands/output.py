"""What commands print: JSON for scripts, tables for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer

from launcher.outcome import json_text

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text.")]


def examples(*commands: str) -> str:
    """The end of a command's help: how it is used, one line each."""
    # The first character keeps click from joining the lines.
    return "\n".join(["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {line}" for line in commands)])


def print_json(value: object) -> None:
    """Print a value as JSON on standard output; see :func:`launcher.outcome.json_text`."""
    print(json_text(value))


def print_table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows of values in columns; numbers stand right."""
    texts = [[str(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(*texts, strict=True)]
    for row, shown in zip(rows, texts, strict=True):
        cells = [
            f"{text:>{width}}" if isinstance(value, int | float) else f"{text:<{width}}"
            for value, text, width in zip(row, shown, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def size(count: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """What this process and those it starts print goes to standard error, so that scripts find JSON alone."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
