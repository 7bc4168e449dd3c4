"""The transformer block that every family shares (Vaswani et al. 2017, arXiv 1706.03762).

Shapes: hidden states are ``[batch, seq, hidden]``. Widths inside a block are read off the weights, so that
the same code runs on all heads or on a rank's share of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ptm_dist.models.attention import Mixer
from ptm_dist.models.spec import Activation, BlockSpec, NormPosition


def activation(kind: Activation) -> Callable[[Tensor], Tensor]:
    """The elementwise function of that name."""
    return partial(F.gelu, approximate="tanh" if kind is Activation.GELU_TANH else "none")


class Attention(nn.Module):
    """Multi-head self-attention.

    Query, key and value come from one matrix whose rows are ordered ``[head, (query, key, value), head_size]``:
    a contiguous range of rows is a set of whole heads, which tensor parallelism needs.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.head_size = spec.head_size
        self.qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.output = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor, mixer: Mixer, visible: Any) -> Tensor:
        """Mix positions.

        Args:
            hidden: ``[batch, seq, hidden]``.
            mixer: computes the attention.
            visible: which keys each query sees, prepared by the mixer.

        Returns: the shape of `hidden`.
        """
        qkv = self.qkv(hidden)
        batch, seq, width = qkv.shape
        heads = width // (3 * self.head_size)
        query, key, value = qkv.view(batch, seq, heads, 3, self.head_size).permute(3, 0, 2, 1, 4).unbind(0)
        mixed = mixer.mix(query, key, value, visible)
        return self.output(mixed.transpose(1, 2).reshape(batch, seq, heads * self.head_size))


class FeedForward(nn.Module):
    """Two matrices with a nonlinearity between."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.up = nn.Linear(spec.hidden_size, spec.ffn_hidden_size)
        self.down = nn.Linear(spec.ffn_hidden_size, spec.hidden_size)
        self.activation = activation(spec.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape."""
        return self.down(self.activation(self.up(hidden)))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection and a LayerNorm."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.norm_position = spec.norm_position
        self.attention_norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.attention = Attention(spec)
        self.ffn_norm = nn.LayerNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.ffn = FeedForward(spec)

    def forward(self, hidden: Tensor, mixer: Mixer, visible: Any) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape; mixer and visible as in :meth:`Attention.forward`."""
        if self.norm_position is NormPosition.PRE:
            hidden = hidden + self.attention(self.attention_norm(hidden), mixer, visible)
            return hidden + self.ffn(self.ffn_norm(hidden))
        hidden = self.attention_norm(hidden + self.attention(hidden, mixer, visible))
        return self.ffn_norm(hidden + self.ffn(hidden))
