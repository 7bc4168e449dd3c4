"""The same code on CUDA and NCCL; `make gpu-test`."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import run_distributed
from tests.parity.cells import LEARNING_RATE, Cell, Problem, slice_batch
from tests.parity.table import FAMILIES, LAYOUTS, matrix, measure, other_families

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = torch.cuda.device_count()


@pytest.mark.parametrize("name", [name for name, (world, _) in LAYOUTS.items() if world <= max(1, DEVICES)])
def test_cuda_equals_plain_training_on_cpu_in_double_precision(name):
    cells = [(other, cell) for other, cell in matrix() if other == name]
    for _, cell, errors in measure(cells, "cuda"):
        # CUDA sums in other orders and has its own tanh and exp: still rounding, not 1e-3.
        assert errors.worst() < 1e-11, (cell, errors)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_on_cuda_equals_plain_training_on_cpu(family):
    worlds = {world for world, _ in LAYOUTS.values() if world <= max(1, DEVICES)}
    cells = [
        (name, cell)
        for name, cell in other_families(complete=True)
        if cell.problem.family == family and cell.world_size in worlds
    ]
    for _, cell, errors in measure(cells, "cuda"):
        assert errors.worst() < 1e-11, (cell, errors)


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
