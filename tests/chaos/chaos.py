"""Runs under random faults, and docs/chaos.md made of them: `python -m tests.chaos.chaos`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from benchmarks.pipeline.tables import machine
from tests.chaos.disturbed import NODES
from tests.chaos.faults import FAULTS
from tests.chaos.trial import LOSS_TOLERANCE, Outcome, Trial, choose, run_trial

PAGE = Path(__file__).resolve().parents[2] / "docs" / "chaos.md"
TRIALS = (
    Trial("gpt"),
    Trial("bert"),
    Trial("gpt", shrinks=True),
    Trial("bert", shrinks=True),
)

_ABOUT = """\
# Chaos

A run of {processes} processes on two nodes is disturbed at random, again and again, and nobody helps it: whatever
is killed, stopped, damaged or full, it goes on by itself. At the end it is compared with the same run left alone.
`make chaos` does all of this and writes this page; `make test` has a short version. The kinds of faults and their
moments, ranks, nodes, files and bytes are drawn from a seed. The nodes are virtual ones of one machine; processes,
signals, files and disks are real.
"""
_FAULTS_ABOUT = """\
| fault | what happens |
|---|---|
"""
_EXPLAINED = f"""\
- *on what is left*: with a node lost the run goes on with two processes, and with four when it is back; the others
  wait for it. Where the layout stays the same, losses and weights must be equal to the bit; where it changes, sums are
  added up in another order, and each step's loss (fp64) must stay within {LOSS_TOLERANCE:.0e} of the undisturbed one.
- *starts*: how many of how many processes, the first included. *back by itself*: faults after which the run made a
  new step and a new checkpoint; its history must tell of each lost node, stop and damaged checkpoint.
- *lost, repeated*: samples that the curve of the run misses or has twice, as `ptm report` counts them.
- *seconds to the next step*: from the end of the fault to the next new step, which includes noticing it; a stopped
  worker is noticed after 3 s here, a silent node after 4 s, and a stopped agent is killed by its keeper after 20 s.
"""


def page(outcomes: Sequence[Outcome], seed: int) -> str:
    """The page of all that was tried."""
    today = f"Measured {datetime.now(UTC):%Y-%m-%d} with seed {seed} on {machine()}."
    kinds = "".join(f"| {kind} | {_first_line(kind)} |\n" for kind in FAULTS)
    about = _ABOUT.format(processes=sum(NODES.values()))
    return "\n".join([about, _FAULTS_ABOUT + kinds, today + "\n", _results(outcomes), _tally(outcomes), _EXPLAINED])


def _first_line(kind: str) -> str:
    return (FAULTS[kind].__doc__ or "").splitlines()[0].rstrip(".")


def _results(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| run | steps | faults | starts | back by itself | lost, repeated | losses and weights "
        "| seconds to the next step: median, most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        count, (middle, most) = len(outcome.faults), outcome.recovery_seconds()
        lines.append(
            f"| {outcome.trial.name} | {outcome.steps:,} | {count} | {_starts(outcome)} | {count} of {count} "
            f"| {outcome.curve.samples_lost}, {outcome.curve.samples_repeated} | {_equality(outcome)} "
            f"| {middle:.1f}, {most:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _starts(outcome: Outcome) -> str:
    sizes = Counter(outcome.rounds)
    return ", ".join(f"{sizes[size]} of {size}" for size in sorted(sizes, reverse=True))


def _equality(outcome: Outcome) -> str:
    if outcome.same_losses and outcome.same_weights:
        return "equal to the bit"
    return f"losses within {outcome.loss_difference:.0e}"


def _tally(outcomes: Sequence[Outcome]) -> str:
    head = f"| fault | {' | '.join(outcome.trial.name for outcome in outcomes)} | seconds to the next step: most |"
    lines = [head, "|---" * (len(outcomes) + 2) + "|"]
    for kind in FAULTS:
        counts = [str(outcome.counts()[kind]) for outcome in outcomes]
        seconds = [each for outcome in outcomes for name, each in outcome.faults if name == kind]
        lines.append(f"| {kind} | {' | '.join(counts)} | {max(seconds):.1f} |" if seconds else "")
    return "\n".join(line for line in lines if line) + "\n"


def main() -> int:
    """Run all trials and write the page after each."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=30, help="in each trial")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", choices=("gpt", "bert"), help="only trials of this family")
    parser.add_argument("--shrinks", action="store_true", help="only trials that go on with what is left")
    parser.add_argument("--page", type=Path, default=PAGE, help="to write")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    problems: list[str] = []
    for number, trial in enumerate(TRIALS):
        if options.family not in (None, trial.family) or (options.shrinks and not trial.shrinks):
            continue
        random = Random(options.seed * 1000 + number)
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            outcome = run_trial(trial, choose(options.faults, random), random, Path(folder))
        outcomes.append(outcome)
        problems += [f"{trial.name}: {problem}" for problem in outcome.problems()]
        print(f"{trial.name}: {len(outcome.faults)} faults in {outcome.seconds:.0f} s", flush=True)
        options.page.write_text(page(outcomes, options.seed))
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # disks are unmounted on the way out
    sys.exit(main())
