"""How `ptm data build` tells people how far it is and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from data_pipeline.errors import UserError
from launcher.commands.output import size

if TYPE_CHECKING:
    from data_pipeline.build import BuildProgress, BuildSummary

_LINE_SECONDS = 10.0


@contextmanager
def quiet_unless(first: bool) -> Iterator[None]:
    """Of ranks that fail together, let only the first say why."""
    try:
        yield
    except UserError:
        if first:
            raise
        raise typer.Exit(2) from None


@contextmanager
def shown_progress(first: bool) -> Iterator[Callable[[BuildProgress], None]]:
    """Show progress on standard error: a bar on a terminal, else a line every ten seconds."""
    if not (first and sys.stderr.isatty()):
        yield _Lines(time.monotonic())
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rates]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def show(progress: BuildProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total_bytes, rates="")
            bar.update(tasks[progress.stage], completed=progress.done_bytes, rates=_rates(progress))

        yield show


class _Lines:
    """Progress for a log file."""

    def __init__(self, now: float) -> None:
        self._next = now + _LINE_SECONDS

    def __call__(self, progress: BuildProgress) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            done = f"{progress.stage}: {size(progress.done_bytes)} of {size(progress.total_bytes)}"
            print(f"{done}, {_rates(progress)}", file=sys.stderr, flush=True)


def _rates(progress: BuildProgress) -> str:
    seconds = max(progress.seconds, 1e-9)
    rates = [f"{progress.documents / seconds:,.0f} documents/s", f"{progress.text_bytes / 1e6 / seconds:.1f} MB/s"]
    if progress.tokens:
        rates.append(f"{progress.tokens / seconds:,.0f} tokens/s")
    return ", ".join(rates)


def built(summary: BuildSummary) -> str:
    """What came of a build, for people."""
    made = "was there already, made of the same" if summary.reused else f"made in {summary.seconds:.1f} s"
    lines = [f"{summary.path}: {made}", f"  train       {summary.train}", f"  validation  {summary.validation}"]
    if summary.counts:
        changes = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in summary.counts.items())
        lines.append(f"  of {summary.documents_read:,} documents read: {changes}")
    if len(summary.stages) > 1:
        lines.append("  " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stages.items()))
    return "\n".join(lines)
