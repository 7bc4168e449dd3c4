"""The kernels of AdamW and LAMB, in Triton's interpreter, against torch and the printed formula in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.moments import moment_numbers
from ptm_dist.kernels.triton.optimizer import adamw_, lamb_apply_, lamb_update_
from ptm_dist.optim.build import build_optimizer
from ptm_dist.parallel.shards import LocalShard
from tests.ptm_dist.test_optimizers import (
    HEAD_SIZE,
    RATE,
    SECTIONS,
    WHOLE_MESH,
    gradients_of,
    random_like_weights,
    section,
    trained,
)

BETAS, EPS, DECAY = (0.9, 0.98), 1e-6, 0.1
SIZES = [1, 47, 1024, 1025, 3000]
"""Less than a block, a whole one, one more, and a block that is neither the first nor full."""
NUMBERS = moment_numbers(BETAS, EPS, 3)
FEW = 4
BY_TRITON = Choice({Operation.OPTIMIZER: Form.TRITON})


def state(size: int, gradient: torch.dtype = torch.float32) -> list[Tensor]:
    """Weight, gradient and moments with some more memory behind each, which nobody may touch."""
    torch.manual_seed(size)
    long = [torch.randn(size + 8), torch.randn(size + 8).to(gradient), torch.randn(size + 8), torch.rand(size + 8)]
    return [tensor[:size] for tensor in long]


def behind(tensor: Tensor) -> Tensor:
    return tensor.as_strided((8,), (1,), tensor.numel())


def adamw_in_double(tensors: list[Tensor], divisor: float = 1.0) -> list[Tensor]:
    """Weight and moments after update 3, as torch's own plain loop makes it."""
    weight, gradient, first, second = (tensor.double() for tensor in tensors)
    parameter = torch.nn.Parameter(weight)
    optimizer = torch.optim.AdamW([parameter], RATE, BETAS, EPS, DECAY, foreach=False)
    optimizer.state[parameter] = {"step": torch.tensor(2.0), "exp_avg": first, "exp_avg_sq": second}
    parameter.grad = gradient / divisor
    optimizer.step()
    return [parameter.detach(), first, second]


def assert_near(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Equal up to a few roundings of float32 in numbers near 1."""
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=5e-7, atol=5e-7)


def assert_cut(copy: Tensor, weight: Tensor) -> None:
    """The interpreter cuts numbers to bfloat16 where a GPU rounds them: less than 2^-7 of a number is lost."""
    torch.testing.assert_close(copy.float(), weight, rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_a_step_of_adamw_is_that_of_torch_and_stays_within_the_shard(size, gradient):
    tensors = state(size, gradient)
    expected, beyond = adamw_in_double(tensors, 3.7), [behind(tensor).clone() for tensor in tensors]
    copy = torch.full((size,), torch.nan, dtype=torch.bfloat16)
    read = tensors[1].clone()
    adamw_(*tensors, NUMBERS, RATE, DECAY, torch.tensor(3.7), copy)
    weight, after, first, second = tensors
    assert_near([weight, first, second], expected)
    assert_cut(copy, weight)
    assert torch.equal(after, read)
    assert all(torch.equal(behind(tensor), old) for tensor, old in zip(tensors, beyond, strict=True))


@pytest.mark.parametrize("divisor", [torch.nan, torch.inf])
def test_a_divisor_that_is_no_finite_number_leaves_out_the_step(divisor):
    for kernel in ("adamw", "lamb"):
        tensors = state(47)
        tensors[1][5] = torch.nan
        before = [tensor.clone() for tensor in tensors]
        copy, update = torch.zeros(47, dtype=torch.bfloat16), torch.full((47,), torch.nan)
        if kernel == "adamw":
            adamw_(*tensors, NUMBERS, RATE, DECAY, torch.tensor(divisor), copy)
        else:
            lamb_update_(*tensors, NUMBERS, DECAY, 1, torch.tensor(divisor), update)
            assert not update.any()
        assert not copy.any()
        for tensor, old in zip(tensors, before, strict=True):
            torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("gradient", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 1025), (3, 47), (2, 1100)])
def test_both_halves_of_lamb_are_the_formula_by_rows(rows, width, gradient):
    tensors = state(rows * width, gradient)
    weight, grad, first, second = (tensor.double() for tensor in tensors)
    first, second = BETAS[0] * first + 0.1 * grad / 3.7, BETAS[1] * second + 0.02 * (grad / 3.7) ** 2
    corrected = first / (1 - BETAS[0] ** 3), second / (1 - BETAS[1] ** 3)
    change = corrected[0] / (corrected[1].sqrt() + EPS) + DECAY * weight
    update = torch.full((rows * width,), torch.nan)
    squares = lamb_update_(*tensors, NUMBERS, DECAY, rows, torch.tensor(3.7), update)
    assert_near([tensors[0], tensors[2], tensors[3]], [weight, first, second])
    torch.testing.assert_close(update.double(), change, rtol=2e-6, atol=2e-6)
    expected = torch.stack([weight.view(rows, -1).square().sum(1), change.view(rows, -1).square().sum(1)])
    torch.testing.assert_close(squares.double(), expected, rtol=5e-6, atol=0.0)
    factors, copy = torch.randn(rows), torch.full((rows * width,), torch.nan, dtype=torch.bfloat16)
    lamb_apply_(tensors[0], update, factors, copy)
    assert_near([tensors[0]], [weight + (factors.double()[:, None] * update.view(rows, -1)).flatten()])
    assert_cut(copy, tensors[0])


def test_sums_of_squares_have_the_same_bits_each_time():
    results = []
    for _ in range(2):
        results.append(lamb_update_(*state(3000), NUMBERS, DECAY, 2))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", [name for name in SECTIONS if not name.startswith("sgd")])
def test_an_optimizer_of_kernels_makes_the_steps_of_double_precision(name):
    weights = random_like_weights(0, dtype=torch.float32)
    boxes = {key: LocalShard(weight, tuple(weight.shape), (0,) * weight.dim()) for key, weight in weights.items()}
    optimizer = build_optimizer(
        section(name), lambda: boxes, lambda _: (False, False), WHOLE_MESH, HEAD_SIZE, choice=BY_TRITON
    )
    for step in range(FEW):
        # The divisor is exact in float32, so that the same gradients reach both.
        gradients = {key: gradient * 4.0 for key, gradient in gradients_of(step, torch.float32).items()}
        optimizer.step(gradients, RATE, torch.tensor(4.0))
    exact = trained(section(name), FEW)
    for parameter, weight in weights.items():
        # Four roundings to 6e-8 of weights up to 4, and of steps that are far smaller.
        torch.testing.assert_close(weight.double(), exact[parameter], rtol=1e-6, atol=1e-6)


def test_shards_that_a_kernel_would_misread_are_refused():
    tensors = state(12)
    with pytest.raises(ValueError, match="float32"):
        adamw_(*(tensor.double() for tensor in tensors), NUMBERS, RATE, DECAY)
    square = [tensor.view(3, 4) for tensor in tensors]
    square[1] = square[1].view(4, 3).t()
    with pytest.raises(ValueError, match="strides"):
        adamw_(*square, NUMBERS, RATE, DECAY)
