"""Sum of token, position and segment embeddings, its LayerNorm and dropout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.compiled import compiled
from ptm_dist.kernels.dropout import Drop, drop_of, dropped, fields

Norm = tuple[Tensor, Tensor, float]
"""Weight and bias of LayerNorm, and what is added to the variance."""


def embed(
    token: Tensor, position: Tensor, segment: Tensor | None, norm: Norm | None, drop: Drop | None, choice: Choice
) -> Tensor:
    """``dropout(LayerNorm(token + position + segment))``, ``[batch, seq, width]``.

    Args:
        token: rows of the tokens, ``[batch, seq, width]``.
        position: rows of the positions, the same shape, or ``[seq, width]`` for all samples.
        segment: rows of the segments, ``[batch, seq, width]``, if there are segments.
        norm: LayerNorm of the sum, if there is one.
        drop: dropout of the result, if there is one.
        choice: of the form that computes it.

    Raises: ValueError if a form is asked for that there is not.
    """
    match choice.form(Operation.EMBEDDING, token, drops=drop is not None):
        case Form.REFERENCE:
            return _reference(token, position, segment, norm, drop)
        case Form.COMPILE:
            return compiled(_reference)(token, position, segment, norm, drop)
        case Form.TRITON:
            return _Embed.apply(token, position, segment, *(norm or (None, None, 0.0)), *fields(drop))
        case form:
            raise ValueError(f"{Operation.EMBEDDING} has no form {form}")


def _reference(token: Tensor, position: Tensor, segment: Tensor | None, norm: Norm | None, drop: Drop | None) -> Tensor:
    total = token + position
    if segment is not None:
        total = total + segment
    if norm is not None:
        weight, bias, eps = norm
        total = F.layer_norm(total, total.shape[-1:], weight, bias, eps)
    return dropped(total, drop)


class _Embed(torch.autograd.Function):
    """By a kernel; with a norm the sum and two numbers for each row are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        token: Tensor,
        position: Tensor,
        segment: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        probability: float,
        *places: Tensor | None,
    ) -> Tensor:
        from ptm_dist.kernels.triton.embedding import embed as kernel

        norm = None if weight is None or bias is None else (weight, bias, eps)
        out, kept = kernel(token, position, segment, norm, drop_of(probability, *places))
        total, (mean, inverse) = kept or (None, (None, None))
        ctx.probability, ctx.position_shape = probability, position.shape
        ctx.save_for_backward(total, weight, mean, inverse, *places)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        of_total, of_weight, of_bias = _embed_backward(of_out, ctx.probability, *ctx.saved_tensors)
        # Where samples share the rows of positions, so do their gradients.
        of_position = of_total.sum_to_size(ctx.position_shape) if ctx.needs_input_grad[1] else None
        gradients = of_total, of_position, of_total, of_weight, of_bias
        wanted = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if needed else None for gradient, needed in wanted), None, None, None, None, None


def _embed_backward(
    of_out: Tensor,
    probability: float,
    total: Tensor | None,
    weight: Tensor | None,
    mean: Tensor | None,
    inverse: Tensor | None,
    *places: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    from ptm_dist.kernels.triton.add_norm import drop_add
    from ptm_dist.kernels.triton.embedding import embed_backward

    drop = drop_of(probability, *places)
    if total is None or weight is None or mean is None or inverse is None:
        return of_out if drop is None else drop_add(of_out, None, drop), None, None
    return embed_backward(of_out, total, weight, (mean, inverse), drop)
