"""Candidates in turn, each in a process of its own: A B C, A B C, ..., so that all meet the same noise."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "DO_NOT_TRACK": "1",
}
"""Processes are what is compared, so no library starts threads of its own."""


@dataclass(frozen=True)
class Candidate:
    """One project doing one task.

    Attributes:
        name: in the table.
        project: module of ``candidates``; "ours" runs in this environment, the others in the peers'.
        task: function of that module.
        options: its arguments, as JSON; with ``cores``, the process is bound to so many.
        before: called before each run, unmeasured.
    """

    name: str
    project: str
    task: str
    options: Mapping[str, Any]
    before: Callable[[], object] = field(default=lambda: None)


@dataclass(frozen=True)
class Outcome:
    """The figures of each round, or why there are none."""

    rounds: list[dict[str, float]]
    problem: str = ""

    def values(self, figure: str) -> list[float]:
        """One figure of all rounds, ascending."""
        return sorted(one[figure] for one in self.rounds)

    def median(self, figure: str) -> float:
        """Of the rounds."""
        return statistics.median(self.values(figure))


class CandidateError(Exception):
    """A candidate's process failed; the last line of what it said."""


def peers_python() -> str:
    """The interpreter that has the peers: ``PTM_PEERS_PYTHON``, or the one of ``make bench-data``."""
    return os.environ.get("PTM_PEERS_PYTHON") or str(ROOT / ".venv-peers" / "bin" / "python")


def run(candidate: Candidate, timeout_s: float = 1800) -> dict[str, float]:
    """Run a candidate once.

    Raises: CandidateError if it fails or takes longer than the limit.
    """
    python = sys.executable if candidate.project == "ours" else peers_python()
    module = "benchmarks.pipeline.candidates"
    command = [python, "-m", module, candidate.project, candidate.task, json.dumps(dict(candidate.options))]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks/pipeline/stand_ins")])
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
        )
    except FileNotFoundError:
        raise CandidateError(f"there is no {python}: `make bench-data` makes it, or set PTM_PEERS_PYTHON") from None
    except subprocess.TimeoutExpired:
        raise CandidateError(f"not done after {timeout_s:.0f} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"\S*(Error|Exception)\b", line)]
        said = errors or lines or [f"exit code {done.returncode}"]
        raise CandidateError(said[-1][:300])
    return json.loads(done.stdout.strip().splitlines()[-1])


def interleave(candidates: Sequence[Candidate], rounds: int) -> dict[str, Outcome]:
    """Run all candidates `rounds` times in turn; one that fails is left out from then on."""
    outcomes = {candidate.name: Outcome([]) for candidate in candidates}
    for number in range(rounds):
        for candidate in candidates:
            if outcomes[candidate.name].problem:
                continue
            candidate.before()
            try:
                outcomes[candidate.name].rounds.append(run(candidate))
            except CandidateError as error:
                outcomes[candidate.name] = Outcome([], str(error))
            print(f"  round {number + 1}/{rounds}, {candidate.name}: {_brief(outcomes[candidate.name])}", flush=True)
    return outcomes


def _brief(outcome: Outcome) -> str:
    return outcome.problem or ", ".join(f"{name} {value:,.3g}" for name, value in outcome.rounds[-1].items())
