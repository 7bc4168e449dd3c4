"""Embeddings, blocks and heads: the one model that every family is a specification of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ptm_dist.kernels.choice import Choice
from ptm_dist.kernels.linear_cross_entropy import Score
from ptm_dist.models.attention import Mixer, SdpaMixer, Sight, Window
from ptm_dist.models.draws import Draws, LayerDraws
from ptm_dist.models.embeddings import Embeddings
from ptm_dist.models.heads import CausalHead, MaskedHead, PairHead
from ptm_dist.models.spec import ModelSpec
from ptm_dist.models.transformer import Block
from ptm_dist.models.unpadding import UnpaddedMixer, ValidPositions

_BEFORE_LAYERS = -1


class ModelScore(NamedTuple):
    """What a model's predictions are worth.

    Attributes:
        tokens: losses and hits over the vocabulary, sums over the targets.
        pairs: see :class:`ModelOutput`.
    """

    tokens: Score
    pairs: Tensor | None


class ModelOutput(NamedTuple):
    """What a model predicts.

    Attributes:
        tokens: logits over the vocabulary, ``[batch, seq, vocab]``, or ``[n, vocab]`` at chosen positions.
        pairs: logits of 0 (as they stand) and 1 (not), ``[batch, 2]``; None without a pair head.
    """

    tokens: Tensor
    pairs: Tensor | None


@dataclass(frozen=True)
class Part:
    """Consecutive layers of a model, with what stands before the first and behind the last one.

    Attributes:
        first: its first layer.
        end: the layer behind its last one.
    """

    first: int
    end: int


class LanguageModel(nn.Module):
    """A transformer with a head over the vocabulary, or a part of one.

    Blocks are kept by number in a dictionary: a part keeps the names that its parameters have in the whole. With
    fewer blocks than layers, each serves several layers in a row.

    Args:
        spec: of the whole model.
        part: None for the whole.

    Attributes:
        mixer: attention, between the matrices.
        before_heads: applied to hidden states between the last block and the heads.
        stream_positions: from the positions of a row that are here to those of the residual stream.
    """

    def __init__(self, spec: ModelSpec, part: Part | None = None) -> None:
        super().__init__()
        hidden_size = spec.block.hidden_size
        self.spec = spec
        self.part = part or Part(0, spec.num_layers)
        self.mixer: Mixer = SdpaMixer(drops=spec.attention_dropout > 0.0)
        self.embeddings: Embeddings | None = None
        self.head: CausalHead | MaskedHead | None = None
        self.pair_head: PairHead | None = None
        if self.part.first == 0:
            self.embeddings = Embeddings(spec.embedding, hidden_size, spec.block.layer_norm_eps)
        groups = sorted({spec.group_of(layer) for layer in range(self.part.first, self.part.end)})
        self.layers = nn.ModuleDict({str(group): Block(spec.block) for group in groups})
        if self.part.end == spec.num_layers:
            self.head = CausalHead(spec) if spec.block.causal else MaskedHead(spec)
            self.pair_head = PairHead(hidden_size) if spec.pair_head else None
        self.before_heads: Callable[[Tensor], Tensor] | None = None
        self.stream_positions: Callable[[Tensor], Tensor] = lambda positions: positions
        self.tie()

    def tie(self) -> None:
        """Make the head's matrix the token embedding, where the specification says so and both are here."""
        if self.spec.tie_embeddings and self.head is not None and self.embeddings is not None:
            self.head.decoder.weight = self.embeddings.token.weight

    def choose(self, choice: Choice) -> None:
        """Say which forms compute the operations that have several, attention over whole rows among them."""
        self.mixer = SdpaMixer(choice, drops=self.spec.attention_dropout > 0.0)
        for module in self.modules():
            if hasattr(module, "choice"):
                setattr(module, "choice", choice)  # noqa: B010  a class attribute is no part of a Module to mypy

    def blocks(self) -> list[Block]:
        """The distinct blocks in order."""
        return [cast(Block, block) for block in self.layers.values()]

    def parameter_names(self) -> dict[str, str]:
        """For each parameter, by its name here, the name it has in the whole model.

        They differ for the head's matrix in a part without the embeddings that it is tied to.
        """
        names = {name: name for name, _ in self.named_parameters()}
        if self.spec.tie_embeddings and self.embeddings is None and self.head is not None:
            names["head.decoder.weight"] = "embeddings.token.weight"
        return names

    def forward(
        self,
        inputs: Tensor,
        segment_ids: Tensor | None = None,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        window: Window | None = None,
        draws: Draws | None = None,
        targets: Tensor | None = None,
        packed: ValidPositions | None = None,
    ) -> ModelOutput | ModelScore | Tensor:
        """Predict tokens, and how the parts of a sample belong together.

        Args:
            inputs: token ids, ``[batch, seq]``, int64; for a part without embeddings the hidden states before it,
                ``[batch, seq, hidden]``.
            segment_ids: which part of a pair each token belongs to, ``[batch, seq]``, int64; None: all to the first.
            valid: False at padding, ``[batch, seq]``, bool; padding stands at the end, so that a causal model need
                not know of it. Each sample has a valid position.
            positions: where tokens are predicted, indices into the flattened ``[batch * seq]``; None: everywhere.
            documents: number of the document that each token belongs to, ``[batch, seq]``, int64, those of one document
                side by side: tokens see their own document only and count positions from its start. None: a row is
                one text. For causal models.
            window: the positions of the sequence that a row holds, where it does not hold all or `inputs` does not
                tell how many; `valid` and `documents` are of whole sequences even then.
            draws: what dropout is drawn from; None: nothing is dropped, as in evaluation.
            targets: token ids at `positions`, ``[n]``, or everywhere, ``[batch * seq]``, int64; ``IGNORE_INDEX`` where
                there is none. With them predictions are scored, and their logits need not all be stored.
            packed: the positions that `valid` calls valid: blocks compute these alone. For whole sequences of an
                encoder; None: blocks compute padding as well.

        Returns: predictions or their score, or what a part without heads gives, ``[batch, seq, hidden]``.
        """
        hidden = self.encode(inputs, segment_ids, valid, documents, window, draws, packed)
        if self.head is None:
            return hidden
        if self.before_heads is not None:
            hidden = self.before_heads(hidden)
        pairs = None if self.pair_head is None else self.pair_head(hidden)
        tokens = self.head(hidden, positions, targets)
        return ModelOutput(tokens, pairs) if targets is None else ModelScore(tokens, pairs)

    def encode(
        self,
        inputs: Tensor,
        segment_ids: Tensor | None = None,
        valid: Tensor | None = None,
        documents: Tensor | None = None,
        window: Window | None = None,
        draws: Draws | None = None,
        packed: ValidPositions | None = None,
    ) -> Tensor:
        """Hidden states after the last block, ``[batch, seq, hidden]``; arguments as in :meth:`forward`."""
        window = window or Window.whole(inputs.shape[1], inputs.device)
        hidden = inputs
        if self.embeddings is not None:
            places = window.positions
            if documents is not None:
                places = places_in_documents(documents)[:, places]
            hidden = self.embeddings(inputs, segment_ids, places, self._draws_of(_BEFORE_LAYERS, draws, window))
        visible, mixer = self._visible(window, valid, documents), self.mixer
        if packed is not None:
            hidden, mixer = packed.pack(hidden), UnpaddedMixer(self.mixer, packed)
        for layer in range(self.part.first, self.part.end):
            block = self.layers[str(self.spec.group_of(layer))]
            layer_draws = self._draws_of(layer, draws, window)
            if layer_draws is not None and packed is not None:
                layer_draws = layer_draws.packed(packed.places)
            hidden = block(hidden, mixer, visible[self.spec.band_of(layer)], layer_draws)
        return hidden if packed is None else packed.spread(hidden)

    def _draws_of(self, layer: int, draws: Draws | None, window: Window) -> LayerDraws | None:
        if draws is None:
            return None
        return draws.of_layer(layer, self.spec, self.stream_positions(window.positions), window.positions)

    def _visible(self, window: Window, valid: Tensor | None, documents: Tensor | None) -> dict[int, Any]:
        """For each width of attention band, which keys a query sees, as the mixer wants it."""
        causal = self.spec.block.causal
        bands = {self.spec.band_of(layer) for layer in range(self.part.first, self.part.end)}
        sights = {band: Sight(causal, band, None if causal else valid, documents) for band in bands}
        return {band: self.mixer.prepare(sight, window) for band, sight in sights.items()}


def places_in_documents(documents: Tensor) -> Tensor:
    """How many tokens of its document stand before each token of a row, ``[batch, seq]``, int64.

    Args:
        documents: number of the document of each token, ``[batch, seq]``, int64, those of one side by side.
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(starts, places, 0).cummax(dim=1).values
