"""Figures as Markdown: what was measured, on what, with which versions, and the ratio of ours to each peer."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.pipeline.rounds import ROOT, Outcome, peers_python

RESULTS = ROOT / "benchmarks" / "results"

_PEERS = (
    "megatron-core mosaicml-streaming litdata webdataset datatrove transformers tokenizers sentencepiece numpy torch"
)


@dataclass(frozen=True)
class Table:
    """One comparison.

    Attributes:
        title: what is measured, with its sizes.
        outcomes: by the candidates' names; the first is ours.
        figure: the figure that is compared.
        unit: how it is shown.
        scale: what it is multiplied by to be shown in that unit; negative powers welcome.
        more_is_better: a rate; False for seconds, shares and sizes.
        further: other figures of the same runs: (name of the figure, heading, factor).
    """

    title: str
    outcomes: dict[str, Outcome]
    figure: str
    unit: str
    scale: float = 1.0
    more_is_better: bool = True
    further: Sequence[tuple[str, str, float]] = ()

    def markdown(self) -> str:
        """Median, least and most of the rounds, and how many times better ours is (above 1: ours is better)."""
        headings = ["", self.unit, "least to most", "ours is better by", *(heading for _, heading, _ in self.further)]
        rows = [self._row(name, outcome) for name, outcome in self.outcomes.items()]
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

    def _row(self, name: str, outcome: Outcome) -> list[str]:
        if outcome.problem or not outcome.rounds:
            return [name, f"failed: {outcome.problem}", *[""] * (2 + len(self.further))]
        values = [value * self.scale for value in outcome.values(self.figure)]
        spread = f"{_number(values[0])} to {_number(values[-1])}"
        others = [_number(outcome.median(figure) * factor) for figure, _, factor in self.further]
        return [name, _number(outcome.median(self.figure) * self.scale), spread, self._ratio(outcome), *others]

    def _ratio(self, outcome: Outcome) -> str:
        ours = next(iter(self.outcomes.values()))
        if not ours.rounds or outcome is ours:
            return ""
        mine, theirs = ours.median(self.figure), outcome.median(self.figure)
        above, below = (mine, theirs) if self.more_is_better else (theirs, mine)
        return f"{above / below:,.2f}x" if below else ""


def results(about: str, tables: Sequence[Table], rounds: int, load: str) -> str:
    """The tables of one comparison, with date, machine, load and versions."""
    measured = (
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}; load average before: {load}; medians of {rounds} rounds, "
        f"candidates in turn, each in a process of its own. ptm-dist {commit()}, {versions()}."
    )
    return "\n".join([about, measured, "", *(table.markdown() for table in tables)])


def machine() -> str:
    """Processor, cores and Python in a few words."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores, Python {platform.python_version()}"


def load_average() -> str:
    """Of the last minute and the last five."""
    return " and ".join(f"{value:.1f}" for value in os.getloadavg()[:2])


def commit() -> str:
    """The commit that was measured."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def versions() -> str:
    """Of the peers, as their environment has them."""
    script = (
        f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in '{_PEERS}'.split()))"
    )
    done = subprocess.run([peers_python(), "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
