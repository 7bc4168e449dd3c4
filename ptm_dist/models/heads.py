"""From hidden states to predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptm_dist.models.spec import ModelSpec, NormPosition
from ptm_dist.models.transformer import activation


def _at(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """The hidden states ``[n, hidden]`` of chosen positions of the flattened batch; all, in their shape, without."""
    return hidden if positions is None else hidden.flatten(0, 1)[positions]


class CausalHead(nn.Module):
    """Logits of the next token; what pre-LayerNorm blocks give is normalised first."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden_size, pre = spec.block.hidden_size, spec.block.norm_position is NormPosition.PRE
        self.norm = nn.LayerNorm(hidden_size, eps=spec.block.layer_norm_eps) if pre else None
        self.decoder = nn.Linear(hidden_size, spec.embedding.vocab_size, bias=False)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """``[batch, seq, hidden]`` to ``[batch, seq, vocab]``, or ``[n, vocab]`` at chosen positions."""
        hidden = _at(hidden, positions)
        return self.decoder(hidden if self.norm is None else self.norm(hidden))


class MaskedHead(nn.Module):
    """Logits of masked tokens: a layer back to the embedding's width, then the vocabulary (BERT's published code)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.embedding.size
        self.dense = nn.Linear(spec.block.hidden_size, width)
        self.activation = activation(spec.block.activation)
        self.norm = nn.LayerNorm(width, eps=spec.block.layer_norm_eps)
        self.decoder = nn.Linear(width, spec.embedding.vocab_size)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """``[batch, seq, hidden]`` to ``[batch, seq, vocab]``, or ``[n, vocab]`` at chosen positions."""
        return self.decoder(self.norm(self.activation(self.dense(_at(hidden, positions)))))


class PairHead(nn.Module):
    """Two logits per sample from its first position: the parts belong together as they stand, or not."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[batch, seq, hidden]`` to ``[batch, 2]``."""
        return self.classifier(torch.tanh(self.pooler(hidden[:, 0])))
