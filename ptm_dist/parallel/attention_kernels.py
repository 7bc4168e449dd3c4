"""Ways to compute attention and its gradient that tell the log-sum-exp of scores, by device.

Shapes: queries ``[batch, heads, q, head_size]``, keys and values ``[batch, heads, k, head_size]``, log-sum-exp
``[batch, heads, q]`` in float32, for float64 in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

_aten = torch.ops.aten


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
        attend = _aten._scaled_dot_product_flash_attention_for_cpu
        output, lse = attend(query, key, value, 0.0, seen.causal, attn_mask=bias)
        return output, lse

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        bias = seen.bias(query.dtype)
        turn = _aten._scaled_dot_product_flash_attention_for_cpu_backward
        grads = turn(grad, query, key, value, output, lse, 0.0, seen.causal, attn_mask=bias)
        return grads[0], grads[1], grads[2]


class FlashKernel:
    """torch's flash attention for CUDA; without a mask."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        output, lse, *_ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, seen.causal)
        return output, lse

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        unused = torch.empty(2, dtype=torch.uint64, device=query.device)
        # The kernel takes the log-sum-exp for contiguous without looking.
        tensors = (grad, query, key, value, output, lse.contiguous())
        lengths = (None, None, query.shape[2], key.shape[2])
        grads = _aten._scaled_dot_product_flash_attention_backward(
            *tensors, *lengths, 0.0, seen.causal, unused, unused[0]
        )
        return grads[0], grads[1], grads[2]


class EfficientKernel:
    """torch's memory-efficient attention for CUDA; any mask."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        bias = self._bias(query, key, seen)
        attend = _aten._scaled_dot_product_efficient_attention
        output, lse, *_ = attend(query, key, value, bias, True, 0.0, seen.causal)
        return output, lse[:, :, : query.shape[2]]

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        unused = torch.empty((), dtype=torch.int64, device=query.device)
        # The kernel wants rows of the log-sum-exp to be whole blocks, and takes the output for contiguous by position.
        lse = F.pad(lse, (0, -lse.shape[2] % 32), value=math.inf)
        output = output.transpose(1, 2).contiguous().transpose(1, 2)
        tensors = (grad, query, key, value, self._bias(query, key, seen), output, lse)
        turn = _aten._scaled_dot_product_efficient_attention_backward
        grads = turn(*tensors, unused, unused, 0.0, [True, True, True, False], seen.causal)
        return grads[0], grads[1], grads[2]

    def _bias(self, query: Tensor, key: Tensor, seen: Seen) -> Tensor | None:
        """What is added to scores; its rows start at multiples of 16 elements, as the kernel asks."""
        bias = seen.bias(query.dtype)
        if bias is None:
            return None
        keys = key.shape[2]
        return F.pad(bias, (0, -keys % 16))[..., :keys].expand(*query.shape[:3], keys)


def kernel_for(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Kernel:
    """The fastest way that the device has for these shapes and this type."""
    if query.numel() == 0:
        return PlainKernel()
    if query.device.type == "cpu":
        return CpuKernel()
    if query.device.type == "cuda" and query.shape[-1] % 8 == 0:
        asked = SDPAParams(query, key, value, seen.mask, 0.0, seen.causal, False)
        if can_use_flash_attention(asked):
            return FlashKernel()
        if can_use_efficient_attention(asked):
            return EfficientKernel()
    return PlainKernel()
