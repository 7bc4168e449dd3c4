"""Ways to compute attention and its gradient that tell the log-sum-exp of scores, by device.

Shapes: queries ``[batch, heads, q, head_size]``, keys and values ``[batch, heads, k, head_size]``, log-sum-exp
``[batch, heads, q]`` in float32, for float64 in float64.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

from ptm_dist.kernels.attention_blocks import attend_in_blocks, attend_in_blocks_backward
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.seen import Seen

_aten = torch.ops.aten


class Kernel(Protocol):
    """One way to compute attention and its gradient; all ways give the same, up to rounding."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Output, in the queries' shape and type, and log-sum-exp; anything for queries that see no key."""

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values; `output` and `lse` are those of attention over all parts."""


class PlainKernel:
    """torch's matrix products, a block of scores at a time; with or without dropout."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        return attend_in_blocks(query, key, value, seen)

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        return attend_in_blocks_backward(grad, query, key, value, output, lse, seen)


class TritonKernel:
    """Our own; with dropout."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """See :class:`Kernel`."""
        from ptm_dist.kernels.triton.attention import attend

        return attend(query, key, value, seen)

    def backward(
        self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, seen: Seen
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`Kernel`."""
        from ptm_dist.kernels.triton.attention_backward import attend_backward

        return attend_backward(grad, query, key, value, output, lse, seen)


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


def kernel_for(query: Tensor, key: Tensor, value: Tensor, seen: Seen, choice: Choice | None = None) -> Kernel:
    """The fastest way that the device has for these shapes and this type; with dropout the one that is chosen."""
    if query.numel() == 0:
        return PlainKernel()
    if seen.drop is not None:
        form = (choice or Choice()).form(Operation.ATTENTION, query, drops=True)
        return TritonKernel() if form is Form.TRITON else PlainKernel()
    if query.device.type == "cpu":
        return CpuKernel()
    if query.device.type == "cuda" and query.shape[-1] % 8 == 0:
        asked = SDPAParams(query, key, value, seen.mask, 0.0, seen.causal, False)
        if can_use_flash_attention(asked):
            return FlashKernel()
        if can_use_efficient_attention(asked):
            return EfficientKernel()
    return PlainKernel()
