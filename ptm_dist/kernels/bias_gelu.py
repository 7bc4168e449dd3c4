"""Addition of a bias and GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.compiled import compiled


def bias_gelu(hidden: Tensor, bias: Tensor, approximate: str, choice: Choice) -> Tensor:
    """``gelu(hidden + bias)``.

    Args:
        hidden: ``[..., width]``, any float type; kernels compute in float32, or float64 where it is.
        bias: ``[width]``.
        approximate: `tanh` or `none`, as in torch.
        choice: the forms of the run.

    Returns: the shape and type of `hidden`.
    """
    form = choice.form(Operation.BIAS_GELU, hidden)
    if form is Form.TRITON and hidden.numel():
        return _BiasGelu.apply(hidden, bias, approximate)
    if form is Form.COMPILE:
        return compiled(_reference)(hidden, bias, approximate)
    return _reference(hidden, bias, approximate)


def _reference(hidden: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return F.gelu(hidden + bias, approximate=approximate)


class _BiasGelu(torch.autograd.Function):
    """Keeps what it was given: the sum with the bias is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, bias: Tensor, approximate: str) -> Tensor:
        from ptm_dist.kernels.triton.bias_gelu import gelu_forward

        hidden = hidden.contiguous()
        ctx.save_for_backward(hidden, bias)
        ctx.approximate = approximate
        return gelu_forward(hidden, bias, approximate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        from ptm_dist.kernels.triton.bias_gelu import gelu_backward

        hidden, bias = ctx.saved_tensors
        of_hidden, of_bias = gelu_backward(gradients[0].contiguous(), hidden, bias, ctx.approximate)
        return of_hidden, of_bias, None
