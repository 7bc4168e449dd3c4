"""The forms of GELU that need no Triton."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.bias_gelu import bias_gelu
from ptm_dist.kernels.choice import Choice, Form
from tests.kernels.gelu_cases import by_form, by_torch, in_double, inputs, run


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_what_is_chosen_without_a_measurement_is_torch_s_own_to_the_bit(approximate):
    values = inputs((2, 3, 47), torch.float64)
    ours = run(lambda *given: bias_gelu(*given, Choice()), values, approximate)
    for mine, other in zip(ours, run(by_torch, values, approximate), strict=True):
        assert torch.equal(mine, other)


def test_the_compiled_form_is_torch_s_up_to_rounding():
    values = inputs((2, 3, 47), torch.float32)
    for mine, other in zip(run(by_form(Form.COMPILE), values, "tanh"), in_double(values, "tanh"), strict=True):
        # Some roundings of float32 in numbers up to 100.
        torch.testing.assert_close(mine.double(), other, rtol=2e-6, atol=2e-5)
