"""The same code on CUDA and NCCL; `make gpu-test`."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, slice_batch
from tests.parity.layouts import DOUBLE
from tests.parity.table import FAMILIES, OTHER_FAMILIES, measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = torch.cuda.device_count()


@pytest.mark.parametrize("family", {**FAMILIES, **OTHER_FAMILIES})
def test_every_family_on_cuda_equals_plain_training_on_cpu(family):
    settings = [setting for setting in DOUBLE if setting.world_size <= max(1, DEVICES)]
    for row in measure({family: {**FAMILIES, **OTHER_FAMILIES}[family]}, settings, "cuda"):
        # CUDA sums in other orders and has its own tanh and exp: still rounding, not 1e-3.
        assert row.errors.worst() < 1e-11, (row.setting, row.errors)


def bfloat16_losses(cell: Cell) -> list[float]:
    engine = cell.engine("cuda")
    batch = slice_batch(cell.problem, 0, engine)
    return [engine.step(batch, LEARNING_RATE).loss for _ in range(20)]


@pytest.mark.parametrize("layout", [{}, {"recompute": "full"}, {"compile": True}])
def test_bfloat16_training_falls(layout):
    losses = run_distributed(bfloat16_losses, 1, Cell(Problem(precision="bf16"), 1, layout), backend="nccl")[0]
    assert losses[-1] < losses[0] - 1.0


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_bfloat16_training_of_encoders_falls(family):
    losses = run_distributed(bfloat16_losses, 1, Cell(Problem(family, precision="bf16"), 1, {}), backend="nccl")[0]
    assert losses[-1] < losses[0] - 1.0
