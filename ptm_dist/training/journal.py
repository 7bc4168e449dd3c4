"""Everything a run tells: rows of figures, events, lines for people; written by the first rank alone."""

from __future__ import annotations

from typing import Any

from ptm_dist.parallel.control import ControlGroup
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.console import ConsoleSink
from ptm_dist.training.metrics import JsonLines, Row, Sink, TensorBoard, drop_rows_after
from ptm_dist.training.run_directory import RunDirectory, timestamp


class Journal:
    """Takes everything on every rank, and writes it on the first.

    Args:
        directory: of the run, prepared.
        recipe: says what is wanted.
        control: all ranks.
    """

    def __init__(self, directory: RunDirectory, recipe: Recipe, control: ControlGroup) -> None:
        self._directory = directory
        self._recipe = recipe
        self._writes = control.is_first
        self._console = ConsoleSink(recipe.training.steps)
        self._sinks: list[Sink] = []

    def event(self, kind: str, **values: Any) -> None:
        """Append to ``events.jsonl``."""
        if self._writes:
            self._directory.event(kind, **values)

    def say(self, text: str) -> None:
        """Print a line."""
        if self._writes:
            self._console.say(text)

    def open_rows(self, start_step: int) -> None:
        """Get ready for rows of the steps behind `start_step`; earlier rows of those steps move out."""
        if not self._writes:
            return
        drop_rows_after(self._directory.metrics, start_step)
        self._sinks = [self._console, JsonLines(self._directory.metrics)]
        if self._recipe.logging.tensorboard:
            self._sinks.append(TensorBoard(self._directory.tensorboard, start_step))

    def write(self, row: Row) -> None:
        """Give a row, with the time, to the screen, the file and TensorBoard."""
        row = {**row, "time": timestamp()}
        for sink in self._sinks:
            sink.write(row)

    def close(self) -> None:
        """End the live line and close the files."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []
