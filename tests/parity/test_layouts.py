"""Every layout computes what one process computes."""

from __future__ import annotations

import pytest

from tests.parity.table import (
    FP32_TOLERANCE,
    FP64_TOLERANCE,
    LAYOUTS,
    extras,
    matrix,
    measure,
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


def test_single_precision_stays_close():
    for name, cell, errors in measure(single_precision()):
        assert errors.worst() < FP32_TOLERANCE, (name, cell, errors)
