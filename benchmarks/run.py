"""``make bench``: every CPU benchmark, its ratios on screen and its figures in benchmarks/results/cpu.json."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import data, parallel, step
from benchmarks.comparison import learns_the_same, table
from benchmarks.timing import save

PARTS = ("step", "parallel", "data")
ABSENT = "torchtitan 0.3.0 has neither GPT-2 nor BERT among its models: not measured"


def main() -> None:
    """Run one after another; about a quarter of an hour on two cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--models", nargs="+", help="of the steps in one process; all when left out")
    parser.add_argument("--compiled", choices=("none", "small", "all"), default="small", help="compiled candidates")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a step in one process")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"absent": [ABSENT]}
    if {"step", "parallel"} & set(asked.only):
        figures["steps"] = []
        for result in _results(asked):
            print(table(result), flush=True)
            figures["steps"].append(result)
    if "data" in asked.only:
        text, figures["loader, tokens/s"] = data.compare()
        print(text, flush=True)
    print(f"{ABSENT}\nfigures: {save('cpu', figures)}")
    if not all(learns_the_same(result) for result in figures.get("steps", ())):
        sys.exit("error: candidates differ in what they learn; their speeds cannot be compared")


def _results(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for suite in step.SUITES:
        if "step" in asked.only and (not asked.models or suite.problem.model in asked.models):
            compiled = asked.compiled == "all" or (asked.compiled == "small" and suite.is_small)
            yield step.run(suite, compiled=compiled, threads=asked.threads)
    for problem in parallel.PROBLEMS:
        if "parallel" in asked.only:
            yield parallel.run(problem, rounds=5)


if __name__ == "__main__":
    main()
