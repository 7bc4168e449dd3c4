"""What autograd stores of one forward pass on one rank, in closed form.

Compare Korthikanti et al. 2022 (arXiv 2205.05198), equation 1, which has dropout masks and materialised scores too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ptm_dist.models import model_spec
from ptm_dist.models.spec import ModelSpec, NormPosition
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Precision, Recipe, Recompute

MASTER_BYTES = {Precision.FP32: 4, Precision.BF16: 4, Precision.FP16: 4, Precision.FP64: 8}
"""Of a stored weight, and of what is never computed in bfloat16: statistics of norms, sums of exponentials."""
COMPUTE_BYTES = {Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2, Precision.FP64: 8}
"""Of a number in a forward pass."""
_ID = 8
"""Bytes of a token id or a position."""


@dataclass(frozen=True)
class ForwardPass:
    """One micro-batch on one rank, and the bytes of which its backward pass needs to be reminded.

    Widths below: h hidden, f feed-forward, e embedding; t tensor-parallel ranks. Sequence parallelism leaves a rank
    its share of positions between the matrices: their inputs are gathered again in the backward pass.

    Attributes:
        recipe: gives model and precision.
        layout: how they are shared.
        samples: of the micro-batch.
        sequence_length: positions of a sample.
        predictions: the most tokens to predict in one.
    """

    recipe: Recipe
    layout: ResolvedLayout
    samples: int
    sequence_length: int
    predictions: int

    def activations(self) -> int:
        """Bytes stored, logits apart.

        Full recomputation keeps the input of every layer and the masks of attention, and stores one layer at work.
        """
        layers = range(self._spec.num_layers)
        masks = [self._attention_mask(layer) for layer in layers]
        outside = self._embeddings() + self._heads()
        if self.layout.recompute is not Recompute.FULL:
            return outside + len(layers) * self._block() + sum(masks)
        truth_values = max(masks) // self._compute
        return outside + len(layers) * self._stream(self._hidden) + truth_values + self._at_work() + max(masks)

    def logits(self) -> int:
        """Bytes of the token logits in the step's format, a float32 copy where that is narrower, twice probabilities.

        The last two are what cross entropy stores, and their gradient.
        """
        columns = -(-self._spec.embedding.vocab_size // self.layout.tensor_parallel)
        wide = max(self._compute, 4)
        copy = wide if self._compute < wide else 0
        return self.samples * self.predictions * columns * (self._compute + copy + 2 * wide)

    @cached_property
    def _spec(self) -> ModelSpec:
        return model_spec(self.recipe.model)

    @property
    def _hidden(self) -> int:
        return self._spec.block.hidden_size

    @property
    def _compute(self) -> int:
        return COMPUTE_BYTES[self.recipe.training.precision]

    @property
    def _wide(self) -> int:
        return MASTER_BYTES[self.recipe.training.precision]

    @property
    def _tokens(self) -> int:
        return self.samples * self.sequence_length

    def _stream(self, width: int) -> int:
        """The rank's positions of something that is not in the matrices."""
        share = self.layout.tensor_parallel if self.layout.sequence_parallel else 1
        return self.samples * -(-self.sequence_length // share) * width * self._compute

    def _norm(self, width: int) -> int:
        """LayerNorm: its input; mean and deviation of each position."""
        return self._stream(width) + self._stream(1) // self._compute * 2 * self._wide

    def _block(self) -> int:
        """Two norms; per position h before the attention, 3h/t and h/t in it, h and 2f/t in the feed-forward layer.

        In numbers it makes no difference where the norms stand. Attention's log-sum-exp comes on top.
        """
        tensor = self.layout.tensor_parallel
        ffn = -(-self._spec.block.ffn_hidden_size // tensor)
        heads = -(-self._spec.block.num_heads // tensor)
        inside = self._compute * (4 * heads * self._spec.block.head_size + 2 * ffn)
        outside = 2 * self._norm(self._hidden) + 2 * self._stream(self._hidden)
        return outside + self._tokens * (inside + self._wide * heads)

    def _at_work(self) -> int:
        """What a recomputed block stores beside its input."""
        return self._block() - self._stream(self._hidden)

    def _attention_mask(self, layer: int) -> int:
        """What a layer sees, as numbers that are added to its scores: a band, other documents, or padding."""
        if not self._spec.block.causal:
            return self._tokens * self._compute
        if self.recipe.objective.document_attention:
            return self._tokens * self.sequence_length * self._compute
        return self.sequence_length**2 * self._compute if self._spec.band_of(layer) else 0

    def _embeddings(self) -> int:
        """Ids of tokens, positions and segments; a norm, and the input of the matrix that widens what it gives."""
        spec, tensor = self._spec.embedding, self.layout.tensor_parallel
        rows = self.samples if self.recipe.objective.document_attention else 1
        stored = (self._tokens + rows * self.sequence_length) * _ID
        if tensor > 1:
            stored += self._tokens
        if spec.segments:
            stored += self._tokens * _ID
        if spec.normalised:
            stored += self._norm(spec.size)
        return stored + (self._stream(spec.size) if spec.size != self._hidden else 0)

    def _heads(self) -> int:
        """Up to the logits: a causal head's norm and the input of its matrix, or the masked head and the pair head.

        The masked head works at chosen positions, which it stores; the pair head at first positions, for which it
        keeps all. Neither shares positions between ranks.
        """
        if self._spec.block.causal:
            pre = self._spec.block.norm_position is NormPosition.PRE
            return (self._norm(self._hidden) if pre else 0) + self._stream(self._hidden)
        width = self._hidden + 3 * self._spec.embedding.size
        stored = self.samples * self.predictions * (_ID + width * self._compute + 2 * self._wide)
        if self._spec.pair_head:
            stored += (self._tokens + self.samples) * self._hidden * self._compute
        return stored
