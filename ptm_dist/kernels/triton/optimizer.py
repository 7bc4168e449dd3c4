"""AdamW and LAMB in one pass over memory: a launch for each shard, on float32 weights and moments.

Gradients are float32 or bfloat16. What they are divided by is read on the device: where it is no finite number nothing
is written. Sums of squares are taken per program and added in a fixed order, so that they have the same bits each time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptm_dist.kernels.moments import MomentNumbers

_BLOCK = 1024
"""Elements of a program; eight for each of 128 threads, two vectors of 128 bits in float32."""


def adamw_(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    moments: MomentNumbers,
    learning_rate: float,
    weight_decay: float,
    divisor: Tensor | None = None,
    copy: Tensor | None = None,
) -> None:
    """Update a shard in place as :class:`ptm_dist.optim.adamw.AdamW` says.

    Args:
        weight: float32, contiguous, any shape; fewer than 2^31 elements.
        gradient: of its shape, float32 or bfloat16; is only read.
        first: the first moment, float32.
        second: the second moment, float32.
        moments: of this update.
        learning_rate: of this update.
        weight_decay: decoupled.
        divisor: what the gradient is divided by, a scalar on the device, any float type.
        copy: where the new weight is written besides, in its own type; a skipped update leaves it.
    """
    _check(weight, gradient, first, second)
    size = weight.numel()
    _adamw[(triton.cdiv(size, _BLOCK),)](
        weight, gradient, first, second, divisor, copy, size,
        moments.beta1, moments.rest1, moments.beta2, moments.rest2,
        learning_rate * moments.first_factor, moments.root_factor, moments.eps, 1.0 - learning_rate * weight_decay,
        BLOCK=_BLOCK,
    )  # fmt: skip


def lamb_update_(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    moments: MomentNumbers,
    weight_decay: float,
    rows: int,
    divisor: Tensor | None = None,
    update: Tensor | None = None,
) -> Tensor:
    """First half of :class:`ptm_dist.optim.lamb.Lamb`: moments in place, and the update.

    Args:
        weight: float32, contiguous; fewer than 2^31 elements; is only read.
        gradient: of its shape, float32 or bfloat16.
        first: the first moment, float32.
        second: the second moment, float32.
        moments: of this update.
        weight_decay: part of the update.
        rows: of equal size that the tensors are cut into, one after the other.
        divisor: what the gradient is divided by, a scalar on the device, any float type.
        update: where the update is written, float32; in place of the gradient when left out. It is 0 where the
            divisor is no finite number.

    Returns: sums of squares of weight and update by row, ``[2, rows]``, float32.
    """
    _check(weight, gradient, first, second)
    width = weight.numel() // rows
    blocks = triton.cdiv(width, _BLOCK)
    squares = torch.empty(2, rows, blocks, dtype=torch.float32, device=weight.device)
    _lamb_update[(rows * blocks,)](
        weight, gradient, first, second, gradient if update is None else update, squares, divisor,
        width, blocks, rows * blocks,
        moments.beta1, moments.rest1, moments.beta2, moments.rest2,
        moments.first_factor, moments.root_factor, moments.eps, weight_decay,
        BLOCK=_BLOCK,
    )  # fmt: skip
    return squares.sum(2)


def lamb_apply_(weight: Tensor, update: Tensor, factors: Tensor, copy: Tensor | None = None) -> None:
    """Second half: add an update times a factor.

    Args:
        weight: float32, contiguous; fewer than 2^31 elements.
        update: of its shape, float32, contiguous.
        factors: by row of the weight, as in :func:`lamb_update_`, float32; any shape of as many elements as rows.
        copy: where the new weight is written besides, in its own type.
    """
    _check(weight, update)
    rows = factors.numel()
    width = weight.numel() // rows
    blocks = triton.cdiv(width, _BLOCK)
    _lamb_apply[(rows * blocks,)](weight, update, factors.contiguous(), copy, width, blocks, BLOCK=_BLOCK)


def _check(weight: Tensor, *others: Tensor) -> None:
    """Raises: ValueError for tensors that a kernel would misread."""
    if weight.dtype != torch.float32 or weight.numel() >= 1 << 31:
        raise ValueError(
            f"kernels update float32 shards of fewer than 2^31 elements, not {weight.dtype} {weight.shape}"
        )
    for tensor in (weight, *others):
        if tensor.shape != weight.shape or not tensor.is_contiguous():
            raise ValueError(
                f"a tensor of {tensor.shape}, strides {tensor.stride()}, beside a weight of {weight.shape}"
            )


@triton.jit
def _divided(gradient: tl.tensor, divisor: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The gradient, and for each element 1 where it is to be used, else 0."""
    if divisor is None:
        used = tl.full(gradient.shape, 1, tl.int32)
    else:
        by = tl.load(divisor).to(tl.float32)
        gradient = gradient / by
        # As a number: the interpreter cannot broadcast a truth.
        used = tl.broadcast_to((tl.abs(by) < float("inf")).to(tl.int32), gradient.shape)
    return gradient, used


