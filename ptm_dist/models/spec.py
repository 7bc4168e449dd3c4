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
    """``x + f(norm(x))``: GPT-2, GPT-3; the head normalises what leaves the last block."""
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
class EmbeddingSpec:
    """From token ids to the first hidden state.

    Attributes:
        vocab_size: rows of the token embedding.
        size: width of the embeddings; a projection follows where it is not the hidden size (ALBERT).
        max_positions: the longest sequence.
        position_offset: row of the position embedding that the first position reads (RoBERTa: 2).
        segments: rows of the segment embedding; 0: there is none.
        normalised: a LayerNorm follows the sum.
    """

    vocab_size: int
    size: int
    max_positions: int
    position_offset: int = 0
    segments: int = 0
    normalised: bool = False


@dataclass(frozen=True)
class InitialWeights:
    """Standard deviations of initial weights.

    Attributes:
        std: of matrices and embeddings.
        position_std: of position embeddings.
        truncated: nothing is drawn beyond two standard deviations (BERT, ALBERT).
        scaled_residuals: projections into the residual stream are divided by ``sqrt(2 * num_layers)`` (GPT-2).
    """

    std: float
    position_std: float
    truncated: bool = False
    scaled_residuals: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A language model on a stack of blocks.

    Attributes:
        block: the block.
        embedding: what stands before the blocks.
        num_layers: how many times a block is applied.
        layer_groups: distinct blocks; each serves ``num_layers / layer_groups`` layers in a row.
        attention_band: every second layer looks back on so many positions, itself included; 0: on all.
        tie_embeddings: the head is the token embedding (Press & Wolf 2017, arXiv 1608.05859).
        pair_head: a second head tells how two text parts belong together.
        initial: how weights start.
        dropout: share of the embeddings, and of what attention and feed-forward layers add, dropped in training.
        attention_dropout: share of the attention probabilities dropped in training.
    """

    block: BlockSpec
    embedding: EmbeddingSpec
    num_layers: int
    layer_groups: int
    attention_band: int
    tie_embeddings: bool
    pair_head: bool
    initial: InitialWeights
    dropout: float = 0.0
    attention_dropout: float = 0.0

    @property
    def draws(self) -> bool:
        """Whether there is dropout of any kind."""
        return self.dropout > 0.0 or self.attention_dropout > 0.0

    def group_of(self, layer: int) -> int:
        """Which block computes a layer."""
        return layer * self.layer_groups // self.num_layers

    def band_of(self, layer: int) -> int:
        """How far back a layer looks; 0: on all positions."""
        return self.attention_band if layer % 2 else 0
