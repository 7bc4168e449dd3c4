"""``make bench``: every CPU benchmark, its ratios on screen and its figures under benchmarks/results/cpu.json."""

from __future__ import annotations

import torch

from benchmarks import data, parallel, step
from benchmarks.timing import save
from tests.distributed import run_distributed


def main() -> None:
    """Run one after another; about five minutes on two cores."""
    torch.set_num_threads(2)
    figures: dict[str, object] = {}
    distributed, figures["step on 2 processes, nano, tokens/s"] = parallel.report(
        run_distributed(parallel.measure, parallel.WORLD, 5)[0]
    )
    print(distributed, flush=True)
    for model, batch, sequence, rounds in [("nano", 16, 256, 5), ("gpt2-124m", 2, 128, 3)]:
        text, rates = step.compare(model, batch, sequence, rounds)
        print(text, flush=True)
        figures[f"step, {model}, {batch} x {sequence}, tokens/s"] = rates
    text, rates = data.compare()
    print(text, flush=True)
    figures["loader, tokens/s"] = rates
    print(f"figures: {save('cpu', figures)}")


if __name__ == "__main__":
    main()
