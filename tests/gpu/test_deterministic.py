"""Steps on CUDA have the same bits each time, as runs with launch.deterministic promise."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.training.processes import make_deterministic
from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, global_batch

pytestmark = pytest.mark.gpu

FAMILIES = ("gpt2", "gpt3", "bert", "albert")


def two_runs(family: str, dropout: float) -> bool:
    make_deterministic()
    problem = Problem(family, precision="bf16", dropout=dropout)
    runs = []
    for _ in range(2):
        engine = Cell(problem, 1, {}, 3).engine("cuda")
        losses = [engine.step(global_batch(problem, step), LEARNING_RATE).loss for step in range(4)]
        runs.append((losses, [shard.local.clone() for shard in engine.model.shards().values()]))
        engine.close()
    (losses, weights), (again, weights_again) = runs
    return losses == again and all(map(torch.equal, weights, weights_again))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_runs_have_the_same_bits(family, dropout):
    assert run_distributed(two_runs, 1, family, dropout, backend="nccl")[0]
