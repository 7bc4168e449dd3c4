"""``make gpu-bench``: whole training steps on one CUDA device, beside plain PyTorch, Hugging Face and Megatron-Core.

Tokens per second, MFU in both conventions and peak memory, saved to benchmarks/results/gpu-MODEL.json with a plot.
A candidate that fails has its error for a result, and the others go on.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from benchmarks import candidates
from benchmarks.candidates import Step
from benchmarks.timing import save
from benchmarks.workloads import Problem
from ptm_dist.recipe.schema import Precision
from ptm_dist.training.flops import flops_per_token, peak_flops

PROBLEMS = {
    "gpt2-124m": Problem("gpt2-124m", 64, 1024, "bf16", micro=32),
    "gpt2-355m": Problem("gpt2-355m", 32, 1024, "bf16", micro=16),
    "gpt3-1.3b": Problem("gpt3-1.3b", 16, 2048, "bf16", micro=8),
    "bert-large-128": Problem("bert-large", 256, 128, "bf16", micro=128),
    "bert-large-512": Problem("bert-large", 64, 512, "bf16", micro=32),
}
WARM_UP = 3
OURS = "ptm-dist"


def builders(problem: Problem, device: torch.device) -> dict[str, Callable[[], Step]]:
    """Candidates by name; built when they are called, one after the other: each has the device's memory to itself."""
    made: dict[str, Callable[[], Step]] = {
        OURS: partial(candidates.ours, problem, device),
        "ptm-dist compiled": partial(candidates.ours, problem, device, compile=True),
        "plain PyTorch": partial(candidates.plain, problem, device),
        "plain PyTorch compiled": partial(candidates.plain, problem, device, compiled=True),
        "Hugging Face": partial(candidates.hugging_face, problem, device),
        "Hugging Face compiled": partial(candidates.hugging_face, problem, device, compiled=True),
        "Megatron-Core": partial(candidates.megatron, problem, device),
    }
    if problem.model.startswith("bert"):
        picks = partial(candidates.plain, problem, device, picks=True)
        made |= {
            "plain PyTorch, masked only": picks,
            "plain PyTorch, masked only compiled": partial(picks, compiled=True),
        }
    return made


def measure(problem: Problem, build: Callable[[], Step], device: torch.device, rounds: int) -> dict[str, Any]:
    """Figures of one candidate, or its error."""
    torch._dynamo.reset()  # what it compiled holds on to the last candidate
    gc.collect()
    torch.cuda.empty_cache()
    try:
        step = build()
        losses = [step() for _ in range(WARM_UP)]
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        seconds = [_seconds(step, device) for _ in range(rounds)]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    flops = flops_per_token(problem.recipe(), problem.sequence)
    peak = peak_flops(device, Precision.BF16)
    rate = problem.tokens / statistics.median(seconds)
    return {
        "tokens_per_second": rate,
        "samples_per_second": rate / problem.sequence,
        "fastest_tokens_per_second": problem.tokens / min(seconds),
        "mfu_full": rate * flops.full / peak.flops_per_second,
        "mfu_causal": rate * flops.causal / peak.flops_per_second,
        "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "losses": losses,
    }


def _seconds(step: Step, device: torch.device) -> float:
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    step()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def compare(name: str, device: torch.device, rounds: int, budget: float, only: list[str] | None) -> dict[str, Any]:
    """Figures of every candidate on one problem; none is begun when the budget of seconds is used up."""
    problem, begin, figures = PROBLEMS[name], time.monotonic(), {}
    for candidate, build in builders(problem, device).items():
        if only and candidate not in only:
            continue
        if time.monotonic() - begin > budget:
            figures[candidate] = {"error": f"not begun: {budget:.0f} seconds were used up"}
        else:
            figures[candidate] = measure(problem, build, device, rounds)
        print(f"{name:15s} {candidate:36s} {_short(figures[candidate])}", flush=True)
    peak = peak_flops(device, Precision.BF16)
    return {
        "problem": str(problem),
        "micro_batch": problem.micro,
        "rounds": rounds,
        "peak": {"flops_per_second": peak.flops_per_second, "source": peak.source},
        "candidates": figures,
    }


def _short(figures: dict[str, Any]) -> str:
    if "error" in figures:
        return f"did not run: {figures['error'].splitlines()[0]}"
    return (
        f"{figures['tokens_per_second']:11,.0f} tokens/s   MFU {figures['mfu_full']:5.1%} "
        f"(causal {figures['mfu_causal']:5.1%})   {figures['peak_memory_gib']:6.1f} GiB"
    )


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """MFU of every candidate that ran, a row of bars for each problem."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(results), 1, figsize=(8, 3 * len(results)), squeeze=False)
    for axis, (name, result) in zip(axes[:, 0], results.items(), strict=True):
        ran = {key: row["mfu_full"] for key, row in result["candidates"].items() if "error" not in row}
        bars = axis.barh(list(ran)[::-1], [100 * value for value in ran.values()][::-1])
        axis.bar_label(bars, fmt="%.1f%%", padding=3)
        axis.set_title(f"{name}: {result['problem']}")
        axis.set_xlabel("MFU, attention counted in full")
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure and save; needs a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PROBLEMS, nargs="+", default=list(PROBLEMS))
    parser.add_argument("--candidates", nargs="+", help="by name; all when left out")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all problems together")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: make gpu-bench needs a CUDA device; on CPU use make bench")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda", 0)
    begin, results = time.monotonic(), {}
    for name in asked.only:
        left = asked.budget - (time.monotonic() - begin)
        results[name] = compare(name, device, asked.rounds, left, asked.candidates)
        print(f"figures: {save(f'gpu-{name}', results[name])}", flush=True)  # what is measured outlives a time limit
    path = Path(__file__).with_name("results") / "gpu.png"
    try:
        plot(results, path)
        print(f"plot: {path}")
    except Exception as error:
        print(f"no plot: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
