"""One training step on two processes of one thread: ours at each layout beside DDP, FSDP2 and DeepSpeed."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks import candidates
from benchmarks.comparison import Entry, compare
from benchmarks.workloads import Problem

WORLD = 2
PROBLEMS = (Problem("nano", 16, 256, "fp32"), Problem("bert-small", 16, 128, "fp32"))
_LAYOUTS: dict[str, dict[str, Any]] = {
    "ptm-dist DP": {},
    "ptm-dist ZeRO-1": {"zero_stage": 1},
    "ptm-dist ZeRO-2": {"zero_stage": 2},
    "ptm-dist ZeRO-3": {"zero_stage": 3},
    "ptm-dist TP + SP": {"tensor_parallel": 2, "sequence_parallel": True},
}


def run(problem: Problem, rounds: int) -> dict[str, Any]:
    """Measure one problem."""
    entries = {name: Entry(partial(candidates.ours, problem, **layout)) for name, layout in _LAYOUTS.items()}
    picks = problem.model.startswith("bert")
    by_hand = partial(candidates.plain, problem, picks=picks)
    entries["PyTorch DDP by hand"] = Entry(partial(by_hand, wrap=DistributedDataParallel), "ptm-dist DP")
    entries["PyTorch FSDP2 by hand"] = Entry(partial(by_hand, wrap=_shard), "ptm-dist ZeRO-3")
    for stage in (2, 3):
        build = partial(candidates.deepspeed, problem, zero_stage=stage)
        entries[f"DeepSpeed ZeRO-{stage}"] = Entry(build, f"ptm-dist ZeRO-{stage}")
    return compare(problem, entries, rounds=rounds, world=WORLD, threads=1)


def _shard(model: nn.Module) -> nn.Module:
    """FSDP2 as its tutorial does it: every block, then the rest."""
    blocks = next(child for child in model.children() if isinstance(child, nn.ModuleList))
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return model
