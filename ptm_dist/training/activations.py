"""What autograd stores of one forward pass on one rank, in closed form.

Compare Korthikanti et al. 2022 (arXiv 2205.05198), equation 1, which has dropout masks and materialised scores too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from ptm_dist.kernels.choice import Form
from ptm_dist.kernels.cross_entropy import CUDA_BLOCK
from ptm_dist.kernels.linear_cross_entropy import Portion, form_of
from ptm_dist.models import model_spec
from ptm_dist.models.banded import pays
from ptm_dist.models.model import Part
from ptm_dist.models.spec import ModelSpec, NormPosition
from ptm_dist.parallel.zigzag import chunk_ranges
from ptm_dist.recipe.layout import ResolvedLayout
from ptm_dist.recipe.schema import Precision, Recipe, Recompute

MASTER_BYTES = {Precision.FP32: 4, Precision.BF16: 4, Precision.FP16: 4, Precision.FP64: 8}
"""Of a stored weight, and of what is never computed in bfloat16: statistics of norms, sums of exponentials."""
COMPUTE_BYTES = {Precision.FP32: 4, Precision.BF16: 2, Precision.FP16: 2, Precision.FP64: 8}
"""Of a number in a forward pass."""
_ID = 8
"""Bytes of a token id or a position."""
_GPU = torch.device("cuda")


def scores_chunks(recipe: Recipe, tokens: int) -> bool:
    """Whether the logits of so many predicted tokens are there in chunks."""
    asked = recipe.kernels.linear_cross_entropy
    width = model_spec(recipe.model).embedding.size
    return form_of(None if asked == "auto" else Form(asked), tokens, width) is not Form.WHOLE


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
        part: the layers of the model that are here; None: all.
    """

    recipe: Recipe
    layout: ResolvedLayout
    samples: int
    sequence_length: int
    predictions: int
    part: Part | None = None

    def activations(self) -> int:
        """Bytes stored, logits apart, and what the layers at work need beside."""
        return self.stored() + self.at_work()

    def stored(self) -> int:
        """Bytes kept on the device from the forward pass to the backward pass, logits apart.

        Full recomputation keeps the input of a layer, and the masks of attention as truth values; selective
        recomputation also what matrices and attention give.
        """
        masks = [0, *(self._attention_mask(layer) for layer in self._layers)]
        copies = sum(self._copies(layer) for layer in self._layers if not self._runs_again(layer))
        outside = (self._embeddings() if self._is_first else 0) + (self._heads() if self._is_last else 0)
        again = sum(self._runs_again(layer) for layer in self._layers)
        numbers = (
            sum(masks)
            if not again
            else max(masks) // self._compute
            + sum(self._attention_mask(layer) for layer in self._layers if not self._runs_again(layer))
        )
        kept = self._stream(self._hidden)
        if self.layout.recompute is Recompute.SELECTIVE:
            kept += self._products()
        blocks = (len(self._layers) - again) * self._block()
        return outside + blocks + again * kept + numbers + copies - self.on_host()

    def on_host(self) -> int:
        """Bytes kept in host memory from the forward pass to the backward pass."""
        return sum(map(self._leaves, self._layers))

    def at_work(self) -> int:
        """Bytes that one recomputed layer stores beside its input, and those of two layers to or from the host."""
        own = [self._attention_mask(layer) + self._copies(layer) for layer in self._layers if self._runs_again(layer)]
        again = self._block() - self._stream(self._hidden) + max(own) if own else 0
        return again + max(sum(map(self._leaves, self._layers[n : n + 2])) for n in range(len(self._layers)))

    def scored(self) -> int:
        """Bytes kept from the loss to the backward pass.

        They are the gradient of all logits, or where logits come in chunks that of the matrix and of its bias.
        """
        if not self._is_last:
            return 0
        if not self._is_chunked:
            return self._logits(self._predicted)
        width = self._spec.embedding.size + (0 if self._spec.block.causal else 1)
        return self._columns * width * max(self._compute, 4)

    def working(self) -> int:
        """Bytes of a layer's gradients at their most in its backward pass: twice f/t, and three times h."""
        ffn = -(-self._spec.block.ffn_hidden_size // self.layout.tensor_parallel)
        return self._tokens * 2 * ffn * self._compute + 3 * self._stream(self._hidden)

    def message(self) -> int:
        """Bytes of hidden states as they go from stage to stage."""
        return self._stream(self._hidden)

    def logits(self) -> int:
        """Bytes of :meth:`scored` and of what stands beside it in the passes through head and loss.

        In the forward pass that are a chunk's logits and exponentials of a block of them, in float32 like a copy of
        the block where logits are narrower; in the backward pass all logits' gradient again, for the loss as it counts.
        """
        if not self._is_last:
            return 0
        tokens = self._predicted
        if self._is_chunked:
            tokens = Portion.of(_GPU).at_a_time(tokens, self._columns)
        wide = max(self._compute, 4)
        exponentials = min(tokens * self._columns, CUDA_BLOCK) * (wide if self._compute == wide else 2 * wide)
        if self._is_chunked:
            return self.scored() + self._logits(tokens) + exponentials
        return self.scored() + max(exponentials, self._logits(tokens))

    def _logits(self, tokens: int) -> int:
        return tokens * self._columns * self._compute

    @property
    def _columns(self) -> int:
        return -(-self._spec.embedding.vocab_size // self.layout.tensor_parallel)

    @property
    def _is_chunked(self) -> bool:
        return scores_chunks(self.recipe, self._predicted)

    @property
    def _predicted(self) -> int:
        return self.samples * min(self.predictions, self._here)

    @cached_property
    def _layers(self) -> range:
        part = self.part or Part(0, self._spec.num_layers)
        return range(part.first, part.end)

    @property
    def _is_first(self) -> bool:
        return self._layers.start == 0

    @property
    def _is_last(self) -> bool:
        return self._layers.stop == self._spec.num_layers

    def _runs_again(self, layer: int) -> bool:
        return self.layout.recompute is not Recompute.NONE and layer % self.layout.recompute_every == 0

    def _leaves(self, layer: int) -> int:
        """Bytes of a layer that go to the host: what selective recomputation keeps beside the input does not."""
        if not self.layout.offload_activations:
            return 0
        if self._runs_again(layer):
            return self._stream(self._hidden)
        return self._block() + self._attention_mask(layer) + self._copies(layer)

    @cached_property
    def _here(self) -> int:
        """Positions of a sample on the context rank that has most."""
        return sum(map(len, chunk_ranges(self.sequence_length, self.layout.context_parallel, 0)))

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
        return self.samples * self._here

    def _stream(self, width: int) -> int:
        """The rank's positions of something that is not in the matrices."""
        share = self.layout.tensor_parallel if self.layout.sequence_parallel else 1
        return self.samples * -(-self._here // share) * width * self._compute

    def _norm(self, width: int) -> int:
        """LayerNorm: its input; mean and deviation of each position."""
        return self._stream(width) + self._stream(1) // self._compute * 2 * self._wide

    def _block(self) -> int:
        """Two norms; per position h before the attention, 3h/t and h/t in it, h and 2f/t in the feed-forward layer.

        In numbers it makes no difference where the norms stand. Attention's log-sum-exp comes on top, and where ranks
        share positions a copy of what it gives.
        """
        tensor = self.layout.tensor_parallel
        ffn = -(-self._spec.block.ffn_hidden_size // tensor)
        heads = -(-self._spec.block.num_heads // tensor)
        attention = (5 if self.layout.context_parallel > 1 else 4) * heads * self._spec.block.head_size
        inside = self._compute * (attention + 2 * ffn)
        outside = 2 * self._norm(self._hidden) + 2 * self._stream(self._hidden)
        return outside + self._tokens * (inside + self._wide * heads)

    def _products(self) -> int:
        """Per position 3h/t and h/t of attention and its log-sum-exp, f/t, and twice h before ranks add up."""
        tensor = self.layout.tensor_parallel
        ffn = -(-self._spec.block.ffn_hidden_size // tensor)
        heads = -(-self._spec.block.num_heads // tensor)
        inside = self._compute * (4 * heads * self._spec.block.head_size + ffn + 2 * self._hidden)
        return self._tokens * (inside + self._wide * heads)

    def _attention_mask(self, layer: int) -> int:
        """What a layer sees, as numbers that are added to its scores: a band, other documents, or padding.

        With ring attention a mask has this rank's rows only.
        """
        length, rows = self.sequence_length, self.sequence_length
        if self.layout.context_parallel > 1 and self.layout.context_method == "ring":
            rows = self._here
        if not self._spec.block.causal:
            return self.samples * length * self._compute
        if self.recipe.objective.document_attention:
            return self.samples * rows * length * self._compute
        if self._is_in_blocks(layer):
            band = self._spec.band_of(layer)
            rest = length % band
            return (2 * band * band + rest * (band + rest if rest else 0)) * self._compute
        return rows * length * self._compute if self._spec.band_of(layer) else 0

    def _is_in_blocks(self, layer: int) -> bool:
        """Whether attention of a layer is computed in blocks of its band (:mod:`ptm_dist.models.banded`)."""
        is_ring = self.layout.context_parallel > 1 and self.layout.context_method == "ring"
        is_plain = not (is_ring or self.recipe.objective.document_attention or self._spec.attention_dropout)
        return is_plain and pays(self.sequence_length, self._spec.band_of(layer))

    def _copies(self, layer: int) -> int:
        """What blocks of a band store beyond a whole row: keys and values of two blocks each, and their results apart.

        Per position of a row 4h/t without blocks; 4h/t in the first block and 6h/t in the others but for an incomplete
        last one, which has 2h/t of the block before it; and h/t of all of them put together.
        """
        if not self._is_in_blocks(layer):
            return 0
        length, band = self.sequence_length, self._spec.band_of(layer)
        whole, rest = divmod(length, band)
        vectors = 4 * band + 6 * (whole - 1) * band + (4 * rest + 2 * band if rest else 0) + length
        heads = -(-self._spec.block.num_heads // self.layout.tensor_parallel)
        return self.samples * (vectors - 4 * length) * heads * self._spec.block.head_size * self._compute

    def _embeddings(self) -> int:
        """Ids of tokens, positions and segments; a norm, and the input of the matrix that widens what it gives."""
        spec, tensor = self._spec.embedding, self.layout.tensor_parallel
        rows = self.samples if self.recipe.objective.document_attention else 1
        stored = (self._tokens + rows * self._here) * _ID
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
        stored = self._predicted * (_ID + width * self._compute + 2 * self._wide)
        if self._spec.pair_head:
            stored += (self._tokens + self.samples) * self._hidden * self._compute
        return stored
