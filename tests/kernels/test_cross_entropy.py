"""The reference of cross entropy of rows."""

from __future__ import annotations

import pytest
import torch

from data_pipeline.samples import IGNORE_INDEX
from ptm_dist.kernels.choice import Form
from ptm_dist.kernels.cross_entropy import cross_entropy_
from tests.kernels.rows_of_logits import (
    KINDS,
    case,
    check_bfloat16,
    check_columns_apart,
    check_large_and_absent_logits,
    check_nothing_is_left_of_old_memory,
    check_rows,
    choice_of,
)

SHAPES = [(4, 47), (31, 123), (5, 1), (0, 7), (1, 50257), (33, 20000)]
"""The last one is larger than what the reference works on at a time."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_losses_gradients_and_hits_are_those_of_torch(rows, columns, dtype, kind):
    check_rows(Form.REFERENCE, *case(rows, columns, dtype), KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[60], [1, 1, 122], [0, 40, 80]])
def test_columns_that_stand_apart_give_what_whole_rows_do(cuts, kind):
    check_columns_apart(Form.REFERENCE, *case(31, 123, torch.float64), KINDS[kind], cuts)


def test_bfloat16_is_rounded_once():
    check_bfloat16(Form.REFERENCE, *case(31, 123, torch.bfloat16))


def test_large_logits_do_not_overflow_and_absent_ones_have_no_gradient():
    check_large_and_absent_logits(Form.REFERENCE)


def test_results_hold_nothing_of_the_memory_that_they_are_made_of(monkeypatch):
    check_nothing_is_left_of_old_memory(Form.REFERENCE, monkeypatch)


def test_rows_without_targets_are_worth_nothing():
    logits, _ = case(4, 47, torch.float32)
    found = cross_entropy_(
        logits, torch.full((4,), IGNORE_INDEX), KINDS["all"], choice_of(Form.REFERENCE), gradient=True
    )
    assert not torch.cat([*found, logits.flatten()]).any()


def test_the_compiled_reference_gives_the_same():
    check_rows(Form.COMPILE, *case(4, 47, torch.float64), KINDS["all"])
