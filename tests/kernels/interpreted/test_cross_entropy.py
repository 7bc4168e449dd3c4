"""The kernel of cross entropy of rows in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.choice import Form
from tests.kernels.rows_of_logits import (
    KINDS,
    case,
    check_bfloat16,
    check_columns_apart,
    check_large_and_absent_logits,
    check_nothing_is_left_of_old_memory,
    check_rows,
)

SHAPES = [(4, 47), (31, 123), (5, 1), (0, 7), (2, 5000), (3, 8192)]
"""The last two take two blocks, of which the second one is full or not."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_losses_gradients_and_hits_are_those_of_torch(rows, columns, dtype, kind):
    check_rows(Form.TRITON, *case(rows, columns, dtype), KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[60], [0, 40, 80]])
def test_columns_that_stand_apart_give_what_whole_rows_do(cuts, kind):
    check_columns_apart(Form.TRITON, *case(8, 123, torch.float64), KINDS[kind], cuts)


def test_rows_may_lie_apart_in_memory():
    logits, targets = case(6, 47, torch.float32)
    check_rows(Form.TRITON, torch.zeros(6, 64)[:, :47].copy_(logits), targets, KINDS["all"])


def test_bfloat16_has_at_most_twice_the_error_of_torch():
    # The interpreter cuts numbers off where a GPU rounds them.
    check_bfloat16(Form.TRITON, *case(31, 123, torch.bfloat16))


def test_large_logits_do_not_overflow_and_absent_ones_have_no_gradient():
    check_large_and_absent_logits(Form.TRITON)


def test_results_hold_nothing_of_the_memory_that_they_are_made_of(monkeypatch):
    check_nothing_is_left_of_old_memory(Form.TRITON, monkeypatch)
