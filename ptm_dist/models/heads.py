"""From hidden states to predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.cross_entropy import CrossEntropy
from ptm_dist.kernels.linear_cross_entropy import Portion, Score, SharedVocabulary, logits_of, score_hidden
from ptm_dist.models.spec import ModelSpec, NormPosition
from ptm_dist.models.transformer import activation


def _at(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """The hidden states ``[n, hidden]`` of chosen positions of the flattened batch; all, in their shape, without."""
    return hidden if positions is None else hidden.flatten(0, 1)[positions]


class Decoder(nn.Linear):
    """From hidden states to logits over the vocabulary, or with targets to what the logits are worth.

    Args:
        size: of the hidden states.
        vocab_size: tokens of the vocabulary.
        bias: whether each token has one.
        counts_hits: whether it is told how many targets were the likeliest token.

    Attributes:
        portion: tokens whose logits are there at a time; None: what suits the device.
    """

    choice = Choice()

    def __init__(self, size: int, vocab_size: int, *, bias: bool, counts_hits: bool) -> None:
        super().__init__(size, vocab_size, bias=bias)
        self.kind = CrossEntropy(counts_hits=counts_hits)
        self.portion: Portion | None = None

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor | Score:  # type: ignore[override]
        """``[..., size]`` to ``[..., vocab]``, or with targets, ``[tokens]``, to a score."""
        return self.logits(hidden) if targets is None else self.score(hidden, targets)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., size]`` to ``[..., vocab]``."""
        return logits_of(hidden, self.weight, self.bias)

    def score(self, hidden: Tensor, targets: Tensor, shared: SharedVocabulary | None = None) -> Score:
        """See :func:`ptm_dist.kernels.linear_cross_entropy.score_hidden`."""
        return score_hidden(
            self.logits, hidden, self.weight, self.bias, targets, self.kind, self.choice, shared, self.portion
        )


class CausalHead(nn.Module):
    """Logits of the next token; what pre-LayerNorm blocks give is normalised first.

    A score has no hits: they would take another pass over all logits.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden_size, pre = spec.block.hidden_size, spec.block.norm_position is NormPosition.PRE
        self.norm = nn.LayerNorm(hidden_size, eps=spec.block.layer_norm_eps) if pre else None
        self.decoder = Decoder(hidden_size, spec.embedding.vocab_size, bias=False, counts_hits=False)

    def forward(self, hidden: Tensor, positions: Tensor | None = None, targets: Tensor | None = None) -> Tensor | Score:
        """``[batch, seq, hidden]`` to ``[batch, seq, vocab]``, or ``[n, vocab]`` at chosen positions, or a score."""
        hidden = _at(hidden, positions)
        return self.decoder(hidden if self.norm is None else self.norm(hidden), targets)


class MaskedHead(nn.Module):
    """Logits of masked tokens: a layer back to the embedding's width, then the vocabulary (BERT's published code)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.embedding.size
        self.dense = nn.Linear(spec.block.hidden_size, width)
        self.activation = activation(spec.block.activation)
        self.norm = nn.LayerNorm(width, eps=spec.block.layer_norm_eps)
        self.decoder = Decoder(width, spec.embedding.vocab_size, bias=True, counts_hits=True)

    def forward(self, hidden: Tensor, positions: Tensor | None = None, targets: Tensor | None = None) -> Tensor | Score:
        """``[batch, seq, hidden]`` to ``[batch, seq, vocab]``, or ``[n, vocab]`` at chosen positions, or a score."""
        return self.decoder(self.norm(self.activation(self.dense(_at(hidden, positions)))), targets)


class PairHead(nn.Module):
    """Two logits per sample from its first position: the parts belong together as they stand, or not."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to ``[batch, 2]``."""
        return self.classifier(torch.tanh(self.pooler(hidden[:, 0])))
