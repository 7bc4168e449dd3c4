"""One training step on two processes: ours at each layout beside DDP and FSDP2 written by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.peers import PlainGPT, PlainTrainer
from benchmarks.timing import Timing, interleave, ratio_table
from benchmarks.workloads import random_batch, recipe
from ptm_dist.engines.native import NativeEngine
from ptm_dist.recipe.layout import resolve_layout

WORLD = 2
BATCH, SEQUENCE = 16, 256
LAYOUTS = {
    "ptm-dist DP 2": {},
    "ptm-dist ZeRO-1 x2": {"zero_stage": 1},
    "ptm-dist ZeRO-3 x2": {"zero_stage": 3},
    "ptm-dist TP 2 + SP": {"tensor_parallel": 2, "sequence_parallel": True},
}


def _ours(layout: dict[str, object]) -> Callable[[], object]:
    setting = recipe("nano", BATCH, SEQUENCE, "fp32", {"micro_batch_size": BATCH // WORLD, **layout})
    engine = NativeEngine(setting, resolve_layout(setting.layout, WORLD), torch.device("cpu"))
    batch = random_batch(setting, engine.dp_rank, engine.dp_size, engine.device)
    return lambda: engine.step(batch, 1e-3)


def _fsdp(model: PlainGPT) -> PlainGPT:
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def measure(rounds: int) -> dict[str, Timing]:
    """Run on every rank of a group of two; the timings of rank 0 count."""
    setting = recipe("nano", BATCH, SEQUENCE, "fp32", {})
    batch = random_batch(setting, dist.get_rank(), WORLD, torch.device("cpu"))
    ddp = PlainTrainer(DistributedDataParallel(PlainGPT(setting.model)), BATCH // WORLD)
    fsdp = PlainTrainer(_fsdp(PlainGPT(setting.model)), BATCH // WORLD)
    candidates = {name: _ours(layout) for name, layout in LAYOUTS.items()}
    candidates["torch DDP by hand"] = lambda: ddp.step(batch.inputs, batch.labels)
    candidates["torch FSDP2 by hand"] = lambda: fsdp.step(batch.inputs, batch.labels)
    return interleave(candidates, rounds, synchronise=dist.barrier)


def report(timings: dict[str, Timing]) -> tuple[str, dict[str, float]]:
    """Text and tokens per second of what :func:`measure` gave."""
    tokens = BATCH * SEQUENCE
    title = f"step on 2 processes, nano, batch {BATCH} x {SEQUENCE}, fp32, 1 thread each; 'ours' is DP 2"
    figures = {name: tokens / timing.median for name, timing in timings.items()}
    return ratio_table(title, timings, "ptm-dist DP 2", "tokens", tokens), figures
