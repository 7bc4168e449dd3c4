"""Embeddings, blocks and heads: the one model that every family is a specification of."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ptm_dist.models.embeddings import Embeddings
from ptm_dist.models.heads import CausalHead, MaskedHead, PairHead
from ptm_dist.models.spec import ModelSpec
from ptm_dist.models.transformer import Block


class ModelOutput(NamedTuple):
    """What a model predicts.

    Attributes:
        tokens: logits over the vocabulary, ``[batch, seq, vocab]``, or ``[n, vocab]`` at chosen positions.
        pairs: logits of 0 (as they stand) and 1 (not), ``[batch, 2]``; None without a pair head.
    """

    tokens: Tensor
    pairs: Tensor | None


class LanguageModel(nn.Module):
    """A transformer with a head over the vocabulary.

    Blocks are kept by number in a dictionary: a part of the model that holds some of them keeps their names.
    With fewer blocks than layers, each serves several layers in a row.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        hidden_size = spec.block.hidden_size
        self.spec = spec
        self.embeddings = Embeddings(spec.embedding, hidden_size, spec.block.layer_norm_eps)
        self.layers = nn.ModuleDict({str(group): Block(spec.block) for group in range(spec.layer_groups)})
        self.head = CausalHead(spec) if spec.block.causal else MaskedHead(spec)
        self.pair_head = PairHead(hidden_size) if spec.pair_head else None
        self.tie()

    def tie(self) -> None:
        """Make the head's matrix the token embedding, where the specification says so."""
        if self.spec.tie_embeddings:
            self.head.decoder.weight = self.embeddings.token.weight

    def blocks(self) -> list[Block]:
        """The distinct blocks in order."""
        return [cast(Block, block) for block in self.layers.values()]

    def forward(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> ModelOutput:
        """Predict tokens, and how the parts of a sample belong together.

        Args:
            input_ids: token ids, ``[batch, seq]``, int64.
            segment_ids: which part of a pair each token belongs to, ``[batch, seq]``, int64; None: all to the first.
            valid: False at padding, ``[batch, seq]``, bool; padding stands at the end, so that a causal model need
                not know of it. Each sample has a valid position.
            positions: where tokens are predicted, indices into the flattened ``[batch * seq]``; None: everywhere.
            documents: number of the document that each token belongs to, ``[batch, seq]``, int64, those of one document
                side by side: tokens see their own document only and count positions from its start. None: a row is
                one text. For causal models.
        """
        hidden = self.encode(input_ids, segment_ids, valid, documents)
        pairs = None if self.pair_head is None else self.pair_head(hidden)
        return ModelOutput(self.head(hidden, positions), pairs)

    def encode(
        self,
        input_ids: Tensor,
        segment_ids: Tensor | None = None,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last block, ``[batch, seq, hidden]``; arguments as in :meth:`forward`."""
        places = None if documents is None else places_in_documents(documents)
        hidden = self.embeddings(input_ids, segment_ids, places)
        visible = self._visible(input_ids, valid, documents)
        blocks = self.blocks()
        for layer in range(self.spec.num_layers):
            hidden = blocks[self.spec.group_of(layer)](hidden, visible[self.spec.band_of(layer)])
        return hidden

    def _visible(self, input_ids: Tensor, valid: Tensor | None, documents: Tensor | None) -> dict[int, Tensor | None]:
        """For each width of attention band, which keys a query sees; None: what the block sees by itself."""
        band = self.spec.attention_band
        if not self.spec.block.causal:
            return {0: None if valid is None else valid[:, None, None, :]}
        if documents is None and not band:
            return {0: None}
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        back = places[:, None] - places[None, :]
        near = (back >= 0) & (back < band)
        if documents is None:
            return {0: None, band: near}
        together = (documents[:, None, :, None] == documents[:, None, None, :]) & (back >= 0)
        return {0: together, band: together & near} if band else {0: together}


def places_in_documents(documents: Tensor) -> Tensor:
    """How many tokens of its document stand before each token of a row, ``[batch, seq]``, int64.

    Args:
        documents: number of the document of each token, ``[batch, seq]``, int64, those of one side by side.
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(starts, places, 0).cummax(dim=1).values
