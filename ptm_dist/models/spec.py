"""What distinguishes one transformer of the GPT and BERT families from another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Activation(StrEnum):
    """Nonlinearity of the feed-forward layer (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""

    GELU_TANH = "gelu_tanh"
    """The tanh approximation that GPT-1/2 and the original BERT and ALBERT code use."""
    GELU_ERF = "gelu_erf"
    """The exact form, as in RoBERTa and the HF BERT configuration."""


class NormPosition(StrEnum):
    """Where LayerNorm stands in a block."""

    PRE = "pre"
    """``x + f(norm(x))``: GPT-2, GPT-3."""
    POST = "post"
    """``norm(x + f(x))``: the original transformer, GPT-1, BERT, RoBERTa, ALBERT."""


@dataclass(frozen=True)
class BlockSpec:
    """One transformer block.

    Attributes:
        hidden_size: width of the residual stream.
        num_heads: attention heads; divides hidden_size.
        ffn_hidden_size: width of the feed-forward layer.
        activation: its nonlinearity.
        norm_position: before or after the residual addition.
        layer_norm_eps: added to the variance.
        causal: a position attends to itself and earlier ones only.
    """

    hidden_size: int
    num_heads: int
    ffn_hidden_size: int
    activation: Activation
    norm_position: NormPosition
    layer_norm_eps: float
    causal: bool

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model on a stack of equal blocks.

    Attributes:
        block: the block.
        num_layers: how many of them.
        vocab_size: rows of the token embedding.
        max_positions: rows of the position embedding.
        tie_embeddings: the head is the token embedding (Press & Wolf 2017, arXiv 1608.05859).
        initializer_std: standard deviation of initial weights.
        position_initializer_std: the same for position embeddings.
    """

    block: BlockSpec
    num_layers: int
    vocab_size: int
    max_positions: int
    tie_embeddings: bool
    initializer_std: float
    position_initializer_std: float
