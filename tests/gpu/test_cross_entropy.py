"""Cross entropy on CUDA, row by row and behind a matrix, against torch in float64."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from ptm_dist.kernels.choice import Form
from ptm_dist.kernels.linear_cross_entropy import Portion
from tests.kernels.decoders import Decoded, check_bfloat16_decoder, check_decoder
from tests.kernels.rows_of_logits import (
    KINDS,
    case,
    check_bfloat16,
    check_columns_apart,
    check_large_and_absent_logits,
    check_rows,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FORMS = [Form.REFERENCE, Form.TRITON, Form.COMPILE]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), [(31, 123), (5, 1), (64, 50257), (64, 50304)])
def test_losses_gradients_and_hits_are_those_of_torch(rows, columns, dtype, kind, form):
    check_rows(form, *case(rows, columns, dtype, "cuda"), KINDS[kind])


@pytest.mark.parametrize("form", FORMS)
def test_columns_that_stand_apart_give_what_whole_rows_do(form):
    check_columns_apart(form, *case(64, 50257, torch.float64, "cuda"), KINDS["all"], [0, 12_565, 25_130])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("columns", [50257, 50304])
def test_bfloat16_has_at_most_twice_the_error_of_torch(columns, form):
    check_bfloat16(form, *case(64, columns, torch.bfloat16, "cuda"))


@pytest.mark.parametrize("form", FORMS)
def test_large_logits_do_not_overflow_and_absent_ones_have_no_gradient(form):
    check_large_and_absent_logits(form, "cuda")


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_behind_a_matrix_are_those_of_torch(form):
    check_decoder(Decoded(900, 96, 1009, device="cuda"), Form.CHUNKED, Portion(256, 0), form)


@pytest.mark.parametrize("asked", [Form.WHOLE, Form.CHUNKED, Form.LIGER])
def test_bfloat16_behind_a_matrix_has_at_most_twice_the_error_of_torch(asked):
    if asked is Form.LIGER and find_spec("liger_kernel") is None:
        pytest.skip("needs liger-kernel")
    check_bfloat16_decoder(Decoded(4096, 768, 50257, device="cuda", bias=asked is not Form.LIGER), asked, None)
