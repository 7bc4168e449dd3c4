"""Dropout of a branch, its addition to the residual stream, and LayerNorm of the sum."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.compiled import compiled
from ptm_dist.kernels.dropout import Drop, drop_of, dropped_sum, fields


def add(branch: Tensor, residual: Tensor, drop: Drop | None, choice: Choice) -> Tensor:
    """``residual + dropout(branch)``, ``[batch, seq, hidden]``.

    Raises: ValueError if a form is asked for that there is not.
    """
    if drop is None:
        return residual + branch
    match choice.form(Operation.ADD_NORM, branch, drops=True):
        case Form.REFERENCE:
            return dropped_sum(branch, residual, drop)
        case Form.COMPILE:
            return compiled(dropped_sum)(branch, residual, drop)
        case Form.TRITON:
            return _Add.apply(branch, residual, *fields(drop))
        case form:
            raise ValueError(f"{Operation.ADD_NORM} has no form {form}")


def add_norm(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, drop: Drop | None, choice: Choice
) -> tuple[Tensor, Tensor]:
    """LayerNorm of ``residual + dropout(branch)``, and the sum itself, ``[batch, seq, hidden]``.

    Raises: ValueError if a form is asked for that there is not.
    """
    match choice.form(Operation.ADD_NORM, branch, drops=drop is not None):
        case Form.REFERENCE:
            return _reference(branch, residual, weight, bias, eps, drop)
        case Form.COMPILE:
            return compiled(_reference)(branch, residual, weight, bias, eps, drop)
        case Form.TRITON:
            return _AddNorm.apply(branch, residual, weight, bias, eps, *fields(drop))
        case form:
            raise ValueError(f"{Operation.ADD_NORM} has no form {form}")


def _reference(
    branch: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, drop: Drop | None
) -> tuple[Tensor, Tensor]:
    total = dropped_sum(branch, residual, drop)
    return F.layer_norm(total, total.shape[-1:], weight, bias, eps), total


class _Add(torch.autograd.Function):
    """The sum alone, by a kernel."""

    @staticmethod
    def forward(ctx: Any, branch: Tensor, residual: Tensor, probability: float, *places: Tensor) -> Tensor:
        from ptm_dist.kernels.triton.add_norm import drop_add

        ctx.probability = probability
        ctx.save_for_backward(*places)
        return drop_add(branch, residual, Drop(probability, *places))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from ptm_dist.kernels.triton.add_norm import drop_add

        drop = Drop(ctx.probability, *ctx.saved_tensors)
        of_branch = drop_add(gradient, None, drop) if ctx.needs_input_grad[0] else None
        return of_branch, gradient if ctx.needs_input_grad[1] else None, None, None, None, None


class _AddNorm(torch.autograd.Function):
    """Sum and norm, by a kernel; the sum and two numbers for each row are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        branch: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        probability: float,
        *places: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from ptm_dist.kernels.triton.add_norm import add_norm as kernel

        ctx.probability = probability
        normed, total, statistics = kernel(branch, residual, weight, bias, eps, drop_of(probability, *places))
        ctx.save_for_backward(total, weight, *statistics, *places)
        ctx.set_materialize_grads(False)
        return normed, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_normed: Tensor | None, of_total: Tensor | None) -> tuple[Tensor | None, ...]:
        from ptm_dist.kernels.triton.add_norm import add_norm_backward, drop_add

        total, weight, mean, inverse, *places = ctx.saved_tensors
        drop = drop_of(ctx.probability, *places)
        gradients: tuple[Tensor | None, ...]
        if of_normed is not None:
            gradients = add_norm_backward(of_normed, of_total, total, weight, (mean, inverse), drop)
        else:
            of_branch = of_total if drop is None or of_total is None else drop_add(of_total, None, drop)
            gradients = of_branch, of_total, None, None
        wanted = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if needed else None for gradient, needed in wanted), None, None, None, None, None
