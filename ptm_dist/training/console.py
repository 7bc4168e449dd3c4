"""What a person watching the run sees: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from ptm_dist.training.metrics import Row

_PARTS = ("_loss", "_accuracy")
"""Ends of the names of an objective's own figures."""


class ConsoleSink:
    """Prints rows as they come; see :class:`ptm_dist.training.metrics.Sink`.

    Args:
        total_steps: of the run, for what remains.
        console: where to print; standard output when left out.
    """

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self._total_steps = total_steps
        self._console = console if console is not None else Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._validation = ""

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self._console.print(escape(text))

    def write(self, row: Row) -> None:
        """Show a row."""
        if row["kind"] == "train":
            self._progress(row)
        elif row["kind"] == "validation":
            self._validation = f" | val {row['loss']:.4f}"
            parts = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in row if name.endswith(_PARTS)]
            figures = ", ".join([f"validation loss {row['loss']:.4f}", *parts, f"perplexity {row['perplexity']:.2f}"])
            self.say(f"step {row['step']}: {figures} ({row['seconds']:.1f} s)")

    def close(self) -> None:
        """End the live line."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _progress(self, row: Row) -> None:
        line = self._line(row)
        if not self._console.is_terminal:
            self.say(line)
        elif self._status is None:
            self._status = self._console.status(escape(line))
            self._status.start()
        else:
            self._status.update(escape(line))

    def _line(self, row: Row) -> str:
        # What matters most comes first: a narrow terminal cuts the end.
        remaining = timedelta(seconds=math.ceil((self._total_steps - row["step"]) * row["step_seconds"]))
        return (
            f"step {row['step']}/{self._total_steps} | {remaining} left | loss {row['loss']:.4f}{self._validation} | "
            f"{row['tokens_per_second']:,.0f} tokens/s | MFU {row['mfu_full']:.1%} | "
            f"grad {row['grad_norm']:.3f} | lr {row['learning_rate']:.2e}"
        )
