"""Matrices of which each rank has some outputs, with communication that hides behind their products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ptm_dist.kernels.backward import is_wanted
from ptm_dist.parallel.collectives import gather_sequence, start_gather, start_reduce_scatter, start_sum
from ptm_dist.parallel.mesh import RankGroup


def column_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, ranks: RankGroup) -> Tensor:
    """This rank's outputs of a matrix whose inputs every rank has.

    In the backward pass the sum over ranks of the inputs' gradient is under way while the weight's is computed
    (Megatron-LM's asynchronous all-reduce; compare arXiv 2205.05198, section 4.2).

    Args:
        hidden: the same on every rank, ``[..., in]``.
        weight: this rank's rows, ``[out_local, in]``; there may be none.
        bias: ``[out_local]``, if there is one.
        ranks: that share the rows.

    Returns: ``[..., out_local]``.
    """
    return _ColumnLinear.apply(hidden, weight, bias, ranks, 0)


def column_linear_of_split(
    split: Tensor, weight: Tensor, bias: Tensor | None, ranks: RankGroup, positions: int
) -> Tensor:
    """This rank's outputs of a matrix at all positions, of which each rank has a range.

    Only this rank's positions are stored: the others' are gathered again in the backward pass, while the gradient of
    the inputs is computed, which is then summed and shared out while the weight's is computed (arXiv 2205.05198,
    section 4.2.2).

    Args:
        split: ``[batch, own, in]``.
        weight: see :func:`column_linear`.
        bias: see :func:`column_linear`.
        ranks: that share positions and rows.
        positions: of all ranks.

    Returns: ``[batch, positions, out_local]``.
    """
    return _ColumnLinear.apply(split, weight, bias, ranks, positions)


class _ColumnLinear(torch.autograd.Function):
    """Both of them: `positions` is 0 where every rank has all."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ranks: RankGroup, positions: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.ranks, ctx.positions = ranks, positions
        return F.linear(gather_sequence(hidden, ranks, positions) if positions else hidden, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = (is_wanted(ctx, place) for place in range(3))
        arriving = start_gather(hidden, ctx.ranks, ctx.positions) if ctx.positions and for_weight else None
        leaving = None
        if for_input:
            partial = grad @ weight
            leaving = start_reduce_scatter(partial, ctx.ranks) if ctx.positions else start_sum(partial, ctx.ranks)
        weight_grad, bias_grad = None, None
        rows = grad.flatten(0, -2)
        if for_weight:
            whole = hidden if arriving is None else arriving()
            weight_grad = rows.T @ whole.flatten(0, -2)
        if for_bias:
            bias_grad = rows.sum(0)
        return None if leaving is None else leaving(), weight_grad, bias_grad, None, None
