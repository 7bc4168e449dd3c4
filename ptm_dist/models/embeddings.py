"""From token ids to the first hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.dropout import Drop
from ptm_dist.kernels.embedding import embed
from ptm_dist.models.draws import LayerDraws, Site
from ptm_dist.models.spec import EmbeddingSpec

Parts = tuple[Tensor, Tensor, Tensor | None]
"""Embeddings of tokens ``[batch, seq, width]``, positions ``[seq, width]`` or the same, and segments, if there are."""


class EmbeddingNorm(nn.LayerNorm):
    """LayerNorm of a sum of embeddings, and its dropout."""

    choice = Choice()

    def forward(self, parts: Parts, drop: Drop | None) -> Tensor:  # type: ignore[override]
        """Summands to ``[batch, seq, width]``."""
        return embed(*parts, (self.weight, self.bias, self.eps), drop, self.choice)


class Embeddings(nn.Module):
    """Learned token plus absolute position embeddings; for the BERT family segments and a LayerNorm as well.

    Where the embeddings are narrower than the hidden states, a matrix widens them (ALBERT, arXiv 1909.11942,
    section 3.1).
    """

    choice = Choice()

    def __init__(self, spec: EmbeddingSpec, hidden_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.position_offset = spec.position_offset
        self.token = nn.Embedding(spec.vocab_size, spec.size)
        self.position = nn.Embedding(spec.max_positions + spec.position_offset, spec.size)
        self.segment = nn.Embedding(spec.segments, spec.size) if spec.segments else None
        self.norm = EmbeddingNorm(spec.size, eps=layer_norm_eps) if spec.normalised else None
        self.projection = nn.Linear(spec.size, hidden_size) if spec.size != hidden_size else None

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        draws: LayerDraws | None = None,
    ) -> Tensor:
        """Token, segment and position ids ``[batch, seq]``, int64, to ``[batch, seq, hidden]``.

        Position ids may be ``[seq]``, the same in every row. Without segments all are 0; without positions they count
        from the start of the row. Without draws nothing is dropped.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        segments = None
        if self.segment is not None:
            segments = self.segment(torch.zeros_like(input_ids) if segment_ids is None else segment_ids)
        parts = self.token(input_ids), self.position(position_ids + self.position_offset), segments
        drop = None if draws is None else draws.hidden(Site.FFN_OUTPUT)
        hidden = embed(*parts, None, drop, self.choice) if self.norm is None else self.norm(parts, drop)
        return hidden if self.projection is None else self.projection(hidden)
