"""The kernels of bias and GELU, in Triton's interpreter, against torch in double precision."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.choice import Form
from ptm_dist.kernels.triton import bias_gelu as kernels
from tests.kernels.gelu_cases import assert_as_accurate, by_form, in_double, inputs, run

# exp(-x) of a number below -100 is infinite, and the sigmoid 0, as it should be.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
SHAPES = [(1, 1), (5, 47), (2, 3, 512), (3, 1, 513)]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch_in_double_precision(shape, approximate):
    values = inputs(shape, torch.float64)
    for mine, other in zip(run(by_form(Form.TRITON), values, approximate), in_double(values, approximate), strict=True):
        # Some roundings of float64 in numbers up to 100.
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-13)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
# The interpreter cuts numbers to bfloat16, where a GPU rounds them: that alone loses up to 2^-7 of a number.
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_lower_precision_loses_no_more_than_torch_does(dtype, floor, approximate):
    assert_as_accurate(Form.TRITON, inputs((5, 47), dtype), approximate, floor)


def test_the_gradient_of_the_bias_sums_all_rows_when_programs_take_turns(monkeypatch):
    # 19 rows are five tiles for two programs, the last one not full.
    monkeypatch.setattr(kernels, "_TURNS", 2)
    values = inputs((19, 5), torch.float64)
    for mine, other in zip(run(by_form(Form.TRITON), values, "tanh"), in_double(values, "tanh"), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-13)


def test_strided_inputs_and_gradients_are_read_as_they_are():
    hidden, bias, gradient = inputs((6, 8), torch.float64)
    strided = hidden.t().contiguous().t(), bias, gradient.t().contiguous().t()
    for mine, other in zip(
        run(by_form(Form.TRITON), strided, "none"), in_double((hidden, bias, gradient), "none"), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-14, atol=1e-13)


def test_no_rows_are_no_work():
    out, of_hidden, of_bias = run(by_form(Form.TRITON), inputs((0, 8), torch.float32), "none")
    assert out.shape == of_hidden.shape == (0, 8)
    assert torch.equal(of_bias, torch.zeros(8))


def test_nothing_is_kept_for_the_backward_pass_but_what_was_given():
    kept = []
    hidden, bias, _ = inputs((5, 47), torch.float32)
    hidden.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()), lambda tensor: tensor):
        by_form(Form.TRITON)(hidden, bias, "none")
    assert kept == [hidden.data_ptr(), bias.data_ptr()]