@triton.jit
def _moved(
    gradient: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    beta1: tl.tensor,
    rest1: tl.tensor,
    beta2: tl.tensor,
    rest2: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    return beta1 * first + rest1 * gradient, beta2 * second + rest2 * gradient * gradient


@triton.jit
def _adamw(
    weights: tl.tensor,
    gradients: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    divisor: tl.tensor,
    copy: tl.tensor,
    size: tl.tensor,
    beta1: tl.tensor,
    rest1: tl.tensor,
    beta2: tl.tensor,
    rest2: tl.tensor,
    rate: tl.tensor,
    root_factor: tl.tensor,
    eps: tl.tensor,
    shrink: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < size
    weight = tl.load(weights + places, mask=inside)
    first = tl.load(firsts + places, mask=inside)
    second = tl.load(seconds + places, mask=inside)
    gradient, used = _divided(tl.load(gradients + places, mask=inside).to(tl.float32), divisor)
    first, second = _moved(gradient, first, second, beta1, rest1, beta2, rest2)
    weight = weight * shrink - rate * first / (tl.sqrt(second) * root_factor + eps)
    written = inside & (used != 0)
    tl.store(weights + places, weight, mask=written)
    tl.store(firsts + places, first, mask=written)
    tl.store(seconds + places, second, mask=written)
    if copy is not None:
        tl.store(copy + places, weight.to(copy.dtype.element_ty), mask=written)


@triton.jit
def _lamb_update(
    weights: tl.tensor,
    gradients: tl.tensor,
    firsts: tl.tensor,
    seconds: tl.tensor,
    updates: tl.tensor,
    squares: tl.tensor,
    divisor: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    programs: tl.tensor,
    beta1: tl.tensor,
    rest1: tl.tensor,
    beta2: tl.tensor,
    rest2: tl.tensor,
    first_factor: tl.tensor,
    root_factor: tl.tensor,
    eps: tl.tensor,
    weight_decay: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    columns = program % blocks * BLOCK + tl.arange(0, BLOCK)
    places = program // blocks * width + columns
    inside = columns < width
    weight = tl.load(weights + places, mask=inside, other=0.0)
    first = tl.load(firsts + places, mask=inside, other=0.0)
    second = tl.load(seconds + places, mask=inside, other=0.0)
    gradient, used = _divided(tl.load(gradients + places, mask=inside, other=0.0).to(tl.float32), divisor)
    first, second = _moved(gradient, first, second, beta1, rest1, beta2, rest2)
    update = first * first_factor / (tl.sqrt(second) * root_factor + eps) + weight_decay * weight
    written = inside & (used != 0)
    update = tl.where(written, update, 0.0)
    tl.store(firsts + places, first, mask=written)
    tl.store(seconds + places, second, mask=written)
    tl.store(updates + places, update, mask=inside)
    tl.store(squares + program, tl.sum(weight * weight))
    tl.store(squares + programs + program, tl.sum(update * update))


@triton.jit
def _lamb_apply(
    weights: tl.tensor,
    updates: tl.tensor,
    factors: tl.tensor,
    copy: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    row = program // blocks
    columns = program % blocks * BLOCK + tl.arange(0, BLOCK)
    places = row * width + columns
    inside = columns < width
    weight = tl.load(weights + places, mask=inside) + tl.load(factors + row) * tl.load(updates + places, mask=inside)
    tl.store(weights + places, weight, mask=inside)
    if copy is not None:
        tl.store(copy + places, weight.to(copy.dtype.element_ty), mask=inside)
