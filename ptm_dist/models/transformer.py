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

from ptm_dist.kernels.add_norm import add, add_norm
from ptm_dist.kernels.bias_gelu import bias_gelu
from ptm_dist.kernels.choice import Choice, Form, Operation
from ptm_dist.kernels.dropout import Drop
from ptm_dist.models.attention import Mixer
from ptm_dist.models.draws import LayerDraws, Site
from ptm_dist.models.spec import Activation, BlockSpec, NormPosition


def _approximation(kind: Activation) -> str:
    return "tanh" if kind is Activation.GELU_TANH else "none"


def activation(kind: Activation) -> Callable[[Tensor], Tensor]:
    """The elementwise function of that name."""
    return partial(F.gelu, approximate=_approximation(kind))


class Linear(nn.Linear):
    """A matrix whose bias may be left to what follows it."""

    def forward(self, hidden: Tensor, *, with_bias: bool = True) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return F.linear(hidden, self.weight, self.bias if with_bias else None)


class AddNorm(nn.LayerNorm):
    """LayerNorm of a sum: of the residual stream and what a layer adds to it, dropout included."""

    choice = Choice()

    def forward(self, branch: Tensor, residual: Tensor, drop: Drop | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``[batch, seq, hidden]`` twice to the normed sum and the sum itself."""
        return add_norm(branch, residual, self.weight, self.bias, self.eps, drop, self.choice)


class Attention(nn.Module):
    """Multi-head self-attention.

    Query, key and value come from one matrix whose rows are ordered ``[head, (query, key, value), head_size]``:
    a contiguous range of rows is a set of whole heads, which tensor parallelism needs.

    Attributes:
        first_head: of the whole model, of those that are here.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.head_size = spec.head_size
        self.first_head = 0
        self.qkv = nn.Linear(spec.hidden_size, 3 * spec.hidden_size)
        self.output = nn.Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, hidden: Tensor, mixer: Mixer, visible: Any, draws: LayerDraws | None = None) -> Tensor:
        """Mix positions.

        Args:
            hidden: ``[batch, seq, hidden]``.
            mixer: computes the attention.
            visible: which keys each query sees, prepared by the mixer.
            draws: what dropout is drawn from; None: there is none.

        Returns: the shape of `hidden`.
        """
        qkv = self.qkv(hidden)
        batch, seq, width = qkv.shape
        heads = width // (3 * self.head_size)
        query, key, value = qkv.view(batch, seq, heads, 3, self.head_size).permute(3, 0, 2, 1, 4).unbind(0)
        drop = None if draws is None else draws.attention(self.first_head)
        mixed = mixer.mix(query, key, value, visible, drop)
        return self.output(mixed.transpose(1, 2).reshape(batch, seq, heads * self.head_size))


class FeedForward(nn.Module):
    """Two matrices with a nonlinearity between."""

    choice = Choice()

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.up = Linear(spec.hidden_size, spec.ffn_hidden_size)
        self.down = nn.Linear(spec.ffn_hidden_size, spec.hidden_size)
        self.approximation = _approximation(spec.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape."""
        if self.choice.form(Operation.BIAS_GELU, hidden) is Form.REFERENCE:
            # The product adds the bias on its way.
            return self.down(F.gelu(self.up(hidden), approximate=self.approximation))
        inner = self.up(hidden, with_bias=False)
        return self.down(bias_gelu(inner, self.up.bias, self.approximation, self.choice))


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection and a LayerNorm."""

    choice = Choice()

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.norm_position = spec.norm_position
        norm = nn.LayerNorm if spec.norm_position is NormPosition.PRE else AddNorm
        self.attention_norm = norm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.attention = Attention(spec)
        self.ffn_norm = AddNorm(spec.hidden_size, eps=spec.layer_norm_eps)
        self.ffn = FeedForward(spec)

    def forward(self, hidden: Tensor, mixer: Mixer, visible: Any, draws: LayerDraws | None = None) -> Tensor:
        """``[batch, seq, hidden]`` to the same shape; the other arguments as in :meth:`Attention.forward`."""
        after_attention = None if draws is None else draws.hidden(Site.ATTENTION_OUTPUT)
        after_ffn = None if draws is None else draws.hidden(Site.FFN_OUTPUT)
        if self.norm_position is NormPosition.PRE:
            branch = self.attention(self.attention_norm(hidden), mixer, visible, draws)
            normed, hidden = self.ffn_norm(branch, hidden, after_attention)
            return add(self.ffn(normed), hidden, after_ffn, self.choice)
        branch = self.attention(hidden, mixer, visible, draws)
        hidden, _ = self.attention_norm(branch, hidden, after_attention)
        return self.ffn_norm(self.ffn(hidden), hidden, after_ffn)[0]
