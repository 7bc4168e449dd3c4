"""Every layout computes what one process computes."""

from __future__ import annotations

import pytest

from tests.parity.cells import Cell, Problem
from tests.parity.table import (
    FP32_TOLERANCE,
    FP64_TOLERANCE,
    LAYOUTS,
    extras,
    matrix,
    measure,
    other_families,
    single_precision,
)


@pytest.mark.parametrize("world_size", sorted({world for world, _ in LAYOUTS.values()}))
def test_every_layout_equals_plain_training_in_double_precision(world_size):
    cells = [(name, cell) for name, cell in matrix() if cell.world_size == world_size]
    for name, cell, errors in measure(cells):
        assert errors.worst() < FP64_TOLERANCE, (name, cell, errors)


def test_products_of_layouts_and_uneven_batches_equal_plain_training():
    for name, cell, errors in measure(extras()):
        assert errors.worst() < FP64_TOLERANCE, (name, cell, errors)


@pytest.mark.parametrize("world_size", sorted({world for world, _ in LAYOUTS.values()}))
def test_every_family_equals_plain_training_on_every_layout(world_size):
    cells = [(name, cell) for name, cell in other_families(complete=False) if cell.world_size == world_size]
    for name, cell, errors in measure(cells):
        assert errors.worst() < FP64_TOLERANCE, (name, cell, errors)


def test_single_precision_stays_close():
    for name, cell, errors in measure(single_precision()):
        assert errors.worst() < FP32_TOLERANCE, (name, cell, errors)


def test_ranks_with_no_share_of_the_vocabulary_or_of_the_batch_take_part():
    tiny_vocabulary = Problem(vocab_size=5, steps=3)
    tiny_batch = Problem(global_batch=2, steps=3)
    cells = [
        ("TP 4", Cell(tiny_vocabulary, 4, {"tensor_parallel": 4})),
        ("TP 4 + SP", Cell(tiny_vocabulary, 4, {"tensor_parallel": 4, "sequence_parallel": True})),
        ("DP 4", Cell(tiny_batch, 4, {})),
        ("ZeRO-2 x4", Cell(tiny_batch, 4, {"zero_stage": 2})),
        ("ZeRO-3 x4", Cell(tiny_batch, 4, {"zero_stage": 3, "recompute": "full"})),
    ]
    for name, cell, errors in measure(cells):
        assert errors.worst() < FP64_TOLERANCE, (name, cell, errors)
