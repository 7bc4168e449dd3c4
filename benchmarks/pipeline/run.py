"""``python -m benchmarks.pipeline.run``: the comparisons of the data pipeline; tables under benchmarks/results.

python -m benchmarks.pipeline.run --text runs/corpora/english.jsonl --work runs/bench-data
python -m benchmarks.pipeline.run --text ... --work ... --only read --rounds 3
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pipeline.about import ABOUT
from benchmarks.pipeline.suites import FULL, QUICK, SUITES
from benchmarks.pipeline.tables import RESULTS, load_average, results
from benchmarks.pipeline.workload import Workload


def main() -> None:
    """Run all suites, or the ones asked for; about an hour on two free cores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="english.jsonl of benchmarks.pipeline.corpora")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for data in all formats; kept for the next run"
    )
    parser.add_argument("--only", choices=list(SUITES), action="append", help="one of the comparisons; repeatable")
    parser.add_argument("--rounds", type=int, default=5, help="times that each candidate runs")
    parser.add_argument("--megabytes", type=float, default=24, help="text to tokenise")
    parser.add_argument("--quick", action="store_true", help="one round of little, to see that everything runs")
    arguments = parser.parse_args()
    rounds, sizes = (1, QUICK) if arguments.quick else (arguments.rounds, FULL)
    if not arguments.text.is_file():
        sys.exit(f"error: there is no {arguments.text}: python -m benchmarks.pipeline.corpora writes it")
    workload = Workload(arguments.work.absolute(), arguments.text.absolute())
    workload.make_sample(arguments.megabytes)
    workload.make_tokenizers()
    for name in arguments.only or SUITES:
        load = load_average()
        print(f"{name} (load {load})", flush=True)
        tables = SUITES[name](workload, rounds, sizes)
        report = results(ABOUT[name], tables, rounds, load)
        print(report, flush=True)
        if not arguments.quick:
            (RESULTS / f"data-{name}.md").write_text(report)


if __name__ == "__main__":
    main()
