"""Exchanges of tensor, context and pipeline parallelism for one micro-batch, by formula."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ptm_dist.accounting.holdings import Place, heads_of, length_here, positions_of
from ptm_dist.accounting.watch import Collective, Traffic
from ptm_dist.kernels.cross_entropy import NUM_STATISTICS
from ptm_dist.kernels.linear_cross_entropy import Portion
from ptm_dist.models import model_spec
from ptm_dist.models.spec import ModelSpec, NormPosition
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Recipe
from ptm_dist.training.activations import COMPUTE_BYTES, MASTER_BYTES, scores_chunks


@dataclass(frozen=True)
class Messages:
    """One micro-batch on one rank.

    Attributes:
        recipe: gives model and precision.
        layout: how they are shared.
        place: of the rank.
        samples: of the micro-batch.
        length: positions of a sample.
        predictions: of them, how many are predicted at most.
    """

    recipe: Recipe
    layout: ResolvedLayout
    place: Place
    samples: int
    length: int
    predictions: int

    @cached_property
    def spec(self) -> ModelSpec:
        """Of the model."""
        return model_spec(self.recipe.model)

    @property
    def hidden_bytes(self) -> int:
        """Hidden states as they go from stage to stage."""
        own = positions_of(self.layout, self.length, self.place).own
        return self.samples * own * self.spec.block.hidden_size * self._compute

    def block(self, *, again: bool) -> Traffic:
        """A layer's two pairs of matrices, forward and backward (arXiv 1909.08053, section 3; 2205.05198, 4.2.2).

        Sequence parallelism gathers what goes into a matrix once more for the gradient of its weight. A recomputed
        layer goes through its forward pass again as far as its backward pass needs: in a pre-LayerNorm block nothing
        does that comes after the last matrix.

        Args:
            again: whether the layer is recomputed.
        """
        total = Traffic()
        size = self._whole(self.spec.block.hidden_size)
        leaves_again = (2 if self.spec.block.norm_position is NormPosition.POST else 1) if again else 0
        if not self.layout.sequence_parallel:
            total.add(Collective.ALL_REDUCE, size, 4 + leaves_again)
        else:
            total.add(Collective.ALL_GATHER, size, 6 + (2 if again else 0))
            total.add(Collective.REDUCE_SCATTER, size, 4 + leaves_again)
        return total

    def embeddings(self) -> Traffic:
        """A vocabulary's rows summed over ranks, and the way back."""
        total = Traffic()
        size = self._whole(self.spec.embedding.size)
        if not self.layout.sequence_parallel:
            total.add(Collective.ALL_REDUCE, size)
        else:
            total.add(Collective.REDUCE_SCATTER, size)
            total.add(Collective.ALL_GATHER, size)
        return total

    def heads(self) -> Traffic:
        """Into the matrix of the vocabulary and back, and the statistics of logits, chunk by chunk where they are.

        Where all logits are stored, positions are gathered once more for the gradient of the matrix.
        """
        total = Traffic()
        hidden = self._whole(self.spec.block.hidden_size)
        here = length_here(self.layout, self.length, self.place.context)
        predicted = self.samples * min(self.predictions, here)
        is_chunked = scores_chunks(self.recipe, predicted)
        if not self.spec.block.causal:
            total.add(Collective.ALL_GATHER, hidden, int(self.layout.sequence_parallel))
            total.add(Collective.ALL_REDUCE, predicted * self.spec.embedding.size * self._compute)
        elif self.layout.sequence_parallel:
            total.add(Collective.ALL_GATHER, hidden, 1 if is_chunked else 2)
            total.add(Collective.REDUCE_SCATTER, hidden)
        else:
            total.add(Collective.ALL_REDUCE, hidden)
        tokens = predicted
        if is_chunked:
            most = -(-self.spec.embedding.vocab_size // self.layout.tensor_parallel)
            tokens = Portion.of(torch.device("cuda")).at_a_time(predicted, most)
        for begin in range(0, predicted, tokens):
            rows = self.layout.tensor_parallel * min(tokens, predicted - begin)
            total.add(Collective.ALL_GATHER, NUM_STATISTICS * rows * self._wide)
        return total

    def sums_of_partial(self, size: int) -> Traffic:
        """Once a step, gradients of parameters that ranks saw different positions of."""
        total = Traffic()
        total.add(Collective.ALL_REDUCE, size, int(size > 0))
        return total

    def attention(self, place: Place, *, again: bool) -> Traffic:
        """A layer's exchange of positions.

        Args:
            place: of the rank.
            again: whether the layer is recomputed.
        """
        heads = heads_of(self.spec, self.layout.tensor_parallel, place.tensor)
        forwards = 2 if again else 1
        if self.layout.context_method == "ring":
            return self._ring(heads, forwards)
        return self._ulysses(heads, forwards)

    def _ring(self, heads: int, forwards: int) -> Traffic:
        """Keys and values go round in each pass, in the backward pass their gradients too, and these come home."""
        total = Traffic()
        ranks, rank = self.layout.context_parallel, self.place.context
        lengths = [length_here(self.layout, self.length, (rank - hops) % ranks) for hops in range(ranks)]
        position = 2 * self.samples * heads * self.spec.block.head_size
        for hops in range(ranks):
            ends = ((Collective.SEND, lengths[hops]), (Collective.RECEIVE, lengths[(hops + 1) % ranks]))
            for kind, length in ends:
                if position * length:
                    total.add(kind, position * length * self._compute, (forwards + 1) if hops < ranks - 1 else 0)
                    total.add(kind, position * length * self._wide)
        return total

    def _ulysses(self, heads: int, forwards: int) -> Traffic:
        """Queries, keys and values to ranks by heads, their mixture back to ranks by positions; both ways."""
        total = Traffic()
        ranks, rank = self.layout.context_parallel, self.place.context
        own_heads = heads // ranks + (rank < heads % ranks)
        vector = self.samples * self.spec.block.head_size * self._compute
        by_positions = vector * heads * length_here(self.layout, self.length, rank)
        by_heads = vector * own_heads * self.length
        total.add(Collective.ALL_TO_ALL, 3 * by_positions, forwards)
        total.add(Collective.ALL_TO_ALL, by_heads, forwards)
        total.add(Collective.ALL_TO_ALL, by_positions)
        total.add(Collective.ALL_TO_ALL, 3 * by_heads)
        return total

    def _whole(self, width: int) -> int:
        """Bytes of all positions of this context rank, as they travel between tensor-parallel ranks."""
        return self.samples * positions_of(self.layout, self.length, self.place).sent * width * self._compute

    @property
    def _compute(self) -> int:
        return COMPUTE_BYTES[self.recipe.training.precision]

    @property
    def _wide(self) -> int:
        return MASTER_BYTES[self.recipe.training.precision]
