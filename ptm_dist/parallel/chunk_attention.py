"""Attention over some of the keys, in a form from which attention over all of them can be put together.

Beside its output, such a part gives the logarithm of its softmax's denominator for each query (log-sum-exp). With
it, outputs of several parts add up exactly, and so do the gradients (FlashAttention-2, arXiv 2307.08691, section 3).

Shapes: queries ``[batch, heads, q, head_size]``, keys and values ``[batch, heads, k, head_size]``, log-sum-exp
``[batch, heads, q]`` in float32, for float64 in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over tensors of `dtype` are kept: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class Seen:
    """Which keys of a part its queries see; all, if neither is given.

    Attributes:
        mask: bool, broadcast to ``[batch, heads, q, k]``.
        causal: query i sees keys 0 to i; there are as many keys as queries, and no mask.
    """

    mask: Tensor | None = None
    causal: bool = False

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as something to add to scores: 0 or minus infinity, the mask's shape."""
        if self.mask is None:
            return None
        return torch.zeros_like(self.mask, dtype=dtype).masked_fill_(~self.mask, -math.inf)


class Kernel(Protocol):
    """One way to compute attention and its gradient; all ways give the same, up to rounding."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Output, in the queries' shape and type, and log-sum-exp; anything for queries that see no key."""

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values; `output` and `lse` are those of attention over all parts."""


class PlainKernel:
    """Matrix products as in the textbook; scores are kept whole."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        scores = self._scores(query, key, seen)
        lse = scores.logsumexp(-1)
        return ((scores - lse[..., None]).exp() @ value.to(scores.dtype)).to(query.dtype), lse

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        weights = (self._scores(query, key, seen) - lse[..., None]).exp()
        dtype = weights.dtype
        grad, output = grad.to(dtype), output.to(dtype)
        grad_weights = grad @ value.to(dtype).mT
        grad_scores = weights * (grad_weights - (grad * output).sum(-1, keepdim=True)) / math.sqrt(query.shape[-1])
        grads = grad_scores @ key.to(dtype), grad_scores.mT @ query.to(dtype), weights.mT @ grad
        return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)

    def _scores(self, query: Tensor, key: Tensor, seen: Seen) -> Tensor:
        dtype = wide(query.dtype)
        scores = query.to(dtype) @ key.to(dtype).mT / math.sqrt(query.shape[-1])
        if seen.causal:
            return scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
        return scores if seen.mask is None else scores.masked_fill(~seen.mask, -math.inf)


class CpuKernel:
    """torch's flash attention for CPUs."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        bias = seen.bias(query.dtype)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = attend(query, key, value, 0.0, seen.causal, attn_mask=bias)
        return output, lse

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        bias = seen.bias(query.dtype)
        turn = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = turn(grad, query, key, value, output, lse, 0.0, seen.causal, attn_mask=bias)
        return grads[0], grads[1], grads[2]


def kernel_for(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Kernel:
    """The fastest way that the device has for these shapes and this type."""
    if query.device.type == "cpu" and query.numel():
        return CpuKernel()
    return PlainKernel()


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Attention over these keys alone; shapes as the module says.

    Returns: output, in the queries' type, and log-sum-exp; 0 and minus infinity for a query that sees none of the keys.
    """
    output, lse = kernel_for(query, key, value, seen).forward(query, key, value, seen)
    if seen.mask is None:
        return output, lse
    # Kernels leave what they like for such a query: the CPU's gives a log-sum-exp of 0.
    blind = ~seen.mask.any(-1)
    return output.masked_fill(blind[..., None], 0.0), lse.masked_fill(blind, -math.inf)


def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
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
    """
    return kernel_for(query, key, value, seen).backward(grad, query, key, value, output, lse, seen)


class Merge:
    """Attention over all keys, put together from parts in any order.

    Args:
        query: all queries, for their shape and type.
    """

    def __init__(self, query: Tensor) -> None:
        self._dtype = query.dtype
        self._output = torch.zeros(query.shape, dtype=wide(query.dtype), device=query.device)
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
