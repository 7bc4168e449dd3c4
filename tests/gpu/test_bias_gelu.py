"""The kernels of bias and GELU on CUDA, against torch in double precision."""

from __future__ import annotations

import pytest
import torch

from ptm_dist.kernels.choice import Form
from tests.kernels.gelu_cases import assert_as_accurate, by_form, in_double, inputs, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(5, 47), (8, 1024, 3072), (3, 1000, 4099)]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that a kernel does not write holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_torch_in_double_precision(shape, approximate):
    values = inputs(shape, torch.float64, "cuda")
    for mine, other in zip(run(by_form(Form.TRITON), values, approximate), in_double(values, approximate), strict=True):
        # Roundings of float64 in numbers up to 100, and in sums of thousands of them.
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("form", [Form.TRITON, Form.COMPILE])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_lower_precision_loses_no_more_than_torch_does(shape, dtype, approximate, form):
    assert_as_accurate(form, inputs(shape, dtype, "cuda"), approximate)


def test_a_block_around_the_kernels_can_be_compiled_as_a_whole():
    values = inputs((64, 256), torch.float32, "cuda")
    compiled = torch.compile(by_form(Form.TRITON), fullgraph=True)
    found, expected = (run(each, values, "tanh") for each in (compiled, by_form(Form.TRITON)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_gradients_have_the_same_bits_each_time():
    values = inputs(SHAPES[1], torch.bfloat16, "cuda")
    first, second = (run(by_form(Form.TRITON), values, "tanh") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
