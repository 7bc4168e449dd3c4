"""Attention over some of the keys, in a form from which attention over all of them can be put together.

Beside its output, such a part gives the logarithm of its softmax's denominator for each query (log-sum-exp). With
it, outputs of several parts add up exactly, and so do the gradients (FlashAttention-2, arXiv 2307.08691, section 3).

Shapes: queries ``[batch, heads, q, head_size]``, keys and values ``[batch, heads, k, head_size]``, log-sum-exp
``[batch, heads, q]`` in float32, for float64 in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.seen import Seen
from ptm_dist.kernels.wide import wide_dtype
from ptm_dist.parallel.attention_kernels import kernel_for


def attend(
    query: Tensor, key: Tensor, value: Tensor, seen: Seen, choice: Choice | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over these keys alone; shapes as the module says; `choice` is of the form with dropout.

    Returns: output, in the queries' type, and log-sum-exp; 0 and minus infinity for a query that sees none of the keys.
    """
    output, lse = kernel_for(query, key, value, seen, choice).forward(query, key, value, seen)
    if seen.mask is None:
        return output, lse
    # Kernels leave what they like for such a query: the CPU's gives a log-sum-exp of 0.
    blind = ~seen.mask.any(-1)
    return output.masked_fill(blind[..., None], 0.0), lse.masked_fill(blind, -math.inf)


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    seen: Seen,
    choice: Choice | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What these keys contribute to the gradients of queries, keys and values, in their types.

    Args:
        grad: of `output`.
        query: as given to :func:`attend`.
        key: see query.
        value: see query.
        output: of attention over all keys, not just these.
        lse: log-sum-exp over all keys; plus infinity for a query that sees none at all.
        seen: as given to :func:`attend`.
        choice: see seen.
    """
    return kernel_for(query, key, value, seen, choice).backward(grad, query, key, value, output, lse, seen)


class Merge:
    """Attention over all keys, put together from parts in any order.

    Args:
        query: all queries, for their shape and type.
    """

    def __init__(self, query: Tensor) -> None:
        self._dtype = query.dtype
        self._output = torch.zeros(query.shape, dtype=wide_dtype(query.dtype), device=query.device)
        self._lse = self._output.new_full(query.shape[:-1], -math.inf)

    def add(self, queries: slice, output: Tensor, lse: Tensor) -> None:
        """Take in what :func:`attend` gave for the queries in a range."""
        before = self._lse[:, :, queries]
        after = torch.logaddexp(before, lse)
        # Where no key was seen yet, the difference of two infinities would be no number.
        base = after.clamp_min(torch.finfo(after.dtype).min)
        part = self._output[:, :, queries]
        part.mul_((before - base).exp()[..., None]).add_(output * (lse - base).exp()[..., None])
        self._lse[:, :, queries] = after

    def result(self) -> tuple[Tensor, Tensor]:
        """Output in the queries' type, and the log-sum-exp that :func:`attend_backward` wants."""
        return self._output.to(self._dtype), self._lse.masked_fill(self._lse == -math.inf, math.inf)
