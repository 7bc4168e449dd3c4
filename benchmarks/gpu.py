"""``make gpu-bench``: whole training steps on one CUDA device, ours beside plain PyTorch, interleaved.

GPT-2 124M and 355M in bfloat16 at 1,024 positions: tokens per second, MFU in both conventions, peak memory;
written to benchmarks/results/gpu.json with versions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks.peers import PlainGPT, PlainTrainer
from benchmarks.timing import interleave, save
from benchmarks.workloads import random_batch, recipe
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import resolve_layout
from ptm_dist.recipe.schema import Precision
from ptm_dist.training.flops import flops_per_token, peak_flops

SEQUENCE = 1024
SIZES = {"gpt2-124m": (64, 16), "gpt2-355m": (32, 8)}
"""Samples per step and per micro-batch."""


def _candidates(model: str, device: torch.device) -> dict[str, Callable[[], Callable[[], object]]]:
    """Builders of the competitors, so that one model at a time takes memory."""
    batch_size, micro = SIZES[model]

    def ours(**layout: object) -> Callable[[], object]:
        setting = recipe(model, batch_size, SEQUENCE, "bf16", {"micro_batch_size": micro, **layout})
        engine = NativeEngine(setting, resolve_layout(setting.layout, 1), device)
        batch = random_batch(setting, 0, 1, device)
        return lambda: engine.step(batch, 1e-4)

    def plain(*, compiled: bool) -> Callable[[], object]:
        setting = recipe(model, batch_size, SEQUENCE, "bf16", {})
        module = PlainGPT(setting.model).to(device)
        trainer = PlainTrainer(torch.compile(module) if compiled else module, micro, torch.bfloat16)
        batch = random_batch(setting, 0, 1, device)
        return lambda: trainer.step(batch.inputs, batch.labels)

    return {
        "ptm-dist": ours,
        "ptm-dist compiled": lambda: ours(compile=True),
        "plain PyTorch": lambda: plain(compiled=False),
        "plain PyTorch compiled": lambda: plain(compiled=True),
    }


def _peak_memory(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def compare(model: str, device: torch.device) -> dict[str, dict[str, float]]:
    """Figures of every candidate, and a table on screen."""
    batch_size, _ = SIZES[model]
    flops = flops_per_token(recipe(model, batch_size, SEQUENCE, "bf16", {}), SEQUENCE)
    peak = peak_flops(device, Precision.BF16)
    calls, memory = {}, {}
    for name, build in _candidates(model, device).items():
        before = torch.cuda.memory_allocated()
        calls[name] = build()
        calls[name]()
        memory[name] = _peak_memory(calls[name]) - before
    timings = interleave(calls, rounds=10, synchronise=torch.cuda.synchronize)
    figures = {}
    for name, timing in timings.items():
        rate = batch_size * SEQUENCE / timing.median
        figures[name] = {
            "tokens_per_second": rate,
            "mfu_full": rate * flops.full / peak.flops_per_second,
            "mfu_causal": rate * flops.causal / peak.flops_per_second,
            "peak_memory_gib": memory[name] / 2**30,
        }
        print(f"{model:10s} {name:24s}", {key: round(value, 4) for key, value in figures[name].items()}, flush=True)
    return figures


def main() -> None:
    """Measure and save; needs a CUDA device."""
    if not torch.cuda.is_available():
        sys.exit("error: make gpu-bench needs a CUDA device; on CPU use make bench")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda", 0)
    print(f"figures: {save('gpu', {model: compare(model, device) for model in SIZES})}")


if __name__ == "__main__":
    main()
